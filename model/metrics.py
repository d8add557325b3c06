"""Figures of merit, pure: arrays in, numbers out."""

from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array  # type: ignore[import-untyped]

Array = npt.NDArray[Any]
Interval = tuple[float, float]
RESAMPLES = 1000
FLAG_ROWS_MIN = 50  # a smaller part is never flagged: its interval says too little
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
    return float(0.0 - np.log(np.clip(chosen, 1e-12, 1.0)).mean())  # no -0.0


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
    confidence, accuracy and number of rows, by rising confidence. Fewer bins where there are fewer rows.

    Rows of one confidence count as right by the share of them that is, so that their order cannot matter where a bin
    ends among them."""
    values, group, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    share = np.bincount(group, weights=right, minlength=len(values)) / counts
    parts = np.array_split(np.repeat(np.arange(len(values)), counts), max(1, min(bins, len(group))))
    return np.array([[values[part].mean(), share[part].mean(), len(part)] for part in parts], np.float64)


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
    cells = np.arange(len(truth))
    # [cells, C], sparse: with thousands of classes they would be large.
    rows_of, guesses_of = (csr_array((np.ones(len(cells)), (cells, k)), (len(cells), classes)) for k in (truth, guess))
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


def wilson(hits: Array, n: Array, level: float = 0.95) -> Array:
    """Wilson's score interval (1927) of shares hits / n, int [k] each: float64 [k, 2]. It stays within 0 and 1, has a
    width where all or none are hits, and is 0 to 1 where n is 0."""
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    hits, n = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    some = np.maximum(n, 1)
    share = hits / some
    middle = (share + z2 / (2 * some)) / (1 + z2 / some)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * some)) / some) / (1 + z2 / some)
    low, high = np.where(hits > 0, middle - half, 0.0), np.where(hits < n, middle + half, 1.0)
    return np.stack([low, np.where(n > 0, high, 1.0)], axis=1)


def class_intervals(matrix: Array, level: float = 0.95) -> dict[str, Array]:
    """Wilson intervals, float64 [C, 2] each, of ``per_class``'s precision, recall and f1 of a confusion matrix [C, C].

    Recall is a share of the class's rows, precision one of its guesses. F1 is 2 J / (1 + J), J the share of hits among
    the rows that are the class or guessed to be, so its interval is J's, put through the same (arXiv 2309.14621, the
    Wilson indirect method). Each takes the number of rows that it is a share of as given.
    """
    right, support, guessed = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    either = wilson(right, support + guessed - right, level)
    return {
        "precision": wilson(right, guessed, level),
        "recall": wilson(right, support, level),
        "f1": 2 * either / (1 + either),
    }


def auc_interval(scores: Array, truth: Array, level: float = 0.95) -> Interval:
    """Interval of ``auc`` for scores [n] and truth [n] in {0, 1}: the variance of DeLong, DeLong and Clarke-Pearson
    (1988) on the scale of the log odds, so that it stays within 0 and 1. It is 0 to 1 where it tells nothing: fewer
    than two of a kind, or none out of order. Rows count as independent; those of one user are not quite."""
    positive = truth.astype(bool)
    n1, n0 = int(positive.sum()), int((~positive).sum())
    whole = auc(scores, truth)
    if min(n1, n0) < 2 or not 0 < whole < 1:
        return 0.0, 1.0
    above = _below(scores[~positive], scores[positive]) / n0  # per positive: share of negatives that it beats
    beaten = 1 - _below(scores[positive], scores[~positive]) / n1
    spread = float(np.sqrt(above.var(ddof=1) / n1 + beaten.var(ddof=1) / n0)) / (whole * (1 - whole))
    middle, reach = np.log(whole / (1 - whole)), NormalDist().inv_cdf((1 + level) / 2) * spread
    low, high = (float(1 / (1 + np.exp(-end))) for end in (middle - reach, middle + reach))
    return low, high


def _below(others: Array, scores: Array) -> Array:
    """How many of ``others`` [m] lie below each score [n], equal ones counted half: float64 [n]."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2


def lies_below(n: int, interval: Interval, whole: float) -> bool:
    """Whether a part of n rows is flagged: its figure's interval lies wholly below the whole's figure, on
    FLAG_ROWS_MIN rows or more."""
    return n >= FLAG_ROWS_MIN and interval[1] < whole
