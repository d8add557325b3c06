"""Figures of merit, pure: arrays in, numbers out."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


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


def ece(confidence: Array, right: Array, bins: int = 15) -> float:
    """Expected calibration error over equal-mass bins: mean |confidence - accuracy|, weighted by bin size."""
    order = np.argsort(confidence, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        total += len(part) * abs(float(confidence[part].mean()) - float(right[part].mean()))
    return total / len(order)
