"""One task's part of the report: classes, confusion, calibration, slices, scope."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from model.assess.svg import Axis, Line, confusion_chart, line_chart, reliability_chart, whisker

_CLASSES_MAX = 12  # classes shown at once, the worst first; the others on request
_CONFUSIONS_MAX = 8
_PLACE = ("task", "file", "sha256")
_FIGURES = {  # of a slice, with the words over their columns
    "accuracy": "accuracy",
    "auc": "AUC",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "ece": "ECE",
    "predicted_over_observed": "predicted / observed",
    "base_rate": "base rate",
}


def task_section(number: int, task: Mapping[str, Any]) -> str:
    """The section of one trial; ``task`` as ``assess_texts`` gives it, with its file."""
    head = f'<h2 id="t{number}">{escape(task["task"])} <span class="note">{escape(Path(task["file"]).name)}</span></h2>'
    if "classes" not in task:
        flat = {name: value for name, value in task.items() if not isinstance(value, list | Mapping)}
        facts = [[escape(name.replace("_", " ")), escape(str(flat[name]))] for name in flat if name not in _PLACE]
        return head + table(["figure", "value"], facts) + slices_part(task.get("slices", []), task) + _scope(task)
    judged = rows_judged(task)
    rows = " ".join(judged) if judged else f"{task['n']:,} rows"
    among = f"guessed among {len(task['labels'])} of the head's {task['head_labels']} labels"
    without = f" ({task['unlabelled']:,} more without a label)" if "unlabelled" in task else ""
    intro = f'<p class="note">{rows}{without}, {among}, temperature {task["temperature"]:.2f}.</p>'
    return head + intro + _pictures(task) + _classes(task["classes"]) + slices_part(task["slices"], task) + _scope(task)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (), bad: Sequence[int] = ()
) -> str:
    """A table from cells that are HTML already; ``heads`` are words. Columns in ``left`` and the first are set to the
    left, rows in ``bad`` are marked."""
    sides = ['<{0} class="left">' if i in left else "<{0}>" for i in range(len(heads))]
    top = "".join(side.format("th") + escape(name) + "</th>" for side, name in zip(sides, heads, strict=True))
    body = []
    for i, row in enumerate(rows):
        cells = "".join(side.format("td") + cell + "</td>" for side, cell in zip(sides, row, strict=True))
        body.append(f'<tr class="bad">{cells}</tr>' if i in bad else f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def rows_judged(task: Mapping[str, Any]) -> tuple[str, str] | None:
    """Where a task's figures are not of all its rows, of how many they are, and what became of the others."""
    n, judged = task["n"], task.get("judged", task["n"])
    return None if judged == n else (f"{judged:,} of {n:,} rows", f"({n - judged:,} out of scope judged apart)")


def range_of(ends: Sequence[float]) -> str:
    """An interval in small letters."""
    return f'<span class="range">{ends[0]:.3f}–{ends[1]:.3f}</span>'


def _pictures(task: Mapping[str, Any]) -> str:
    points = [(p["confidence"], p["accuracy"], p["n"]) for p in task["reliability"]]
    confusion = ""
    if isinstance(task["confusion"], list):
        confusion = (
            f"<figure><h3>Confusion</h3>{confusion_chart(task['confusion'], task['labels'])}"
            "<figcaption>Row: the truth. Column: the guess. Shade: share of the row.</figcaption></figure>"
        )
    return (
        f'<div class="pair">{confusion}'
        f"<figure><h3>Calibration</h3>{reliability_chart(points)}<figcaption>Below the dashed line the model is surer "
        f"than right. {len(points)} bins of equal mass; ECE {task['ece']:.3f}.</figcaption>{_confusions(task)}</figure>"
        "</div>"
    )


def _confusions(task: Mapping[str, Any]) -> str:
    """The most frequent mistakes in words: with many classes the picture alone cannot name them."""
    labels, confusion = task["labels"], task["confusion"]
    if len(labels) < 4:
        return ""
    if isinstance(confusion, Mapping):
        found = confusion["mistakes"]
    else:
        found = [
            (labels[i], labels[j], n) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n
        ]
    found = sorted(found, key=lambda cell: -cell[2])[:_CONFUSIONS_MAX]
    support = {c["label"]: c["support"] for c in task["classes"]}
    rows = [[escape(truth), escape(guess), str(n), f"{n / support[truth]:.1%}"] for truth, guess, n in found]
    heads = ["truth", "guess", "rows", "share of the truth"]
    return f"<h3>Most frequent mistakes</h3>{table(heads, rows, left=(1,))}" if rows else ""


def _classes(classes: Sequence[Mapping[str, Any]]) -> str:
    many = len(classes) > _CLASSES_MAX
    order = sorted(classes, key=lambda c: float(c["f1"])) if many else classes
    heads = ["class", "rows", "guessed", "precision", "recall", "F1"]
    rows = [
        [
            escape(c["label"]),
            f"{c['support']:,}",
            f"{c['guessed']:,}",
            *(f"{c[k]:.3f} {range_of(c['intervals'][k])}" for k in ("precision", "recall", "f1")),
        ]
        for c in order
    ]
    if not many:
        return "<h3>Classes</h3>" + table(heads, rows)
    rest = (
        f"<details><summary>The other {len(rows) - _CLASSES_MAX} classes</summary>{table(heads, rows[_CLASSES_MAX:])}"
    )
    return f"<h3>Classes, the worst {_CLASSES_MAX}</h3>{table(heads, rows[:_CLASSES_MAX])}{rest}</details>"


def slices_part(cuts: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> str:
    """Slicings, as ``slices.all_slices`` or ``model.clicks.figures.warmth_slices`` gives them, beside the figures of
    the ``whole``; empty where there are none, or the whole has no figure to compare with."""
    cuts = [cut for cut in cuts if whole.get(cut["figure"]) is not None]
    parts = [(part, part[cut["figure"]]) for cut in cuts for part in cut["slices"]]
    if not parts:
        return ""
    ends = [end for part, value in parts if value is not None and part["n"] > 1 for end in part["interval"]]
    ends += [whole[cut["figure"]] for cut in cuts]
    axis = Axis("", min(ends), max(ends))
    return "<h3>Slices</h3>" + "".join(_slicing(cut, whole[cut["figure"]], axis) for cut in cuts)


def _slicing(cut: Mapping[str, Any], whole: float, axis: Axis) -> str:
    """A table of one slicing's slices, the flagged ones marked."""
    figure, rows, bad = cut["figure"], [], []
    name, others = _FIGURES[figure], [key for key in _FIGURES if key != figure and key in cut["slices"][0]]
    for i, part in enumerate(cut["slices"]):
        cells = ["", "", ""]
        if part[figure] is not None:
            at, low, high = (min(max(v, axis.low), axis.high) for v in (part[figure], *part["interval"]))
            drawn = whisker(at, (low, high), axis, whole=whole, flagged=part["flagged"])
            flag = ' <b class="flag">below</b>' if part["flagged"] else ""
            cells = [drawn, f"{part[figure]:.3f} {range_of(part['interval'])}", f"{part['gap']:+.3f}{flag}"]
        rows.append([escape(part["value"]), f"{part['n']:,}", *cells, *(f"{part[key]:.3f}" for key in others)])
        if part["flagged"]:
            bad.append(i)
    heads = [cut["by"], "rows", f"{name} (dashed: the whole)", name, "gap", *(_FIGURES[key] for key in others)]
    return table(heads, rows, left=(2,), bad=bad)


def _scope(task: Mapping[str, Any]) -> str:
    """The out-of-scope curve, where the head has a threshold."""
    curve = task.get("scope")
    if not curve:
        return ""
    names = {"in_scope_accuracy": "in-scope accuracy", "oos_recall": "out-of-scope recall"}
    lines = [
        Line(words, [(p["threshold"], p[name]) for p in curve]) for name, words in names.items() if name in curve[0]
    ]
    x = Axis("threshold on the top probability", 0.0, max(max(p["threshold"] for p in curve), task["threshold"]))
    marks = [(task["threshold"], f"in use {task['threshold']:.3f}")]
    drawn = line_chart(lines, x, Axis("", 0.0, 1.0), marks=marks, title="out of scope by threshold")
    told = (
        ""
        if "oos_recall" in curve[0]
        else " The file has no out-of-scope rows: what is turned away is only a cost here."
    )
    return (
        f"<h3>Out of scope</h3><figure>{drawn}<figcaption>What a stricter threshold costs and gains.{told}"
        "</figcaption></figure>"
    )
