"""The report as a page: what ``model.assess.report`` measured, in sections that stand on their own."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from model.assess.report_style import CSS
from model.assess.report_tasks import range_of, table, task_section
from model.assess.report_variants import variants_section
from model.assess.svg import Axis, Line, line_chart, whisker

_FIGURES = {
    "log_loss": "log loss",
    "ece": "ECE",
    "auc": "AUC",
    "in_scope_accuracy": "in-scope accuracy",
    "oos_recall": "oos recall",
    "mae": "MAE",
}
_FACT_MAX = 60  # characters of a fact in a box; longer ones are notes
_HOW = """Intervals hold 95 % of 1,000 bootstrap resamples of the rows (seeded, percentile): they tell what other
rows of the same kind would give, not what other kinds of texts would. ECE is the expected calibration error
over 15 bins of equal mass. A slice is flagged when its interval lies wholly below the whole's accuracy, on 50 rows or
more; with many slices about one in forty is flagged by chance alone."""


def page(report: Mapping[str, Any]) -> str:
    """The whole HTML document. ``report``: see ``model.assess.report.write_report``."""
    name = str(report["artifact"]["name"])
    sections = [
        _head(report),
        _overview(report["tasks"]),
        *(task_section(i, task) for i, task in enumerate(report["tasks"])),
        _click(report["click"]),
        _sharing(report["sharing"]),
        variants_section(report["variants"]),
        _curves(report["curves"]),
        f'<h2>How to read this</h2><p class="note">{escape(_HOW)}</p>',
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(name)}: evaluation report</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def _head(report: Mapping[str, Any]) -> str:
    a = report["artifact"]
    facts = {
        "version": a["version"],
        "vector space": a["space"],
        "size": f"{a['bytes'] / 1e6:.1f} MB, {_short(a['parameters'])} parameters",
        "encoder": f"{a['layers']} layers, width {a['hidden']}, {a['vocabulary']:,} pieces",
        "n-gram channel": f"{a['grams']:,} n-grams, {a['gram_columns']} columns" if a["gram_columns"] else "none",
        "text": f"at most {a['max_tokens']} pieces",
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items())
    prints = table(
        ["file", "SHA-256"], [[escape(f), f'<span class="mono">{escape(s)}</span>'] for f, s in report["data"].items()]
    )
    data = f"<details><summary>Trained on {len(report['data'])} files</summary>{prints}</details>"
    links = [f'<a href="#t{i}">{escape(task["task"])}</a>' for i, task in enumerate(report["tasks"])] + [
        f'<a href="#{key}">{words}</a>' for key, words in _PARTS.items() if report[key]
    ]
    return (
        f'<header><h1>{escape(a["name"])}: evaluation report</h1><dl class="facts">{cells}</dl>'
        f"{data if report['data'] else ''}<nav>{''.join(links)}</nav></header>{_warnings(report['tasks'])}"
    )


_PARTS = {
    "click": "click and purchase",
    "sharing": "shared against single",
    "variants": "variants",
    "curves": "training",
}


def _warnings(tasks: Sequence[Mapping[str, Any]]) -> str:
    """The flagged slices of all tasks first: they are what a reader must not miss."""
    flagged = [
        (part, cut["by"], task["task"], i)
        for i, task in enumerate(tasks)
        for cut in task.get("slices", [])
        for part in cut["slices"]
        if part["flagged"]
    ]
    lines = [
        f'<li><a href="#t{i}">{escape(name)}</a>, {escape(by)} <b>{escape(part["value"])}</b>: {part["accuracy"]:.3f} '
        f"{range_of(part['interval'])}, {-part['gap']:.3f} below the whole ({part['n']:,} rows)</li>"
        for part, by, name, i in sorted(flagged, key=lambda found: float(found[0]["gap"]))
    ]
    if not lines:
        return '<div class="summary">No slice lies clearly below its whole.</div>' if tasks else ""
    few = lines[:6]
    more = f"<details><summary>{len(lines) - 6} more</summary><ul>{''.join(lines[6:])}</ul></details>"
    count = f"{len(lines)} slices lie" if len(lines) > 1 else "One slice lies"
    return (
        f'<div class="summary warn"><b>{count} clearly below the whole.</b><ul>{"".join(few)}</ul>'
        f"{more if len(lines) > 6 else ''}</div>"
    )


def _overview(tasks: Sequence[Mapping[str, Any]]) -> str:
    if not tasks:
        return "<h2>Tasks</h2><p>No trial was given.</p>"
    shown = [name for name in _FIGURES if any(name in task for task in tasks)]
    rows = []
    for i, task in enumerate(tasks):
        ends = task.get("intervals", {})
        drawn = whisker(task["accuracy"], ends["accuracy"], Axis("", 0, 1)) if ends else ""
        named = (
            f'<a href="#t{i}">{escape(task["task"])}</a><span class="under">{escape(Path(task["file"]).name)}</span>'
        )
        cells = [named, f"{task['n']:,}", drawn]
        cells += [f"{task[name]:.3f} {range_of(ends[name])}" if ends else "" for name in ("accuracy", "macro_f1")]
        rows.append(cells + [f"{task[name]:.3f}" if name in task else "" for name in shown])
    heads = ["task", "rows", "0 — accuracy — 1", "accuracy", "macro F1"]
    return "<h2>Tasks</h2>" + table(heads + [_FIGURES[name] for name in shown], rows, left=(2,))


def _click(click: Mapping[str, Any] | None) -> str:
    """The manifest's section as it is: a table of its measured parts, the rest as facts."""
    if not click:
        return ""
    measured = {name: part for name, part in click.items() if isinstance(part, Mapping) and "auc" in part}
    names = list(dict.fromkeys(key for part in measured.values() for key, value in part.items() if _plain(value)))
    rows = [
        [escape(name.replace("_", " ")), *(_cell(part.get(key)) for key in names)] for name, part in measured.items()
    ]
    rest = {name.replace("_", " "): _fact(value) for name, value in click.items() if name not in measured}
    notes = "".join(f'<p class="note">{escape(told)}</p>' for told in rest.values() if len(told) > _FACT_MAX)
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(told)}</dd></div>"
        for name, told in rest.items()
        if len(told) <= _FACT_MAX
    )
    heads = ["measured on", *(_FIGURES.get(name, name.replace("_", " ")) for name in names)]
    return (
        '<h2 id="click">Click and purchase</h2><p class="note">As measured when the heads were fitted.</p>'
        + (table(heads, rows) if rows else "")
        + f'<dl class="facts">{cells}</dl>{notes}'
    )


def _sharing(points: Sequence[Mapping[str, Any]] | None) -> str:
    if not points:
        return ""
    shares = sorted({point["share"] for point in points})
    ticks = [(share, f"{share:.0%}" if share >= 0.01 else f"{share:.1%}") for share in shares]
    charts, rows = [], []
    for task in dict.fromkeys(point["task"] for point in points):
        own = sorted((point for point in points if point["task"] == task), key=lambda point: float(point["share"]))
        metric = str(own[0].get("metric", "accuracy"))
        lines = [Line(name, [(p["share"], p[name]) for p in own], dots=True) for name in ("shared", "single")]
        values = [value for line in lines for _, value in line.points]
        y = _range(metric, values)
        x = Axis("share of the task's labels", shares[0], shares[-1], ticks, log=True)
        charts.append(f"<figure><h3>{escape(task)}</h3>{line_chart(lines, x, y, title=f'{task} by labels')}</figure>")
        at = {point["share"]: point for point in own}
        rows.append([escape(task), escape(metric), *(_gain(at.get(share)) for share in shares)])
    return (
        '<h2 id="sharing">Shared against single</h2><p class="note">What a task reaches when all tasks share one '
        "encoder, beside an encoder of its own, by the share of its labels used. Signs are shared less single.</p>"
        + table(["task", "figure", *(words for _, words in ticks)], rows, left=(1,))
        + f'<div class="many">{"".join(charts)}</div>'
    )


def _gain(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    gain = point["shared"] - point["single"]
    kind = "good" if gain > 0 else "bad" if gain < 0 else ""
    sides = f'<span class="range">{point["shared"]:.3f} / {point["single"]:.3f}</span>'
    return f'<span class="{kind}">{gain:+.3f}</span> {sides}'


def _curves(panels: Sequence[Mapping[str, Any]] | None) -> str:
    """Losses by task, the rest (rates, weights, norms) on request."""
    if not panels:
        return ""
    parts = [[_panel(panel) for panel in panels if panel["losses"] is kind] for kind in (True, False)]
    losses, rest = (f'<div class="many">{"".join(charts)}</div>' if charts else "" for charts in parts)
    more = f"<details><summary>{len(parts[1])} other curves</summary>{rest}</details>" if rest else ""
    return f'<h2 id="curves">Training</h2>{losses}{more}'


def _panel(panel: Mapping[str, Any]) -> str:
    lines = [Line(line["name"], [(a, b) for a, b in line["points"]]) for line in panel["lines"]]
    steps = [a for line in lines for a, _ in line.points]
    y = _range("", [b for line in lines for _, b in line.points])
    drawn = line_chart(lines, Axis("step", min(steps), max(steps)), y, title=f"{panel['name']} by step")
    return f"<figure><h3>{escape(panel['name'])}</h3>{drawn}</figure>"


def _range(name: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or max(abs(high) * 0.05, 0.01)
    return Axis(name, low - margin, high + margin)


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    return "" if not _plain(value) else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and value < 1e4
        else f"{value:,.0f}"
        if _plain(value)
        else str(value)
    )


def _short(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"
