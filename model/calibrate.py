"""Calibration on rows that were never trained on: blend and temperature per head, a threshold per intent head, and what
a label's probability counts for where rare labels are to be found."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize  # type: ignore[import-untyped]

Logits = npt.NDArray[np.float64]
CALIBRATION_ROWS_MIN = 50  # with fewer a temperature rests on the prior as much as on them
_BOUNDS = (-3.0, 3.0)  # of log temperature
_MARKS, _STEPS = 25, 40  # of the search: first everywhere, then around the best
_TAU_MARKS = 41
# A log temperature is believed to be 0 as if so many rows had said so (a normal prior of deviation 0.5). Loss above the
# best temperature's, over four of the starter's heads made too sure or unsure by up to e^0.75, without and with it: of
# 5 rows 2.29 and 0.07, of 10 0.77 and 0.04, of 20 0.20 and 0.02, of 50 0.011 both, of 200 0.004 both.
_PRIOR_ROWS = 4.0


def log_loss(logits: Logits, labels: npt.NDArray[np.int64], allowed: npt.NDArray[np.bool_]) -> float:
    """Mean negative log-likelihood. logits [n, C], labels [n] of class numbers, allowed bool [n, C]: the classes that a
    row's data set knows."""
    masked = np.where(allowed, logits, -np.inf)
    shifted = masked - masked.max(1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    return float((np.log(np.exp(shifted).sum(1)) - own).mean())


def temperature(logits: Logits, labels: npt.NDArray[np.int64], allowed: npt.NDArray[np.bool_]) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017) with a weak pull towards 1: a few
    rows that are all right would have every answer certain. Arguments as `log_loss`."""

    def loss(log_t: float) -> float:
        prior = 0.5 * _PRIOR_ROWS * log_t**2 / len(labels)
        return log_loss(logits / np.exp(log_t), labels, allowed) + prior

    marks = np.linspace(*_BOUNDS, _MARKS)
    best = int(np.argmin([loss(mark) for mark in marks]))
    low, high = marks[max(best - 1, 0)], marks[min(best + 1, _MARKS - 1)]
    golden = (np.sqrt(5.0) - 1) / 2
    for _ in range(_STEPS):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return float(np.exp((low + high) / 2))


def blend(
    parts: Sequence[Logits], labels: npt.NDArray[np.int64], allowed: npt.NDArray[np.bool_], prior: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Weights of logit parts [n, C] whose weighted sum minimises the negative log-likelihood, with a weak pull (one
    row's worth) towards ``prior``: encoder and n-grams each in the measure that they can be trusted."""
    stacked = np.stack(parts)
    rows = np.arange(len(labels))

    def objective(weights: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        total = np.where(allowed, np.tensordot(weights, stacked, 1), -np.inf)
        total -= total.max(1, keepdims=True)
        p = np.exp(total)
        p /= p.sum(1, keepdims=True)
        loss = -np.log(np.maximum(p[rows, labels], 1e-300)).mean()
        p[rows, labels] -= 1.0
        gap = weights - np.asarray(prior)
        return float(loss + 0.5 * gap @ gap / len(rows)), (stacked * p).sum((1, 2)) / len(rows) + gap / len(rows)

    found = optimize.minimize(objective, np.array(prior, float), jac=True, method="L-BFGS-B")
    return np.asarray(found.x, np.float64)


@dataclass(frozen=True)
class ScopeCost:
    """What an out-of-scope threshold is weighed by.

    ``answered``: the cost of answering a message that is out of scope, in units of turning away one that would have
    been answered rightly. ``share``: of messages that are out of scope. ``lost_max``: where too few out-of-scope rows
    are at hand to weigh, the share of in-scope messages that would have been answered rightly and are turned away.
    """

    answered: float = 1.0
    share: float = 0.1
    lost_max: float = 0.01


@dataclass(frozen=True)
class Calibration:
    """What a head's answers are read with; ``threshold`` None where the head has none, ``decision_weights`` None where
    the likeliest label is the answer."""

    temperature: float
    threshold: float | None
    decision_weights: list[float] | None = None


def calibrate(
    logits: Logits,
    labels: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_],
    first: npt.NDArray[np.bool_],
    *,
    oos: int | None = None,
    cost: ScopeCost | None = None,
    shares: npt.NDArray[np.float64] | None = None,
) -> Calibration:
    """Temperature from the rows marked in ``first`` [n], threshold (with ``cost``) from the rest: no row serves both.
    With ``shares`` [C] of the labels among the training rows, decision weights from all rows whose data set knows
    every label (a head has them or a threshold); with fewer than ``CALIBRATION_ROWS_MIN`` of them, or a label that no
    row has, the likeliest label stays the answer.

    logits [n, C] of rows that were never trained on, labels [n]: class, or negative for a row out of scope;
    ``oos``: the class that means out of scope, where there is one.
    """
    known = first & (labels >= 0)
    heat = temperature(logits[known], labels[known], allowed[known]) if known.any() else 1.0
    if cost is None:
        whole = (labels >= 0) & allowed.all(1)
        if shares is None or whole.sum() < CALIBRATION_ROWS_MIN or not shares.all():
            return Calibration(heat, None)
        return Calibration(heat, None, decision_weights(logits[whole] / heat, labels[whole], shares).tolist())
    top = softmax(logits, heat).max(1)
    right = logits.argmax(1) == labels
    outside = (labels < 0) | (labels == oos)
    rest = ~first
    return Calibration(heat, scope_threshold(top[rest & ~outside], right[rest & ~outside], top[rest & outside], cost))


def decision_weights(
    logits: Logits, labels: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """What each label's probability counts for, [C], the commonest label's one, so that the label with the largest
    product is the answer with the best macro-F1 that the cooled logits [n, C] of calibration rows lead one to expect.
    ``labels`` [n] of those rows; ``shares`` [C] of the labels among the rows that were learned from, all above zero.

    A label of share s counts (s_max / s)^tau (post-hoc logit adjustment, Menon et al. 2021). tau, from 0 to 1, is
    chosen by expectation rather than by labels: the F1 of a label is 2 E[right] over the times answered plus the times
    expected. A weight for each label, or F1 by the labels themselves, follows the handful of rows that a rare label
    has. But expectations hold for calibrated probabilities alone, and a head that learned with balanced classes may say
    the rare ones too often: where the labels show that, it is undone first, by a bias for each.
    """
    bias = _bias(logits, labels)
    p = softmax(logits + bias, 1.0)
    marks = np.linspace(0.0, 1.0, _TAU_MARKS)
    expected = np.array([expected_f1(p, (p * shares**-tau).argmax(1)) for tau in marks])
    tau = marks[np.flatnonzero(expected >= expected.max() - 1e-12)[0]]  # no more than there is evidence for
    weights = np.exp(bias) * shares**-tau
    return np.asarray(weights / weights[shares.argmax()])


def _bias(logits: Logits, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """What to add to the logits [n, C] for the least negative log-likelihood, with a weak pull towards nothing; nothing
    where that gains less than so many numbers cost (the Bayesian information criterion, Schwarz 1978)."""
    rows, classes = np.arange(len(labels)), logits.shape[1]

    def objective(bias: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        p = softmax(logits + bias, 1.0)
        loss = -np.log(np.maximum(p[rows, labels], 1e-300)).sum() + 0.5 * _PRIOR_ROWS * bias @ bias
        p[rows, labels] -= 1.0
        return float(loss), p.sum(0) + _PRIOR_ROWS * bias

    none = np.zeros(classes)
    found = optimize.minimize(objective, none, jac=True, method="L-BFGS-B")
    gain = objective(none)[0] - float(found.fun)
    return np.asarray(found.x, np.float64) if gain > 0.5 * (classes - 1) * np.log(len(labels)) else none


def expected_f1(probabilities: Logits, answers: npt.NDArray[np.intp]) -> float:
    """Macro-F1 of answers [n] that calibrated probabilities [n, C] lead one to expect."""
    classes = probabilities.shape[1]
    right = np.bincount(answers, probabilities[np.arange(len(answers)), answers], classes)
    claimed = np.bincount(answers, minlength=classes) + probabilities.sum(0)
    return float((2 * right / np.maximum(claimed, 1e-9)).mean())


OUTSIDE_ROWS_MIN = 50  # with fewer the threshold would follow a handful of sentences


def scope_threshold(
    inside: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], outside: npt.NDArray[np.float64], cost: ScopeCost
) -> float:
    """The top probability from which on a message is answered, at the least expected cost.

    inside [n]: top probabilities of in-scope rows, right [n]: whether their top class is theirs (turning away a row
    that would be answered wrongly costs nothing); outside [m]: top probabilities of out-of-scope rows.
    """
    marks = np.unique(np.concatenate([[0.0], inside, outside]))
    lost = np.searchsorted(np.sort(inside[right]), marks) / max(1, len(inside))  # rightly answerable, below each mark
    if len(outside) < OUTSIDE_ROWS_MIN:
        return float(marks[np.flatnonzero(lost <= cost.lost_max)[-1]])
    missed = 1 - np.searchsorted(np.sort(outside), marks) / len(outside)
    total = (1 - cost.share) * lost + cost.share * cost.answered * missed
    best = np.flatnonzero(total <= total.min() + 1e-12)
    return float(marks[best[len(best) // 2]])  # the middle of a flat bottom


def softmax(logits: Logits, temperature: float) -> Logits:
    """Probabilities [n, C] of logits at a temperature."""
    scaled = logits / temperature
    exp = np.exp(scaled - scaled.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)  # type: ignore[no-any-return]
