"""A task's figures in detail: with intervals, classes, confusion, reliability, and slices with their gaps."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model import metrics
from model.assess import slices
from model.assess.evaluate import (
    STREAM_TASKS,
    Judged,
    Truth,
    check_no_delays,
    evaluate_events,
    flat_figures,
    judge,
    read_task,
    rounded,
    scope_figures,
    told_unlabelled,
)
from model.data import Columns, Row, read_rows
from model.errors import DataError
from model.scoring import Floats, Scorer
from model.warmth import user_of

CONFUSION_LABELS_MAX = 200
CELLS_MAX = 1000
_CURVE_POINTS = 41


def assess_files(
    scorer: Scorer,
    task: str,
    data_paths: Sequence[Path],
    history_paths: Sequence[Path] = (),
    *,
    columns: Columns | None = None,
    among: Sequence[str] | None = None,
    fields: Sequence[str] = (),
    lenient: bool = False,
    delays_s: Sequence[float] = (),
) -> dict[str, Any]:
    """The figures of ``evaluate_files`` and what ``assess_texts`` adds, or for ``click``, ``purchase`` and
    ``conversion`` slices by the user's earlier events.

    history_paths: what came before, for texts only to tell who is new. fields: the rows may be sliced by these; those
    that no row has are refused, or with ``lenient`` passed over. Raises DataError.
    """
    if task in STREAM_TASKS:
        if fields:
            raise DataError(f"--slice {fields[0]}: slices by a field are for tasks on texts; {task} is none")
        return evaluate_events(scorer, task, data_paths, history_paths, columns, among, delays_s, detail=True)
    check_no_delays(task, delays_s)
    found, unlabelled = read_task(scorer, task, data_paths, columns)
    texts, labels, rows = [f.text for f in found], [f.label for f in found], [f.row for f in found]
    if lenient:
        fields = [field for field in fields if any(row.get(field) is not None for row in rows)]
    before = _users(history_paths) if any(user_of(row) for row in rows) else ()
    figures = assess_texts(scorer, task, texts, labels, rows, among=among, fields=fields, before=before)
    return figures | told_unlabelled(unlabelled)


def assess_texts(
    scorer: Scorer,
    task: str,
    texts: Sequence[str],
    labels: Sequence[str],
    rows: Sequence[Row] = (),
    *,
    among: Sequence[str] | None = None,
    fields: Sequence[str] = (),
    before: Iterable[str | None] = (),
) -> dict[str, Any]:
    """The figures of ``evaluate_texts`` and, of the rows whose label the head knows:

    labels: those guessed among, C in all. intervals: 95 % bootstrap intervals of accuracy and macro_f1. classes: label,
    support, guessed, precision, recall and f1 of each, and under intervals the 95 % Wilson intervals of the three, see
    ``metrics.class_intervals``. confusion: counts [C][C], row the truth, column the guess; of more than
    CONFUSION_LABELS_MAX labels only ``mistakes``, the most frequent CELLS_MAX, [truth, guess, rows] each, and how many
    rows' mistakes are ``left_out``. reliability: mean
    confidence, accuracy and n of up to 15 bins of equal mass. slices: see ``slices.all_slices``; by every field of
    ``fields`` in ``rows``, which belong to the texts, and where these name users, by how many rows of theirs came
    ``before`` (users, one an event) and among them. scope, where the head has a threshold: see ``scope_curve``. All
    JSON. Raises DataError as ``evaluate_texts``, or for a field that no row has.
    """
    judged = judge(scorer, task, texts, labels, among)
    result = flat_figures(judged, labels, scorer)
    if judged.judged.any():
        kept = np.flatnonzero(judged.judged).tolist()
        size, truth, guess = len(judged.candidates), judged.truth, judged.guess
        matrix = metrics.confusion(truth, guess, size)
        own = [rows[i] for i in kept] if rows else []
        found = slices.all_slices([texts[i] for i in kept], own, fields, truth, guess, size, before)
        result |= {
            "labels": judged.candidates,
            "intervals": {name: [rounded(end) for end in ends] for name, ends in metrics.bootstrap(matrix).items()},
            "classes": _classes(judged.candidates, matrix),
            "confusion": matrix.tolist() if size <= CONFUSION_LABELS_MAX else _mistakes(judged.candidates, matrix),
            "reliability": _reliability(judged),
            "slices": found,
        }
    if scorer.threshold(task) is not None:
        result["scope"] = scope_curve(judged.probabilities, judged.labels, labels)
    return result


def scope_curve(probabilities: Floats, known: Sequence[str], labels: Sequence[str]) -> list[dict[str, float]]:
    """``scope_figures`` over up to 41 thresholds that each turn away about as many rows more, from none to nearly all:
    what a stricter threshold costs and gains."""
    levels = np.quantile(probabilities.max(1), np.linspace(0, 1, _CURVE_POINTS))
    curve = [scope_figures(probabilities, known, labels, float(level)) for level in np.unique([0.0, *levels])]
    return [{name: rounded(value) for name, value in point.items()} for point in curve]


def _mistakes(candidates: Sequence[str], matrix: Truth) -> dict[str, Any]:
    truth, guess = np.nonzero(matrix)
    wrong = truth != guess
    truth, guess = truth[wrong], guess[wrong]
    counts = matrix[truth, guess]
    kept = np.argsort(-counts, kind="stable")[:CELLS_MAX]
    mistakes = [[candidates[truth[i]], candidates[guess[i]], int(counts[i])] for i in kept]
    return {"mistakes": mistakes, "left_out": int(counts.sum() - counts[kept].sum())}


def _classes(candidates: Sequence[str], matrix: Truth) -> list[dict[str, Any]]:
    columns = {name: column.tolist() for name, column in metrics.per_class(matrix).items()}
    ends = metrics.class_intervals(matrix)
    return [
        {"label": label}
        | {name: rounded(column[i]) for name, column in columns.items()}
        | {"intervals": {name: [rounded(end) for end in own[i]] for name, own in ends.items()}}
        for i, label in enumerate(candidates)
    ]


def _reliability(judged: Judged) -> list[dict[str, float]]:
    points = metrics.reliability(judged.confidence, judged.truth == judged.guess)
    return [{"confidence": rounded(c), "accuracy": rounded(a), "n": int(n)} for c, a, n in points]


def _users(paths: Sequence[Path]) -> list[str | None]:
    return [user_of(row) for path in paths for _, row in read_rows(path)]
