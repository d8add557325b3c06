"""The report as a page: what ``model.assess.report`` measured, in sections that stand on their own."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from model.assess.report_sharing import sharing_section
from model.assess.report_style import CSS
from model.assess.report_tasks import range_of, rows_judged, slices_part, table, task_section
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
_HOW = """Intervals of accuracy and macro F1 hold 95 % of 1,000 bootstrap resamples of the rows (seeded, percentile). A
class's precision and recall have Wilson's interval of 95 %, and so has its F1, through the share of hits among the rows
that are the class or guessed to be; AUC has DeLong's. They tell what other rows of the same kind would give, not what
other kinds of texts would. ECE is the expected calibration error over 15 bins of equal mass. A slice is flagged when
its interval lies wholly below the whole's accuracy (of clicks: AUC), on 50 rows or more; with many slices about one in
forty is flagged by chance alone. Linear: TF-IDF of n-grams of characters and a linear support vector machine that
learned from the same labelled rows as the model; a task that it answers better is marked. A user's earlier events are
those of the history given and, in the file itself, those before the row's time."""


def page(report: Mapping[str, Any]) -> str:
    """The whole HTML document. ``report``: see ``model.assess.report.write_report``."""
    name = str(report["artifact"]["name"])
    sections = [
        _head(report),
        _overview(report["tasks"]),
        *(task_section(i, task) for i, task in enumerate(report["tasks"])),
        _click(report["click"]),
        sharing_section(report["sharing"], report["learning_curve"]),
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
        f"{data if report['data'] else ''}<nav>{''.join(links)}</nav></header>{_warnings(report)}"
    )


_PARTS = {
    "click": "click and purchase",
    "sharing": "shared against single",
    "variants": "variants",
    "curves": "training",
}


def _warnings(report: Mapping[str, Any]) -> str:
    """The flagged slices of all tasks first: they are what a reader must not miss."""
    click = {"task": "click", "slices": (report["click"] or {}).get("valid_slices", [])}
    measured = [(task, f"t{i}") for i, task in enumerate(report["tasks"])] + [(click, "click")]
    flagged = [
        (part, cut, task["task"], anchor)
        for task, anchor in measured
        for cut in task.get("slices", [])
        for part in cut["slices"]
        if part["flagged"]
    ]
    lines = [
        f'<li><a href="#{anchor}">{escape(name)}</a>, {escape(cut["by"])} <b>{escape(part["value"])}</b>: '
        f"{part[cut['figure']]:.3f} {range_of(part['interval'])}, {-part['gap']:.3f} below the whole"
        f" ({part['n']:,} rows)</li>"
        for part, cut, name, anchor in sorted(flagged, key=lambda found: float(found[0]["gap"]))
    ]
    if not lines:
        return '<div class="summary">No slice lies clearly below its whole.</div>' if report["tasks"] else ""
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
    floor = any("linear_accuracy" in task for task in tasks)
    rows = []
    for i, task in enumerate(tasks):
        ends = task.get("intervals", {})
        drawn = whisker(task["accuracy"], ends["accuracy"], Axis("", 0, 1)) if ends else ""
        named = (
            f'<a href="#t{i}">{escape(task["task"])}</a><span class="under">{escape(Path(task["file"]).name)}</span>'
        )
        judged = rows_judged(task)
        counted = f'{judged[0]}<span class="under">{judged[1]}</span>' if judged else f"{task['n']:,}"
        cells = [named, counted, drawn]
        cells += [f"{task[name]:.3f} {range_of(ends[name])}" if ends else "" for name in ("accuracy", "macro_f1")]
        if floor:
            both = [f"{task[name]:.3f}" for name in ("linear_accuracy", "linear_macro_f1") if name in task]
            cells.append(", ".join(both))
        rows.append(cells + [f"{task[name]:.3f}" if name in task else "" for name in shown])
    heads = ["task", "rows", "0 — accuracy — 1", "accuracy", "macro F1", *(["linear: both"] if floor else [])]
    below = [i for i, task in enumerate(tasks) if task.get("accuracy", 1.0) < task.get("linear_accuracy", 0.0)]
    return "<h2>Tasks</h2>" + table(heads + [_FIGURES[name] for name in shown], rows, left=(2,), bad=below)


def _click(click: Mapping[str, Any] | None) -> str:
    """The manifest's section as it is: a table of its measured parts, the rest as facts."""
    if not click:
        return ""
    measured = {
        name: part for name, part in click.items() if isinstance(part, Mapping) and {"auc", "log_loss"} & set(part)
    }
    names = list(dict.fromkeys(key for part in measured.values() for key, value in part.items() if _plain(value)))
    rows = [
        [escape(name.replace("_", " ")), *(_cell(part.get(key)) for key in names)] for name, part in measured.items()
    ]
    cuts = click.get("valid_slices", [])
    rest = {
        name.replace("_", " "): _fact(value)
        for name, value in click.items()
        if name not in measured and name != "valid_slices"
    }
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
        + slices_part(cuts, click.get("valid", {}))
        + f'<dl class="facts">{cells}</dl>{notes}'
    )


def _curves(panels: Sequence[Mapping[str, Any]] | None) -> str:
    """Losses and figures on valid rows by task, the rest (rates, weights, norms) on request."""
    if not panels:
        return ""
    parts = [[_panel(panel) for panel in panels if panel["first"] is kind] for kind in (True, False)]
    losses, rest = (f'<div class="many">{"".join(charts)}</div>' if charts else "" for charts in parts)
    more = f"<details><summary>{len(parts[1])} other curves</summary>{rest}</details>" if rest else ""
    return f'<h2 id="curves">Training</h2>{losses}{more}'


def _panel(panel: Mapping[str, Any]) -> str:
    lines = [Line(line["name"], [(a, b) for a, b in line["points"]]) for line in panel["lines"]]
    steps = [a for line in lines for a, _ in line.points]
    y = Axis.around("", [b for line in lines for _, b in line.points])
    drawn = line_chart(lines, Axis("step", min(steps), max(steps)), y, title=f"{panel['name']} by step")
    return f"<figure><h3>{escape(panel['name'])}</h3>{drawn}</figure>"


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
