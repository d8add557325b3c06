"""Low-rank adapters on the body through the library peft (Hu et al. 2021): put in before training, merged after it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.encoder import PackedEncoder
from model.errors import ModelError
from model.training.settings import Lora

if TYPE_CHECKING:
    from model.network import Network


def add_lora(network: "Network", settings: Lora, *, frozen_layers: int, seed: int) -> None:
    """Put adapters into the encoder's layers from ``frozen_layers`` on and freeze the rest of it, in place; nothing for
    rank 0. The network answers as before until they learn. Raises ModelError when peft is not there or nothing fits."""
    if not settings.rank:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model  # lazy: an optional library
    except ImportError as error:
        raise ModelError("training.lora needs the library peft; pip install 'millrace[train]'") from error
    layers: dict[str, Any] = {}
    if frozen_layers and isinstance(network.encoder, PackedEncoder):
        chosen = list(range(frozen_layers, network.encoder.config.layers))
        layers = {"layers_to_transform": chosen, "layers_pattern": "layer"}
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        **layers,
    )
    torch.manual_seed(seed)
    try:
        inject_adapter_in_model(config, network.encoder)
    except ValueError as error:
        raise ModelError(f"training.lora.targets {settings.targets} fit no layer of the body: {error}") from error


def merge_lora(network: "Network") -> None:
    """Add what the adapters learned to the matrices they sit on and take them out, in place."""
    for name, layer in list(lora_layers(network.encoder)):
        layer.merge()
        network.encoder.set_submodule(name, layer.get_base_layer())


def lora_layers(encoder: nn.Module) -> Iterator[tuple[str, Any]]:
    """The adapted linear layers by name; none where peft is not there."""
    for name, module in encoder.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


def shift(layer: Any) -> Tensor:
    """What an adapted layer adds to its matrix, [out, in], with gradient."""
    (key,) = layer.lora_A
    return layer.scaling[key] * (layer.lora_B[key].weight @ layer.lora_A[key].weight)  # type: ignore[no-any-return]
