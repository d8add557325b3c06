"""Evaluation of an artifact on labelled files. Figures are honest: nothing here chooses anything."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model import metrics
from model.data import FIELD_OF_TASK as FIELDS
from model.data import Row, label_of, read_labelled, read_rows, text_of
from model.errors import DataError
from model.scoring import Floats, Scorer

OUTSIDE = "oos"
STREAM_TASKS = ("click", "purchase")
_BATCH = 1024


def evaluate_files(
    scorer: Scorer, task: str, data_paths: Sequence[Path], history_paths: Sequence[Path] = ()
) -> dict[str, Any]:
    """Figures of a task on files of rows as in the data sets' own fields; see ``evaluate_texts``.

    ``click`` and ``purchase`` run the history files through first and are progressive. Raises DataError naming file and
    line, or the task when it is unknown.
    """
    if task in STREAM_TASKS:
        from model import click  # lazy: it is no part of text evaluation

        data = [row for path in data_paths for _, row in read_rows(path)]
        history = [row for path in history_paths for _, row in read_rows(path)]
        figures: dict[str, Any] = click.evaluate(scorer, data, history) | {"task": task}
        return figures
    texts, labels = read_labelled(data_paths, task)
    return evaluate_texts(scorer, task, texts, labels)


def evaluate(scorer: Scorer, task: str, rows: Sequence[Row]) -> dict[str, Any]:
    """As ``evaluate_files``, for rows of a text task in memory."""
    if task not in FIELDS:
        raise DataError(f"unknown task {task!r}; known: {', '.join(FIELDS)}")
    place = Path("rows")
    texts = [text_of(row, ("title", "text"), place, i) for i, row in enumerate(rows, 1)]
    labels = [label_of(row, FIELDS[task], place, i) for i, row in enumerate(rows, 1)]
    return evaluate_texts(scorer, task, texts, labels)


def evaluate_texts(scorer: Scorer, task: str, texts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Figures of one head on texts and labels.

    The guess is the argmax over the labels that occur (a file of two sentiments is judged on two), and log_loss, auc
    and ece use the conditional probabilities over them. For an intent head with a threshold, in_scope_accuracy and
    oos_recall apply it: a top probability below it, or the class ``oos``, means out of scope. Stars are judged by mae
    as well, of the expected value. Raises DataError for an unknown task or label.
    """
    if task not in scorer.labels:
        raise DataError(f"the model has no head {task!r}; its heads: {', '.join(scorer.labels)}")
    known = list(scorer.labels[task])
    unknown = sorted(set(labels) - set(known) - {OUTSIDE})
    if unknown:
        raise DataError(f"label {unknown[0]!r} is unknown to head {task!r}; its labels: {', '.join(known)}")
    probabilities = score_texts(scorer, task, texts)
    present = [label for label in known if label in set(labels)]
    result: dict[str, Any] = {"task": task, "n": len(texts)}
    judged = np.array([label in known for label in labels])  # `oos` rows of a head without that class are judged below
    if judged.any():
        truth = np.array([present.index(label) for label in labels if label in known])
        result |= _figures(probabilities[judged][:, [known.index(label) for label in present]], truth)
    threshold = scorer.threshold(task)
    if threshold is not None:
        result |= scope_figures(probabilities, known, labels, threshold)
    if task == "stars":
        expected = probabilities @ np.array([float(label) for label in known])
        result["mae"] = float(np.abs(expected - np.array([float(label) for label in labels])).mean())
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in result.items()}


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


def _figures(probabilities: Floats, truth: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    conditional = probabilities.astype(np.float64)
    conditional /= np.maximum(conditional.sum(1, keepdims=True), 1e-300)
    guess = conditional.argmax(1)
    figures = {
        "accuracy": metrics.accuracy(truth, guess),
        "macro_f1": metrics.macro_f1(truth, guess, conditional.shape[1]),
        "log_loss": metrics.log_loss(conditional, truth),
        "ece": metrics.ece(conditional.max(1), guess == truth),
    }
    if conditional.shape[1] == 2:
        figures["auc"] = metrics.auc(conditional[:, 1], truth)
    return figures
