"""Whether tasks pull the shared encoder the same way: cosines between their gradients (Yu et al. 2020, PCGrad)."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from model.network import Network
from model.training.optimiser import trained_parameters

_LAYER = re.compile(r".*?\.layers?\.\d+\.")  # ModernBERT says `layers`


def last_matrices(network: Network) -> list[nn.Parameter]:
    """The trained matrices of the encoder's last layer that has some, or its last matrix where layers have no names
    that are known; empty when nothing of it is trained. A pooler's, which no task reads, do not count."""
    trained = trained_parameters(network).items()
    matrices = {n: p for n, p in trained if n.startswith("encoder.") and p.dim() == 2 and ".pooler." not in n}
    if not matrices:
        return []
    layers = [found[0] for name in matrices if (found := _LAYER.match(name))]
    layer = layers[-1] if layers else list(matrices)[-1]
    return [p for name, p in matrices.items() if name.startswith(layer)]


def gradient_cosines(losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """Cosine between the gradients of every two losses, as ``a vs b``: below zero they conflict.

    The losses' graph is kept, no ``.grad`` is touched. A task without any gradient there has cosine 0.
    """
    if not parameters:
        return {}
    rows = []
    for loss in losses.values():
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, parameters, strict=True)]
        rows.append(torch.cat([g.reshape(-1).float() for g in flat]))
    unit = [row / row.norm().clamp_min(1e-30) for row in rows]
    pairs = combinations(zip(losses, unit, strict=True), 2)
    return {f"{a} vs {b}": float(u @ v) for (a, u), (b, v) in pairs}
