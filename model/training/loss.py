"""The multi-task loss: L = (1/N) sum_i w_i L_i + lambda * 1/2 ||theta_s - theta_0||^2.

L_i is the mean over the rows labelled for task i, N the number of tasks present in the batch. theta_s are the encoder's
weight matrices (embeddings, biases and normalisation left out); theta_0 = 0 is the Frobenius penalty, theta_0 = the
pretrained weights is L2-SP (Li, Grandvalet, Davoine 2018).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.training.lora import lora_layers, shift

NO_LABEL, OUTSIDE = -1, -2


def row_losses(
    logits: Tensor,
    labels: Tensor,
    allowed: Tensor,
    weights: Tensor,
    outside_weight: float = 0.5,
    taught: Tensor | None = None,
    taught_share: float = 0.0,
) -> Tensor:
    """Loss of one task on each of its labelled rows, [n].

    logits [n, C]; labels int64 [n], OUTSIDE for rows out of scope, whose target is the uniform distribution; allowed
    bool [n, C]: the classes that a row's data set knows (the loss is that of the conditional probability over them);
    weights [n], of each row; taught [n, C]: teachers' probabilities over those classes, which make up ``taught_share``
    of the target (Hinton, Vinyals, Dean 2015, temperature 1).
    """
    log_p = functional.log_softmax(logits.masked_fill(~allowed, float("-inf")), dim=1).masked_fill(~allowed, 0.0)
    inside = labels != OUTSIDE
    own = log_p.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    flat = log_p.sum(1) / allowed.sum(1)
    if taught is not None:
        soft = (taught * log_p).sum(1)
        own, flat = torch.lerp(own, soft, taught_share), torch.lerp(flat, soft, taught_share)
    return -torch.where(inside, own * weights, outside_weight * flat)


def disagreement(first: Tensor, second: Tensor, allowed: Tensor) -> Tensor:
    """R-Drop's term (Liang et al. 2021): mean over the rows of (KL(p || q) + KL(q || p)) / 2 for the probabilities p, q
    over the ``allowed`` classes, bool [n, C], of two passes of the same rows, logits [n, C] each."""
    p, q = (
        functional.log_softmax(x.masked_fill(~allowed, float("-inf")), dim=1).masked_fill(~allowed, 0.0)
        for x in (first, second)
    )
    return 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(1).mean()  # both divergences at once


def score_loss(logits: Tensor, labels: Tensor, levels: Tensor, weights: Tensor) -> Tensor:
    """Mean absolute error of the expected value over ``levels`` [C] on the rows with a class, 0 when there are none."""
    chosen = labels >= 0
    expected = functional.softmax(logits, dim=1) @ levels
    errors = (expected - levels[labels.clamp_min(0)]).abs() * weights
    return errors.where(chosen, 0.0).sum() / chosen.sum().clamp_min(1)


def combine(losses: Mapping[str, Tensor], weights: Mapping[str, float], tasks: int = 0) -> Tensor:
    """(1/N) sum_i w_i L_i; N is ``tasks``, or with 0 the tasks present here (a batch that is a whole step)."""
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum() / (tasks or len(losses))


class _Distance(torch.autograd.Function):
    """Sum of ||p - p_0||^2 over many matrices in a few launches: by torch's own operations each costs a GPU six."""

    @staticmethod
    def forward(ctx: Any, origins: list[Tensor] | None, *parameters: Tensor) -> Tensor:
        gaps = [*parameters] if origins is None else torch._foreach_sub(parameters, origins)
        ctx.save_for_backward(*gaps)
        return torch.stack(torch._foreach_norm(gaps)).square().sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, *torch._foreach_mul(ctx.saved_tensors, 2.0 * gradients[0])


class SharedPenalty:
    """lambda * 1/2 ||theta_s - theta_0||^2 over the encoder's weight matrices.

    ``kind``: ``l2sp`` (theta_0: the weights now), ``frobenius`` (theta_0 = 0) or ``none``. Of a matrix with low-rank
    adapters theta_s is the matrix with what they add, theta_0 the matrix without.
    """

    def __init__(self, encoder: nn.Module, kind: str, strength: float) -> None:
        if kind not in ("l2sp", "frobenius", "none"):
            raise ValueError(f"penalty {kind!r} is unknown; use l2sp, frobenius or none")
        self._strength = 0.0 if kind == "none" else strength
        self._shared = [
            p
            for name, p in encoder.named_parameters()
            if p.dim() == 2 and "embedding" not in name and "lora_" not in name and p.requires_grad
        ]
        self._origin = [p.detach().clone() for p in self._shared] if kind == "l2sp" else None
        self._adapted = [(layer, kind == "l2sp") for _, layer in lora_layers(encoder)]

    def __call__(self) -> Tensor:
        """The penalty as a scalar that can be differentiated."""
        total = torch.zeros(())
        if not self._strength:
            return total
        if self._shared:
            total = _Distance.apply(self._origin, *self._shared)  # type: ignore[no-untyped-call]
        for layer, from_start in self._adapted:
            gap = shift(layer) if from_start else layer.weight + shift(layer)
            total = total.to(gap.device) + gap.pow(2).sum()
        return 0.5 * self._strength * total
