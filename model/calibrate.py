"""Calibration on rows that were never trained on: blend and temperature per head, a threshold per intent head."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize  # type: ignore[import-untyped]

Logits = npt.NDArray[np.float64]
_BOUNDS = (-3.0, 3.0)  # of log temperature
_STEPS = 60


def temperature(logits: Logits, labels: npt.NDArray[np.int64], allowed: npt.NDArray[np.bool_]) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017).

    logits [n, C], labels [n] of class numbers, allowed bool [n, C]: the classes that a row's data set knows.
    """
    masked = np.where(allowed, logits, -np.inf)
    shifted = masked - masked.max(1, keepdims=True)

    def loss(log_t: float) -> float:
        scaled = shifted / np.exp(log_t)
        own = scaled[np.arange(len(labels)), labels]
        return float((np.log(np.exp(scaled).sum(1)) - own).mean())

    low, high = _BOUNDS
    golden = (np.sqrt(5.0) - 1) / 2
    for _ in range(_STEPS):  # golden-section search: the loss is unimodal in the temperature
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


def scope_threshold(probabilities: npt.NDArray[np.float64], reject_share: float) -> float:
    """The top probability below which ``reject_share`` of these in-scope rows [n, C] fall: what turning away costs."""
    return float(np.quantile(probabilities.max(1), reject_share))


def softmax(logits: Logits, temperature: float) -> Logits:
    """Probabilities [n, C] of logits at a temperature."""
    scaled = logits / temperature
    exp = np.exp(scaled - scaled.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)  # type: ignore[no-any-return]
