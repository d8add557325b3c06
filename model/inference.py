"""The packed encoder as it is served on CPU: no gradients, buffers used again, one product for Q, K and V.

Same weights and same answers as ``PackedEncoder``, which is what is trained. What is element-wise works in place. With
products in bfloat16 (`model.products`) only what they read and write is of that kind; the sum that runs through the
layers, its norms and attention stay float32 (attention takes twice as long in bfloat16).

Tried and lost: attention as two bfloat16 products around a softmax (14 us of one core a token against 25, twelve layers
of 384, but oneDNN builds and keeps a kernel of a megabyte for each number of texts and each length); GELU in
oneDNN's bfloat16 product (8 us more than without, 4 beside it); with AVX2, oneDNN's float32 products with activation
fused (21.8 to 24.0 us a token against 17.5 to 19.4).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.encoder import EncoderConfig, PackedEncoder
from model.packing import Packed
from model.products import Dense, fastest, rows_for

IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "gelu": lambda x: torch.ops.aten.gelu_(x),
    "gelu_new": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "relu": lambda x: x.relu_(),
    "silu": lambda x: functional.silu(x, inplace=True),
}


class Workspace:
    """Buffers for up to ``tokens`` tokens, of one thread. It grows with what it is asked for and never shrinks.

    They have more rows than there are tokens, so that products come in few sizes (`model.products.rows_for`). What the
    rows at the end hold means nothing, but they hold numbers.

    ``x`` runs through the layers, ``read`` is what products read of it, ``total`` what a norm reads: float32, but for
    what products read and write (``dtype``), and one and the same where that is float32 too.
    """

    def __init__(self, config: EncoderConfig, dtype: torch.dtype = torch.float32) -> None:
        hidden, exact = config.hidden, torch.float32
        self._kinds = {"x": (hidden, exact), "y": (hidden, dtype), "attended": (hidden, dtype)}
        self._kinds |= {"qkv": (3 * hidden, dtype), "inner": (config.intermediate, dtype)}
        self._kinds |= {"mean": (1, exact), "rstd": (1, exact)}
        if dtype != exact:
            self._kinds |= {"read": (hidden, dtype), "total": (hidden, exact)}
        self._buffers: dict[str, Tensor] = {}

    def take(self, tokens: int) -> dict[str, Tensor]:
        """The first rows of each buffer, as many as ``tokens`` need."""
        rows = rows_for(tokens)
        if not self._buffers or len(self._buffers["x"]) < rows:
            self._buffers = {name: torch.zeros(rows, width, dtype=kind) for name, (width, kind) in self._kinds.items()}
        taken = {name: buffer[:rows] for name, buffer in self._buffers.items()}
        return {"read": taken["x"], "total": taken["y"]} | taken


class _Layer:
    def __init__(self, layer: Any, config: EncoderConfig, dtype: torch.dtype) -> None:
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        kind = fastest(config.hidden, config.intermediate) if dtype == torch.float32 else Dense
        self.qkv = kind(torch.cat([p.weight for p in parts]).to(dtype), torch.cat([p.bias for p in parts]).to(dtype))
        self.attended, self.up, self.down = (
            kind(m.dense.weight.to(dtype), m.dense.bias.to(dtype))
            for m in (layer.attention.output, layer.intermediate, layer.output)
        )
        self._norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
        self._activate = IN_PLACE[config.activation]
        self._heads, self._hidden = config.heads, config.hidden

    def __call__(self, work: dict[str, Tensor], packed: Packed, masks: list[Tensor | None]) -> None:
        """Change ``work["x"]`` [T, hidden], and what products read of it, in place."""
        qkv = self.qkv(work["read"], work["qkv"])
        self._attend(qkv, packed, masks, work["attended"])
        _add(self.attended(work["attended"], work["y"]), self._norms[0], work)
        inner = self.up(work["read"], work["inner"])
        self._activate(inner)
        _add(self.down(inner, work["y"]), self._norms[1], work)

    def _attend(self, qkv: Tensor, packed: Packed, masks: list[Tensor | None], out: Tensor) -> None:
        size = self._hidden // self._heads
        for group, mask in zip(packed.groups, masks, strict=True):
            grid = group.grid(qkv).float().view(group.texts, group.longest, 3, self._heads, size).permute(2, 0, 3, 1, 4)
            q, k, v = grid.unbind()  # [g, heads, L, d]
            attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
            part = out[group.start : group.end]
            if group.real is None:
                part.view(attended.shape).copy_(attended)
            else:
                part.copy_(attended.reshape(-1, self._hidden).index_select(0, group.real))


def _add(y: Tensor, norm: nn.LayerNorm, work: dict[str, Tensor]) -> None:
    """Add y [T, hidden] to what runs through the layers and normalise it, for products to read too."""
    x, read = work["x"], work["read"]
    normalise(torch.add(x, y, out=work["total"]), norm, x, work)
    if read is not x:
        read.copy_(x)


def normalise(x: Tensor, norm: nn.LayerNorm, out: Tensor, work: dict[str, Tensor]) -> None:
    """Layer normalisation of x [T, hidden] into ``out``."""
    torch.ops.aten.native_layer_norm.out(
        x, norm.normalized_shape, norm.weight, norm.bias, norm.eps, out0=out, out1=work["mean"], out2=work["rstd"]
    )


class InferenceEncoder:
    """A ``PackedEncoder``'s weights, laid out for serving on CPU. Threads may share it, each with its own workspace.

    ``dtype``: of the products, float32 or bfloat16.
    """

    def __init__(self, encoder: PackedEncoder, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.dtype = encoder.config, dtype
        with torch.inference_mode():
            self._layers = [_Layer(layer, self.config, dtype) for layer in encoder.encoder.layer]
        self._embeddings = encoder.embeddings

    def __call__(self, packed: Packed, workspace: Workspace) -> Tensor:
        """Pooled rows, float32 [n, hidden], in the texts' own order."""
        with torch.inference_mode():
            work = workspace.take(len(packed.tokens))
            self._embed(packed, work)
            masks = [None if g.mask is None else _additive(g.mask) for g in packed.groups]
            for layer in self._layers:
                layer(work, packed, masks)
            return self._pool(work["x"][: len(packed.tokens)], packed)

    def _embed(self, packed: Packed, work: dict[str, Tensor]) -> None:
        table, tokens = self._embeddings, len(packed.tokens)
        x, y = work["x"][:tokens], work["total"][:tokens]
        torch.index_select(table.word_embeddings.weight, 0, packed.tokens, out=x)
        torch.index_select(table.position_embeddings.weight, 0, packed.positions + self.config.position_offset, out=y)
        y.add_(table.token_type_embeddings.weight[0]).add_(x)
        normalise(y, table.LayerNorm, x, {name: work[name][:tokens] for name in ("mean", "rstd")})
        if work["read"] is not work["x"]:
            work["read"][:tokens].copy_(x)

    def _pool(self, x: Tensor, packed: Packed) -> Tensor:
        if self.config.pooling == "cls":
            return x[packed.starts][packed.restore]
        total = torch.zeros(len(packed.starts), x.shape[1]).index_add_(0, packed.rows, x)
        return total.div_(packed.lengths[:, None])[packed.restore]


def _additive(mask: Tensor) -> Tensor:
    """A bool mask as what is added to the scores: done once a batch, or attention does it in every layer."""
    return torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
