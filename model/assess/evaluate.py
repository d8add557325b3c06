"""Evaluation of an artifact on labelled files. Figures are honest: nothing here chooses anything.

``evaluate_*`` give a task's figures as a flat mapping; model/assess/detail.py adds intervals, classes and slices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model import metrics
from model.data import Columns, Labelled, as_label, check_label, columns_of, own_label, read_split
from model.errors import DataError
from model.scoring import Floats, Scorer, check_head, decide

OUTSIDE = "oos"
STREAM_TASKS = ("click", "purchase", "conversion")
_BATCH = 1024

Truth = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """One head's answers on n texts, and the m of them whose label the head knows.

    probabilities: [n, labels of the head]. judged: bool [n], m true. candidates: the labels guessed among, C in all.
    conditional: float64 [m, C], probabilities over the candidates. truth, guess: int64 [m], among the candidates.
    """

    task: str
    labels: Sequence[str]
    probabilities: Floats
    judged: npt.NDArray[np.bool_]
    candidates: list[str]
    conditional: npt.NDArray[np.float64]
    truth: Truth
    guess: Truth

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """Probability of each guess, [m]."""
        return np.asarray(self.conditional[np.arange(len(self.guess)), self.guess])


def evaluate_files(
    scorer: Scorer,
    task: str,
    data_paths: Sequence[Path],
    history_paths: Sequence[Path] = (),
    *,
    columns: Columns | None = None,
    among: Sequence[str] | None = None,
    delays_s: Sequence[float] = (),
) -> dict[str, Any]:
    """Figures of a task on files of rows; see ``evaluate_texts``.

    ``columns``: of text and label; what is not said is where the head's training data had it, see ``columns_of``.
    ``click``, ``purchase`` and ``conversion`` run the history files through first and are progressive, for outcomes
    known at once and after each of ``delays_s`` seconds. ``unlabelled``, where there are some: rows left out because
    their label is absent or null. Raises DataError naming file and line, or the task when the model has no such head.
    """
    if task in STREAM_TASKS:
        return evaluate_events(scorer, task, data_paths, history_paths, columns, among, delays_s)
    check_no_delays(task, delays_s)
    found, unlabelled = read_task(scorer, task, data_paths, columns)
    figures = evaluate_texts(scorer, task, [f.text for f in found], [f.label for f in found], among=among)
    return figures | told_unlabelled(unlabelled)


def evaluate_events(
    scorer: Scorer,
    task: str,
    data_paths: Sequence[Path],
    history_paths: Sequence[Path],
    columns: Columns | None,
    among: Sequence[str] | None,
    delays_s: Sequence[float],
    *,
    detail: bool = False,
) -> dict[str, Any]:
    """Figures of one of the ``STREAM_TASKS``, see ``model.clicks.evaluate``. Raises DataError, also for ``columns`` and
    labels to choose ``among``: events have their own."""
    from model.clicks.evaluate import evaluate_log  # lazy: it is no part of text evaluation
    from model.clicks.fields import read_lines

    if among is not None or columns not in (None, Columns()):
        raise DataError(f"labels and fields are given for tasks on texts; the events of {task} have their own")
    return evaluate_log(scorer, task, read_lines(data_paths), read_lines(history_paths), delays_s, detail=detail)


def check_no_delays(task: str, delays_s: Sequence[float]) -> None:
    """Raises DataError where a task on texts is asked for late outcomes."""
    if delays_s:
        raise DataError(f"--delay-s is for clicks, whose outcomes come later; {task} is a task on texts")


def read_task(
    scorer: Scorer, task: str, paths: Sequence[Path], columns: Columns | None = None
) -> tuple[list[Labelled], int]:
    """The labelled rows of a text task's files, and how many more have no label. Raises DataError as ``read_split``,
    for a label that the head does not know, or the task when the model has no such head."""
    known = check_head(scorer, task)
    columns = columns_of(task, scorer.head(task), columns)
    found, unlabelled = read_split(paths, columns)
    # An older artifact may have its labels as rows were written.
    own = {as_label(label, score=columns.score): label for label in known}
    found = [labelled._replace(label=own.get(labelled.label, labelled.label)) for labelled in found]
    scoped = scorer.threshold(task) is not None
    for labelled in found:
        check_truth(labelled.label, task, known, labelled.place, scoped=scoped)
    return found, unlabelled


def check_truth(label: str, head: str, known: Sequence[str], place: str, *, scoped: bool) -> None:
    """Raises DataError, naming ``place``, for a label that answers of a head cannot be held against: none of its
    ``known`` ones, nor `oos` where it is ``scoped``, that is, has a threshold to turn messages away by."""
    if label == OUTSIDE and label not in known:
        if not scoped:
            raise DataError(
                f"{place}: label {OUTSIDE!r} is for heads that turn messages away; {head!r} has neither a threshold nor"
                " that label: take the row out, or train the head with `threshold: true`"
            )
    else:
        check_label(label, head, known, place)


def told_unlabelled(count: int) -> dict[str, int]:
    """What figures say of rows that were left out for want of a label."""
    return {"unlabelled": count} if count else {}


def evaluate_texts(
    scorer: Scorer, task: str, texts: Sequence[str], labels: Sequence[str], *, among: Sequence[str] | None = None
) -> dict[str, Any]:
    """Figures of one head on texts and labels.

    The guess is the head's answer (``decide``) among the labels that occur (a file of two sentiments is judged on two;
    one of a single label on all of the head's, or no guess could be wrong), or among those of ``among``; log_loss, auc
    and ece use the conditional probabilities over them. For an intent head with a threshold, in_scope_accuracy and
    oos_recall apply it: a top probability below it, or the class ``oos``, means out of scope. Rows of ``oos`` where the
    head has no such class are judged by these two alone, the rest by all: ``judged``, where that is not n, counts them.
    A head of kind ``score`` is judged by mae as well, of the expected value. Raises DataError for an unknown task or
    label, one that occurs without being in ``among``, and `oos` where the head has neither a threshold nor that label.
    """
    judged = judge(scorer, task, texts, labels, among)
    return flat_figures(judged, labels, scorer)


def judge(
    scorer: Scorer, task: str, texts: Sequence[str], labels: Sequence[str], among: Sequence[str] | None = None
) -> Judged:
    """Score the texts [n] and set the guesses beside their labels [n]. Raises DataError as ``evaluate_texts``."""
    known = check_head(scorer, task)
    if not texts:
        raise DataError(f"no rows to measure {task!r} on; give at least one")
    scoped = scorer.threshold(task) is not None
    for label in sorted(set(labels) - set(known)):
        check_truth(label, task, known, f"rows of {task}", scoped=scoped)
    candidates = _candidates(task, known, labels, among)
    probabilities = score_texts(scorer, task, texts)
    inside = np.array([label in known for label in labels])  # `oos` rows of a head without that class are judged apart
    place = {label: i for i, label in enumerate(candidates)}
    truth = np.array([place[label] for label in labels if label in place], np.int64)
    columns = [known.index(label) for label in candidates]
    conditional = probabilities[inside][:, columns].astype(np.float64)
    conditional /= np.maximum(conditional.sum(1, keepdims=True), 1e-300)
    guess = decide(scorer, task, conditional, columns) if len(truth) else truth
    return Judged(task, known, probabilities, inside, candidates, conditional, truth, guess)


def _candidates(task: str, known: Sequence[str], labels: Sequence[str], among: Sequence[str] | None) -> list[str]:
    """The labels to guess among, in the head's order; see ``evaluate_texts``."""
    occurring = set(labels) & set(known)
    if among is None:
        return [label for label in known if label in occurring or len(occurring) < 2]
    among = [own_label(label, known) for label in among]
    for label in among:
        check_label(label, task, known, "--labels")
    left = sorted(occurring - set(among))
    if left:
        raise DataError(f"--labels lacks {left[0]!r}, which occurs in the rows; add it, or leave those rows out")
    return [label for label in known if label in among]


def score_texts(scorer: Scorer, task: str, texts: Sequence[str]) -> Floats:
    """Probabilities [n, labels] of one head, in batches of bounded memory."""
    batches = (texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH))
    return np.concatenate([scorer.classify(task, scorer.encode(scorer.prepare(batch))) for batch in batches])


def scope_figures(
    probabilities: Floats, known: Sequence[str], labels: Sequence[str], threshold: float
) -> Mapping[str, float]:
    """In-scope accuracy with the threshold applied, and the recall of ``oos`` where the labels have it."""
    top = [known[i] for i in probabilities.argmax(1)]
    sure = probabilities.max(1) >= threshold
    guess = np.array([label if ok else OUTSIDE for label, ok in zip(top, sure, strict=True)])
    truth = np.array(labels)
    outside = truth == OUTSIDE
    figures = {"threshold": threshold}
    if (~outside).any():
        figures["in_scope_accuracy"] = metrics.accuracy(truth[~outside], guess[~outside])
    if outside.any():
        figures["oos_recall"] = metrics.accuracy(truth[outside], guess[outside])
    return figures


def flat_figures(judged: Judged, labels: Sequence[str], scorer: Scorer) -> dict[str, Any]:
    """The figures of ``evaluate_texts``."""
    threshold = scorer.threshold(judged.task)
    result: dict[str, Any] = {"task": judged.task, "n": len(labels)}
    if not judged.judged.all():
        result["judged"] = len(judged.truth)
    if judged.judged.any():
        result |= _figures(judged)
    if threshold is not None:
        result |= scope_figures(judged.probabilities, judged.labels, labels, threshold)
    if judged.task == "sentiment" and "negative" in judged.labels:
        result |= _soft_errors(judged, labels)
    if columns_of(judged.task, scorer.head(judged.task)).score and judged.judged.any():
        result["mae"] = _mean_absolute_error(judged)
    return {key: rounded(value) if isinstance(value, float) else value for key, value in result.items()}


def _mean_absolute_error(judged: Judged) -> float:
    """Of the expected value over all labels of the head, on the rows whose label it knows."""
    expected = judged.probabilities[judged.judged] @ np.array([float(label) for label in judged.labels])
    truth = np.array([float(label) for label in judged.candidates])[judged.truth]
    return float(np.abs(expected - truth).mean())


def _soft_errors(judged: Judged, labels: Sequence[str]) -> dict[str, float]:
    """Mean p(negative) of truly negative rows and of all others: what alerts undo (Rogan and Gladen 1978 with
    probabilities for answers). Empty where the rows lack either."""
    said = judged.probabilities[:, list(judged.labels).index("negative")]
    negative = np.array([label == "negative" for label in labels])
    if negative.all() or not negative.any():
        return {}
    return {
        "p_negative_of_negatives": float(said[negative].mean()),
        "p_negative_of_others": float(said[~negative].mean()),
    }


def _figures(judged: Judged) -> dict[str, float]:
    truth, guess, conditional = judged.truth, judged.guess, judged.conditional
    figures = {
        "accuracy": metrics.accuracy(truth, guess),
        "macro_f1": metrics.macro_f1(truth, guess, conditional.shape[1]),
        "log_loss": metrics.log_loss(conditional, truth),
        "ece": metrics.ece(judged.confidence, guess == truth),
    }
    if conditional.shape[1] == 2 and len(np.unique(truth)) == 2:
        figures["auc"] = metrics.auc(conditional[:, 1], truth)
    return figures


def rounded(value: float) -> float:
    """Five decimals; whole numbers stay whole."""
    return round(value, 5) if isinstance(value, int) else round(float(value), 5)
