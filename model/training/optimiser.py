"""What is trained and by which optimiser: groups by learning rate, frozen layers, warm-up and decay of the rate."""

from typing import Any

import torch
from torch import nn

from model.encoder import PackedEncoder
from model.errors import ModelError
from model.network import Network
from model.training.settings import Training


def make_optimiser(network: Network, settings: Training) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over what the network lets be trained; each group's ``peak`` is its rate after the warm-up.

    Weight decay, of AdamW, is for matrices; embeddings, biases and normalisation go without.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = settings.body_lr
        if name.startswith(("heads.", "experts.")):
            rate = settings.head_lr
        elif "word_embeddings" in name:
            rate = settings.embedding_lr
        decays = parameter.dim() == 2 and "embedding" not in name
        groups.setdefault((rate, decays), []).append(parameter)
    parts: list[dict[str, Any]] = [
        {"params": params, "lr": rate, "peak": rate, "weight_decay": settings.weight_decay if decays else 0.0}
        for (rate, decays), params in groups.items()
    ]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(parts, fused=next(network.parameters()).is_cuda)
    for part in parts:  # in these torch adds the decay to the gradient, which is the Frobenius penalty again
        part["weight_decay"] = 0.0
    if settings.optimiser == "adam":
        return torch.optim.Adam(parts)
    return torch.optim.SGD(parts, lr=settings.body_lr, momentum=settings.momentum)


def set_rates(optimiser: torch.optim.Optimizer, step: int, steps: int, warm_up: float) -> float:
    """Linear warm-up over a share of the ``steps``, then linearly down to zero at their end; the factor of the peak."""
    warm = max(1, int(steps * warm_up))
    factor = min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    return factor


def freeze(network: Network, layers: int) -> None:
    """Leave embeddings and the first ``layers`` layers untrained; with 0 everything learns. Raises ModelError."""
    if not layers:
        return
    if not isinstance(network.encoder, PackedEncoder) or layers > network.encoder.config.layers:
        raise ModelError(f"training.frozen_layers {layers}: the body has no so many layers of the BERT family")
    for part in (network.encoder.embeddings, *network.encoder.encoder.layer[:layers]):
        part.requires_grad_(False)


def trained_parameters(network: Network) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}
