"""First weights of the heads: a linear discriminant on what the untrained encoder says of a few rows a class.

Random heads tear at a pretrained encoder until they have learned something (Kumar et al. 2022, "Fine-tuning can distort
pretrained features"); a discriminant is there in closed form. For class means m_c and the pooled covariance C, shrunk
towards its diagonal mean: weight_c = C^-1 m_c, bias_c = -1/2 m_c C^-1 m_c, both divided by a temperature fitted on rows
that the discriminant has not seen. With fewer rows than a few times the width it is far too sure of itself: without
that, a first training began at a loss of 17 and tore worse than random heads would have.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from model.calibrate import temperature
from model.network import Network
from model.scoring import Floats, Prepared
from model.training.corpus import Corpus

SHRINKAGE = 0.2  # share of the mean variance in the covariance's diagonal
ROWS_MIN, ROWS_MAX = 1500, 6000  # rows of one head, where it has so many
COOLING_SHARE = 0.3  # of the rows, for the temperature

Encode = Callable[[Sequence[Prepared]], Floats]


def warm_start(network: Network, corpus: Corpus, rows_per_class: int, seed: int, encode: Encode) -> None:
    """Set every head's encoder part in place; ``encode`` gives pooled rows [n, width] of the encoder as it is."""
    rng = np.random.default_rng(seed)
    chosen = {head: _choose(corpus, head, rows_per_class, rng) for head in corpus.heads}
    chosen = {head: own for head, own in chosen.items() if len(own)}
    rows = np.unique(np.concatenate(list(chosen.values())))
    encoded = encode([corpus.prepared[i] for i in rows]).astype(np.float64)
    width = network.encoder.config.hidden
    for head, own in chosen.items():
        classes = corpus.labels[own, corpus.names.index(head)]
        weight, bias = discriminant(encoded[np.searchsorted(rows, own), :width], classes, len(corpus.heads[head]))
        layer = network.head(head)
        with torch.no_grad():
            layer.weight[:, :width] = torch.from_numpy(weight)
            layer.bias.copy_(torch.from_numpy(bias))


def discriminant(
    x: npt.NDArray[np.float64], classes: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weights [count, width] and biases [count] from rows x [n, width] in random order, one at least; a class without
    rows stays at the others' average: neither ruled out nor preferred. Without rows to fit a temperature on it is 1."""
    cut = len(x) - int(COOLING_SHARE * len(x))
    weight, bias, present = _fit(x[:cut], classes[:cut], count)
    unseen = np.isin(classes[cut:], present)
    logits = x[cut:][unseen] @ weight[present].T + bias[present]
    truth = np.searchsorted(present, classes[cut:][unseen])
    heat = temperature(logits, truth, np.ones(logits.shape, bool)) if unseen.any() else 1.0
    absent = np.setdiff1d(np.arange(count), present)
    weight[absent], bias[absent] = weight[present].mean(0), bias[present].mean()
    return weight / heat, bias / heat


def _fit(
    x: npt.NDArray[np.float64], classes: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    weight, bias = np.zeros((count, x.shape[1])), np.zeros(count)
    present = np.unique(classes)
    centre = x.mean(0)
    means = np.stack([x[classes == c].mean(0) for c in present]) - centre
    spread = x - centre - means[np.searchsorted(present, classes)]
    if not spread.any():  # a row a class tells nothing of how rows of one class differ: all rows differ by less
        spread = x - centre
    covariance = spread.T @ spread / max(1, len(x) - len(present))
    variance = np.trace(covariance) / x.shape[1] or 1.0  # of rows that are all alike any will do
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * variance * np.eye(x.shape[1])
    weight[present] = np.linalg.solve(covariance, means.T).T
    bias[present] = -0.5 * np.einsum("cd,cd->c", weight[present], means)
    bias[present] -= weight[present] @ centre
    return weight, bias, present


def _choose(corpus: Corpus, head: str, rows_per_class: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """At most ``rows_per_class`` training rows of each class and data set (more where that makes fewer than ROWS_MIN),
    and ROWS_MAX in all, in random order."""
    labels = corpus.labels[:, corpus.names.index(head)]
    own = rng.permutation(np.flatnonzero((labels >= 0) & ~corpus.held))
    cells = np.stack([corpus.dataset[own], labels[own]], axis=1)
    distinct = np.unique(cells, axis=0)
    if not len(distinct):
        return own  # this corpus says nothing of the head
    most = max(rows_per_class, ROWS_MIN // len(distinct))
    kept = [own[(cells == cell).all(1)][:most] for cell in distinct]
    return rng.permutation(np.concatenate(kept))[:ROWS_MAX]
