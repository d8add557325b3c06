"""Figures of merit, pure: arrays in, numbers out."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Interval = tuple[float, float]
RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 100  # bounds memory: a confusion matrix of 150 classes may have thousands of cells


def accuracy(truth: Array, guess: Array) -> float:
    """Share of equal entries of [n] and [n]."""
    return float((truth == guess).mean())


def macro_f1(truth: Array, guess: Array, classes: int) -> float:
    """Mean F1 over the classes that occur in truth or guess; a class never guessed right has F1 0."""
    scores = []
    for k in range(classes):
        both, either = int(((truth == k) & (guess == k)).sum()), int((truth == k).sum() + (guess == k).sum())
        if either:
            scores.append(2 * both / either)
    return float(np.mean(scores))


def log_loss(probabilities: Array, truth: Array) -> float:
    """Mean negative log probability of the true class; probabilities [n, C], truth [n]."""
    chosen = probabilities[np.arange(len(truth)), truth]
    return float(-np.log(np.clip(chosen, 1e-12, 1.0)).mean())


def auc(scores: Array, truth: Array) -> float:
    """Area under the ROC curve of scores [n] for truth [n] in {0, 1}, ties counted half (Mann-Whitney U)."""
    positive = truth.astype(bool)
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def reliability(confidence: Array, right: Array, bins: int = 15) -> Array:
    """Points of a reliability diagram over equal-mass bins of confidence [n], right bool [n]: float64 [bins, 3] of mean
    confidence, accuracy and number of rows, by rising confidence. Fewer bins where there are fewer rows."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(1, min(bins, len(order))))
    return np.array([[confidence[part].mean(), right[part].mean(), len(part)] for part in parts], np.float64)


def ece(confidence: Array, right: Array, bins: int = 15) -> float:
    """Expected calibration error over equal-mass bins: mean |confidence - accuracy|, weighted by bin size."""
    points = reliability(confidence, right, bins)
    return float((points[:, 2] * np.abs(points[:, 0] - points[:, 1])).sum() / len(confidence))


def confusion(truth: Array, guess: Array, classes: int) -> npt.NDArray[np.int64]:
    """Counts, int64 [C, C]: row the true class, column the guess. truth and guess int [n] in [0, C)."""
    flat = np.bincount(np.asarray(truth) * classes + np.asarray(guess), minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def per_class(matrix: Array) -> dict[str, Array]:
    """precision, recall, f1 (float64 [C]; 0 where undefined), support and guessed (int64 [C]) of a confusion matrix."""
    right, support, guessed = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    return {
        "precision": right / np.maximum(guessed, 1),
        "recall": right / np.maximum(support, 1),
        "f1": 2 * right / np.maximum(support + guessed, 1),
        "support": support,
        "guessed": guessed,
    }


def bootstrap(matrix: Array, *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95) -> dict[str, Interval]:
    """Percentile bootstrap intervals of ``accuracy`` and ``macro_f1`` from a confusion matrix [C, C] of n rows.

    Drawing n rows with replacement and counting them is one multinomial draw over the matrix's cells, so no row is
    touched: the same distribution at a cost that does not grow with n. The same seed gives the same intervals. Raises
    ValueError for an empty matrix. (Efron 1979; the percentile interval of Efron and Tibshirani 1993, chapter 13. It is
    of no width where all rows are right or all wrong: trust it from some dozens of rows on.)
    """
    truth, guess = np.nonzero(matrix)
    if not len(truth):
        raise ValueError("no rows: a bootstrap needs at least one")
    counts = np.asarray(matrix)[truth, guess]
    n, classes = int(counts.sum()), len(matrix)
    rng = np.random.default_rng(seed)
    rows_of, guesses_of = np.eye(classes)[truth], np.eye(classes)[guess]  # [cells, C]
    right = truth == guess
    accuracies, f1s = [], []
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        draws = rng.multinomial(n, counts / n, size=min(_RESAMPLES_AT_ONCE, resamples - start)).astype(np.float64)
        both, either = draws[:, right] @ rows_of[right], draws @ (rows_of + guesses_of)  # [resamples, C]
        accuracies.append(both.sum(1) / n)
        f1s.append((2 * both / np.maximum(either, 1)).sum(1) / (either > 0).sum(1))
    ends = [(1 - level) / 2, (1 + level) / 2]
    found = {
        "accuracy": np.quantile(np.concatenate(accuracies), ends),
        "macro_f1": np.quantile(np.concatenate(f1s), ends),
    }
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}
