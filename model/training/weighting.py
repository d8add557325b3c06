"""How much each task counts in a step: equal weights, uncertainty weighting, FAMO.

All three give coefficients c_i for the loss (1/N) sum_i c_i L_i over the N tasks present, and equal weights are
c_i = 1. A task that is absent keeps what it has learned and does not count.

Uncertainty (Kendall, Gal, Cipolla 2018, equation 10, all losses taken as log-likelihoods of classes): with
s_i = log sigma_i^2 learned, (1/N) sum_i exp(-s_i) L_i + s_i / 2. The paper's factor 1/2 before exp(-s_i) belongs to
squared errors, which no head here has; that before s_i (log sigma = s / 2) stays. A task left alone would come to rest
at exp(-s_i) = 1 / (2 L_i).

FAMO (Liu, Feng, Stone, Liu 2023, algorithm 1 with the authors' reference code): z = softmax(w) over the tasks present;
the step goes down sum_i z_i log L_i with its gradient scaled by c = (sum_j z_j / L_j)^-1, so that
c_i = N c z_i / L_i; afterwards w moves along J_softmax(w)^T (log L_i before - log L_i after), the losses of the same
batch before and after the step, by Adam with a decay of w.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

LOSS_MIN = 1e-8  # keeps log L and 1 / L finite for a task that is learned by heart
_BETAS, _EPS = (0.9, 0.999), 1e-8


def uncertainty_coefficients(s: Vector) -> Vector:
    """exp(-s), [N]."""
    return np.asarray(np.exp(-s))


def uncertainty_gradient(s: Vector, losses: Vector) -> Vector:
    """Gradient of (1/N) sum_i exp(-s_i) L_i + s_i / 2 after s, [N]; losses [N]."""
    return (0.5 - np.exp(-s) * losses) / len(s)


def famo_coefficients(w: Vector, losses: Vector) -> Vector:
    """N c z_i / L_i, [N], which sum to N; logits w [N], losses [N]."""
    shares = _softmax(w) / np.maximum(losses, LOSS_MIN)
    return np.asarray(len(w) * shares / shares.sum())


def famo_gradient(w: Vector, before: Vector, after: Vector) -> Vector:
    """What w is moved against, [N]: J_softmax(w)^T (log before - log after); losses before and after the step [N].

    A task that improved more than the weighted mean loses weight.
    """
    z = _softmax(w)
    delta = np.log(np.maximum(before, LOSS_MIN)) - np.log(np.maximum(after, LOSS_MIN))
    return np.asarray(z * (delta - z @ delta))


def adam(value: Vector, gradient: Vector, state: Vector, rate: float) -> tuple[Vector, Vector]:
    """One step of Adam (Kingma and Ba 2015): value [N], state [3, N] (first and second moment, steps so far)."""
    steps = state[2] + 1
    first = _BETAS[0] * state[0] + (1 - _BETAS[0]) * gradient
    second = _BETAS[1] * state[1] + (1 - _BETAS[1]) * gradient**2
    unbiased = first / (1 - _BETAS[0] ** steps), second / (1 - _BETAS[1] ** steps)
    return value - rate * unbiased[0] / (np.sqrt(unbiased[1]) + _EPS), np.stack([first, second, steps])


class TaskWeights:
    """The weights of all tasks and what they learn from; ``kind``: equal, uncertainty or famo."""

    def __init__(self, kind: str, tasks: Sequence[str], *, rate: float, decay: float) -> None:
        """Raises ValueError for an unknown kind."""
        if kind not in ("equal", "uncertainty", "famo"):
            raise ValueError(f"weighting {kind!r} is unknown; use equal, uncertainty or famo")
        self.kind = kind
        self.state: Vector = np.zeros((4, len(tasks)))  # s or w; then Adam's two moments and steps
        self._tasks = list(tasks)
        self._rate = rate
        self._decay = decay if kind == "famo" else 0.0

    @property
    def looks_again(self) -> bool:
        """Whether ``learn`` wants the batch's losses after the step as well."""
        return self.kind == "famo"

    @property
    def looks_ahead(self) -> bool:
        """Whether ``coefficients`` depends on the losses of the whole step."""
        return self.kind == "famo"

    def coefficients(self, losses: Mapping[str, float]) -> dict[str, float]:
        """c_i of the tasks present, by their losses (whose values matter to famo alone)."""
        own, value = self._own(losses), np.array(list(losses.values()))
        if self.kind == "equal":
            return dict.fromkeys(losses, 1.0)
        w = self.state[0, own]
        result = uncertainty_coefficients(w) if self.kind == "uncertainty" else famo_coefficients(w, value)
        return dict(zip(losses, result.tolist(), strict=True))

    def learn(self, before: Mapping[str, float], after: Mapping[str, float] | None = None) -> None:
        """Move the weights of the tasks present; losses of the step's rows before it and, for famo, after it."""
        if self.kind == "equal":
            return
        own, value = self._own(before), np.array(list(before.values()))
        w = self.state[0, own]
        if self.kind == "uncertainty":
            gradient = uncertainty_gradient(w, value)
        else:
            assert after is not None, "famo needs the losses after the step"  # noqa: S101 - a caller's mistake
            gradient = famo_gradient(w, value, np.array([after[name] for name in before])) + self._decay * w
        moved, moments = adam(w, gradient, self.state[1:, own], self._rate)
        self.state[0, own], self.state[1:, own] = moved, moments

    def _own(self, losses: Mapping[str, float]) -> list[int]:
        return [self._tasks.index(name) for name in losses]


def _softmax(w: Vector) -> Vector:
    e = np.exp(w - w.max())
    return np.asarray(e / e.sum())
