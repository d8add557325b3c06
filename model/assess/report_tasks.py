"""One task's part of the report: classes, confusion, calibration, slices, scope."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from model.assess.svg import Axis, Line, confusion_chart, line_chart, reliability_chart, whisker

_CLASSES_MAX = 12  # classes shown at once, the worst first; the others on request
_CONFUSIONS_MAX = 8


def task_section(number: int, task: Mapping[str, Any]) -> str:
    """The section of one trial; ``task`` as ``assess_texts`` gives it, with its file."""
    head = f'<h2 id="t{number}">{escape(task["task"])} <span class="note">{escape(Path(task["file"]).name)}</span></h2>'
    if "classes" not in task:
        facts = [
            [escape(name.replace("_", " ")), escape(str(task[name]))] for name in task if name not in ("task", "file")
        ]
        return head + table(["figure", "value"], facts) + _scope(task)
    among = f"guessed among {len(task['labels'])} of the head's {task['head_labels']} labels"
    intro = f'<p class="note">{task["n"]:,} rows, {among}, temperature {task["temperature"]:.2f}.</p>'
    return head + intro + _pictures(task) + _classes(task["classes"]) + _slices(task) + _scope(task)


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


def range_of(ends: Sequence[float]) -> str:
    """An interval in small letters."""
    return f'<span class="range">{ends[0]:.3f}–{ends[1]:.3f}</span>'


def _pictures(task: Mapping[str, Any]) -> str:
    points = [(p["confidence"], p["accuracy"], p["n"]) for p in task["reliability"]]
    confusion = confusion_chart(task["confusion"], task["labels"])
    return (
        f'<div class="pair"><figure><h3>Confusion</h3>{confusion}'
        "<figcaption>Row: the truth. Column: the guess. Shade: share of the row.</figcaption></figure>"
        f"<figure><h3>Calibration</h3>{reliability_chart(points)}<figcaption>Below the dashed line the model is surer "
        f"than right. {len(points)} bins of equal mass; ECE {task['ece']:.3f}.</figcaption>{_confusions(task)}</figure>"
        "</div>"
    )


def _confusions(task: Mapping[str, Any]) -> str:
    """The most frequent mistakes in words: with many classes the picture alone cannot name them."""
    labels, matrix = task["labels"], task["confusion"]
    if len(labels) < 4:
        return ""
    found = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n]
    found = sorted(found, key=lambda cell: -cell[0])[:_CONFUSIONS_MAX]
    rows = [[escape(labels[i]), escape(labels[j]), str(n), f"{n / sum(matrix[i]):.1%}"] for n, i, j in found]
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
            *(f"{c[k]:.3f}" for k in ("precision", "recall", "f1")),
        ]
        for c in order
    ]
    if not many:
        return "<h3>Classes</h3>" + table(heads, rows)
    rest = (
        f"<details><summary>The other {len(rows) - _CLASSES_MAX} classes</summary>{table(heads, rows[_CLASSES_MAX:])}"
    )
    return f"<h3>Classes, the worst {_CLASSES_MAX}</h3>{table(heads, rows[:_CLASSES_MAX])}{rest}</details>"


def _slices(task: Mapping[str, Any]) -> str:
    if not task["slices"]:
        return ""
    parts = [part for cut in task["slices"] for part in cut["slices"]]
    ends = [end for part in parts if part["n"] > 1 for end in part["interval"]] + [task["accuracy"]]
    axis = Axis("", min(ends), max(ends))
    blocks = []
    for cut in task["slices"]:
        rows, bad = [], []
        for i, part in enumerate(cut["slices"]):
            at, low, high = (min(max(v, axis.low), axis.high) for v in (part["accuracy"], *part["interval"]))
            drawn = whisker(at, (low, high), axis, whole=task["accuracy"], flagged=part["flagged"])
            flag = ' <b class="flag">below</b>' if part["flagged"] else ""
            figures = [f"{part['accuracy']:.3f} {range_of(part['interval'])}", f"{part['gap']:+.3f}{flag}"]
            rows.append([escape(part["value"]), f"{part['n']:,}", drawn, *figures, f"{part['macro_f1']:.3f}"])
            if part["flagged"]:
                bad.append(i)
        heads = [cut["by"], "rows", "accuracy (dashed: the whole)", "accuracy", "gap", "macro F1"]
        blocks.append(table(heads, rows, left=(2,), bad=bad))
    return "<h3>Slices</h3>" + "".join(blocks)


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
