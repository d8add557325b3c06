"""Tasks trained together against each alone, by the share of their labels: results read, and the curve over the tasks.

The curve answers whether sharing saves labels: what do both reach with few, and how many would one model a task need to
reach what the shared one reaches?
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from model.errors import DataError

Point = Mapping[str, Any]
_ERRORS = ("mae", "log_loss", "ece")  # figures of which less is better: no curve is made of them


def read_sharing(path: Path) -> tuple[list[Point], dict[float, list[float]]]:
    """Results of training tasks together against each alone, a JSON list of points or an object with the list
    ``points``; and by share the interval of the mean difference, where the object's list ``shares`` has them.

    Each point: ``task``; ``share`` of the labels used, in (0, 1]; ``shared`` and ``single``, the figure reached;
    optional ``metric`` (accuracy) and ``seeds``, how many trainings a figure is the mean of; with it the intervals are
    over seeds and rows. Of ``shares``: ``share`` and ``difference_interval``. Raises DataError naming the point at
    fault.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no readable JSON ({error})") from error
    points = content.get("points") if isinstance(content, dict) else content
    if not isinstance(points, list) or not points:
        raise DataError(f"{path}: a list of points, or an object with the list `points`, is expected")
    for i, point in enumerate(points):
        well = isinstance(point, dict) and isinstance(point.get("task"), str)
        numbers = [point.get(name) for name in ("share", "shared", "single")] if well else [None]
        if not all(is_number(number) for number in numbers) or not 0 < point["share"] <= 1:
            raise DataError(f"{path}: point {i} needs task, share in (0, 1], shared and single")
        if "seeds" in point and not (type(point["seeds"]) is int and point["seeds"] > 0):
            raise DataError(f"{path}: point {i}: seeds must be a whole number above 0")
    shares = content.get("shares", []) if isinstance(content, dict) else []
    return [dict(point) for point in points], _intervals(shares, path)


def _intervals(shares: Any, path: Path) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for i, whole in enumerate(shares if isinstance(shares, list) else [shares]):
        share, ends = (
            (whole.get("share"), whole.get("difference_interval")) if isinstance(whole, dict) else (None, None)
        )
        if not is_number(share) or not (ends is None or _is_interval(ends)):
            raise DataError(f"{path}: shares: {i} needs share, and two numbers in difference_interval where it has it")
        if ends is not None:
            found[float(share)] = ends
    return found


def _is_interval(ends: Any) -> bool:
    return isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))


def learning_curve(points: Sequence[Point], intervals: Mapping[float, Sequence[float]]) -> dict[str, Any] | None:
    """The curve over the tasks that have a point at every share, and what it says.

    tasks, metric. shares, from few labels to many, each: share; shared and single, means over the tasks; difference;
    interval, of the difference, or None; single_needs, the share of labels at which one model a task reaches the shared
    figure (straight lines between the shares, on a logarithmic scale), or None where no share tried is enough. seeds:
    over how many the intervals are, or None where the points do not say one number. answer: in words. None where the
    points' figures are not one, or one of which less is better.
    """
    kinds = {str(point.get("metric", "accuracy")) for point in points}
    shares = sorted({float(point["share"]) for point in points})
    at = {(point["task"], float(point["share"])): point for point in points}
    every = list(dict.fromkeys(point["task"] for point in points))
    tasks = [task for task in every if all((task, share) in at for share in shares)]
    if len(kinds) > 1 or kinds & set(_ERRORS) or not tasks:
        return None
    means = [
        [float(np.mean([at[task, share][side] for task in tasks])) for share in shares] for side in ("shared", "single")
    ]
    known = intervals if tasks == every else {}  # an interval is of the mean over all tasks
    curve = [
        {
            "share": share,
            "shared": round(shared, 5),
            "single": round(single, 5),
            "difference": round(shared - single, 5),
            "interval": None if share not in known else [*known[share]],
            "single_needs": _needed(shared, shares, means[1]),
        }
        for share, shared, single in zip(shares, *means, strict=True)
    ]
    counts = {point.get("seeds") for point in points}
    seeds = counts.pop() if len(counts) == 1 else None
    return {"tasks": tasks, "metric": kinds.pop(), "shares": curve, "seeds": seeds, "answer": _answer(curve, seeds)}


def share_words(share: float) -> str:
    """``10 %``, ``0.3 %``."""
    return f"{100 * share:.3g} %"


def needs_words(whole: Mapping[str, Any], smallest: float) -> str:
    """What one model a task needs to reach the shared figure, in words."""
    needed = whole["single_needs"]
    if needed is None:
        return "more than tried"
    return f"{'at most ' if needed <= smallest else ''}{share_words(float(f'{needed:.2g}'))}"


def intervals_words(seeds: int | None) -> str:
    """What the intervals are over, in a sentence."""
    if seeds is None:
        return "It is not said what the intervals are over; those of earlier benches leave the seeds out."
    if seeds == 1:
        return "Intervals are at 95 % over the rows of one seed: another may say otherwise."
    return f"Intervals are at 95 % over {seeds} seeds and the rows."


def _needed(figure: float, shares: Sequence[float], singles: Sequence[float]) -> float | None:
    """The share at which ``singles`` [shares], taken never to fall with more labels, reach a figure."""
    rising = np.maximum.accumulate(singles)
    if figure > rising[-1]:
        return None
    place = int(np.searchsorted(rising, figure))  # the first share that is enough
    if place == 0:
        return shares[0]
    part = (figure - rising[place - 1]) / (rising[place] - rising[place - 1])
    low, high = math.log(shares[place - 1]), math.log(shares[place])
    return round(math.exp(low + float(part) * (high - low)), 5)


def _answer(curve: Sequence[Mapping[str, Any]], seeds: int | None) -> str:
    """Does sharing save labels? By the intervals of the differences; without them by the means, which is said."""
    if len(curve) < 2:
        return "Does sharing save labels? One share of the labels alone cannot tell; try some more."
    smallest = curve[0]["share"]
    sure = all(whole["interval"] is not None for whole in curve)
    better = [w for w in curve if (w["interval"][0] if sure else w["difference"]) > 0]
    worse = [w for w in curve if (w["interval"][1] if sure else w["difference"]) < 0]
    told = "" if seeds is None else f" {intervals_words(seeds)}"
    if not sure:
        told = " These are means without intervals: chance is not ruled out."
    if better and worse:
        words = f"It depends: shared is better with {_named(better)} of the labels, worse with {_named(worse)}."
    elif better:
        most = max(better, key=lambda w: float(w["difference"]))
        reached = (
            "does not reach that with any share tried"
            if most["single_needs"] is None
            else f"needs {needs_words(most, smallest)} of the labels for that"
        )
        words = (
            f"Yes, with {_named(better)} of the labels. With {share_words(most['share'])} the shared model reaches"
            f" {most['shared']:.3f}, {_difference(most)} over one model a task, which {reached}."
        )
    elif worse:
        most = min(worse, key=lambda w: float(w["difference"]))
        words = f"No: with {_named(worse)} of the labels the shared model is worse, {_difference(most)} at most."
    else:
        most = max(curve, key=lambda w: abs(float(w["difference"])))
        words = f"Not shown: at no share is the difference clear of zero; the largest is {_difference(most)}."
    return f"Does sharing save labels? {words}{told}"


def _named(wholes: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(share_words(whole["share"]) for whole in wholes)


def _difference(whole: Mapping[str, Any]) -> str:
    ends = whole["interval"]
    return f"{whole['difference']:+.4f}" + ("" if ends is None else f" ({ends[0]:+.4f} to {ends[1]:+.4f})")


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether JSON's value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
