"""The packed encoder as it is served on CPU: no gradients, buffers used again, one product for Q, K and V.

Same weights and same answers as ``PackedEncoder``, which is what is trained. What is element-wise works in place.

Tried and lost on AVX2, 384 wide: weights packed once for MKL (as fast); oneDNN with the activation fused (21.8 to 24.0
us a token against 17.5 to 19.4); attention as two batched products around a softmax (as fast); int8. Of that, oneDNN's
products took 0.55 of the time, but with a scale a token (so that answers do not depend on neighbours) the whole pass
took 0.87 to 0.96 of it, for rows 12 % off (lowest cosine 0.977).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.encoder import EncoderConfig, PackedEncoder
from model.packing import Packed

IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "gelu": lambda x: torch.ops.aten.gelu_(x),
    "gelu_new": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "relu": lambda x: x.relu_(),
    "silu": lambda x: functional.silu(x, inplace=True),
}


class Dense:
    """x [T, in] times a layer's matrix plus its bias, into ``out`` [T, out]."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight.detach().t(), bias.detach()

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.addmm(self._bias, x, self._weight, out=out)


class Workspace:
    """Buffers for up to ``tokens`` tokens, of one thread. It grows with what it is asked for and never shrinks."""

    def __init__(self, config: EncoderConfig) -> None:
        hidden = config.hidden
        self._widths = {"x": hidden, "y": hidden, "attended": hidden, "qkv": 3 * hidden, "inner": config.intermediate}
        self._widths |= {"mean": 1, "rstd": 1}
        self._buffers: dict[str, Tensor] = {}

    def take(self, tokens: int) -> dict[str, Tensor]:
        """The first ``tokens`` rows of each buffer."""
        if not self._buffers or len(self._buffers["x"]) < tokens:
            rows = -(-tokens // 256) * 256
            self._buffers = {name: torch.empty(rows, width) for name, width in self._widths.items()}
        return {name: buffer[:tokens] for name, buffer in self._buffers.items()}


class _Layer:
    def __init__(self, layer: Any, config: EncoderConfig) -> None:
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        self.qkv = Dense(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))
        self.attended, self.up, self.down = (
            Dense(m.dense.weight, m.dense.bias) for m in (layer.attention.output, layer.intermediate, layer.output)
        )
        self.norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
        self._activate = IN_PLACE[config.activation]
        self._heads, self._hidden = config.heads, config.hidden

    def __call__(self, work: dict[str, Tensor], packed: Packed, masks: list[Tensor | None]) -> None:
        """Change ``work["x"]`` [T, hidden] in place."""
        x, y, inner = work["x"], work["y"], work["inner"]
        self.qkv(x, work["qkv"])
        self._attend(work["qkv"], packed, masks, work["attended"])
        normalise(self.attended(work["attended"], y).add_(x), self.norms[0], x, work)
        self._activate(self.up(x, inner))
        normalise(self.down(inner, y).add_(x), self.norms[1], x, work)

    def _attend(self, qkv: Tensor, packed: Packed, masks: list[Tensor | None], out: Tensor) -> None:
        size = self._hidden // self._heads
        for group, mask in zip(packed.groups, masks, strict=True):
            grid = group.grid(qkv).view(group.texts, group.longest, 3, self._heads, size)
            q, k, v = grid.permute(2, 0, 3, 1, 4).unbind()  # [g, heads, L, d]
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
            part = out[group.start : group.end]
            if group.real is None:
                part.view(attended.shape).copy_(attended)
            else:
                torch.index_select(attended.reshape(-1, self._hidden), 0, group.real, out=part)


def normalise(x: Tensor, norm: nn.LayerNorm, out: Tensor, work: dict[str, Tensor]) -> None:
    """Layer normalisation of x [T, hidden] into ``out``."""
    torch.ops.aten.native_layer_norm.out(
        x, norm.normalized_shape, norm.weight, norm.bias, norm.eps, out0=out, out1=work["mean"], out2=work["rstd"]
    )


class InferenceEncoder:
    """A ``PackedEncoder``'s weights, laid out for serving on CPU. Threads may share it, each with its own workspace."""

    def __init__(self, encoder: PackedEncoder) -> None:
        self.config = encoder.config
        with torch.inference_mode():
            self._layers = [_Layer(layer, self.config) for layer in encoder.encoder.layer]
        self._embeddings = encoder.embeddings

    def __call__(self, packed: Packed, workspace: Workspace) -> Tensor:
        """Pooled rows, float32 [n, hidden], in the texts' own order."""
        with torch.inference_mode():
            work = workspace.take(len(packed.tokens))
            self._embed(packed, work)
            masks = [None if g.mask is None else _additive(g.mask) for g in packed.groups]
            for layer in self._layers:
                layer(work, packed, masks)
            return self._pool(work["x"], packed)

    def _embed(self, packed: Packed, work: dict[str, Tensor]) -> None:
        table, x, y = self._embeddings, work["x"], work["y"]
        torch.index_select(table.word_embeddings.weight, 0, packed.tokens, out=x)
        torch.index_select(table.position_embeddings.weight, 0, packed.positions + self.config.position_offset, out=y)
        y.add_(table.token_type_embeddings.weight[0]).add_(x)
        normalise(y, table.LayerNorm, x, work)

    def _pool(self, x: Tensor, packed: Packed) -> Tensor:
        if self.config.pooling == "cls":
            return x[packed.starts][packed.restore]
        total = torch.zeros(len(packed.starts), x.shape[1]).index_add_(0, packed.rows, x)
        return total.div_(packed.lengths[:, None])[packed.restore]


def _additive(mask: Tensor) -> Tensor:
    """A bool mask as what is added to the scores: done once a batch, or attention does it in every layer."""
    return torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
