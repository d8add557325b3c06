"""Whether tasks pull the shared encoder the same way: cosines between their gradients (Yu et al. 2020, PCGrad)."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from model.network import Network
from model.training.optimiser import trained_parameters


def last_matrices(network: Network) -> list[nn.Parameter]:
    """The trained matrices of the encoder's last layer that has some; empty when nothing of it is trained."""
    matrices = {n: p for n, p in trained_parameters(network).items() if n.startswith("encoder.") and p.dim() == 2}
    if not matrices:
        return []
    last = list(matrices)[-1]
    prefix, found, rest = last.partition(".layer.")
    layer = prefix + found + rest.partition(".")[0] + "." if found else last
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
