"""The report's part on tasks trained together against each alone, by the share of their labels."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from model.assess.report_tasks import table
from model.assess.sharing import intervals_words, needs_words, share_words
from model.assess.svg import Axis, Line, line_chart

_SIDES = ("shared", "single")


def sharing_section(points: Sequence[Mapping[str, Any]] | None, curve: Mapping[str, Any] | None) -> str:
    """``points`` as ``read_sharing`` gives them, ``curve`` as ``learning_curve`` makes it of them; empty without."""
    if not points:
        return ""
    shares = sorted({float(point["share"]) for point in points})
    x = Axis("share of the labels", shares[0], shares[-1], [(share, share_words(share)) for share in shares], log=True)
    return (
        '<h2 id="sharing">Shared against single</h2><p class="note">What a task reaches when all tasks share one '
        "encoder, beside an encoder of its own, by the share of its labels used. Signs are shared less single.</p>"
        + _curve(curve, x)
        + _tasks(points, shares, x)
    )


def _curve(curve: Mapping[str, Any] | None, x: Axis) -> str:
    """The answer, the mean over the tasks as a picture, and the same as a table."""
    if curve is None:
        return ""
    wholes = curve["shares"]
    lines = [Line(name, [(w["share"], w[name]) for w in wholes], dots=True) for name in _SIDES]
    drawn = line_chart(lines, x, _around(curve["metric"], lines), title="mean over the tasks by labels")
    rows = [
        [
            share_words(w["share"]),
            f"{w['shared']:.4f}",
            f"{w['single']:.4f}",
            _signed(w["difference"], 4) + _between(w["interval"]),
            escape(needs_words(w, wholes[0]["share"])),
        ]
        for w in wholes
    ]
    heads = ["labels", "shared", "single", "difference", "single needs"]
    over = f" {intervals_words(curve['seeds'])}" if any(w["interval"] for w in wholes) else ""
    return (
        f'<div class="summary"><b>{escape(curve["answer"])}</b></div><h3>Learning curve</h3><div class="pair">'
        f"<figure>{drawn}<figcaption>Mean {escape(curve['metric'])} over {len(curve['tasks'])} tasks.</figcaption>"
        f'</figure><div>{table(heads, rows)}<p class="note">Single needs: the share of the labels with which one model'
        f" a task would reach the shared figure, read off its own curve.{escape(over)}</p></div></div>"
    )


def _tasks(points: Sequence[Mapping[str, Any]], shares: Sequence[float], x: Axis) -> str:
    charts, rows = [], []
    for task in dict.fromkeys(point["task"] for point in points):
        own = sorted((point for point in points if point["task"] == task), key=lambda point: float(point["share"]))
        metric = str(own[0].get("metric", "accuracy"))
        lines = [Line(name, [(p["share"], p[name]) for p in own], dots=True) for name in _SIDES]
        drawn = line_chart(lines, x, _around(metric, lines), title=f"{task} by labels")
        charts.append(f"<figure><h3>{escape(task)}</h3>{drawn}</figure>")
        at = {point["share"]: point for point in own}
        rows.append([escape(task), escape(metric), *(_gain(at.get(share)) for share in shares)])
    heads = ["task", "figure", *map(share_words, shares)]
    return f'<h3>By task</h3>{table(heads, rows, left=(1,))}<div class="many">{"".join(charts)}</div>'


def _gain(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    sides = f'<span class="range">{point["shared"]:.3f} / {point["single"]:.3f}</span>'
    return f"{_signed(point['shared'] - point['single'], 3)} {sides}"


def _signed(gain: float, digits: int) -> str:
    kind = "good" if gain > 0 else "bad" if gain < 0 else ""
    return f'<span class="{kind}">{gain:+.{digits}f}</span>'


def _between(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f' <span class="range">{ends[0]:+.4f} to {ends[1]:+.4f}</span>'


def _around(name: str, lines: Sequence[Line]) -> Axis:
    return Axis.around(name, [value for line in lines for _, value in line.points])
