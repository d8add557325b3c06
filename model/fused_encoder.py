"""The packed encoder as it is served on a GPU: one precision throughout, one product for Q, K and V, attention from
outside, since it depends on how the texts lie.

Same weights as ``PackedEncoder``, which is what is trained. Nothing here waits for the device or asks it anything, so
that all of it can be captured as a CUDA graph.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.encoder import PackedEncoder, attention_in_groups
from model.flat import Layout
from model.inference import IN_PLACE
from model.packing import Packed
from model.scoring import Ints
from model.varlen import Varlen

Attend = Callable[[Tensor], Tensor]
"""From Q, K and V side by side [T, 3, heads, size] to what is attended to [T, hidden]."""


class _Layer:
    def __init__(self, layer: Any, place: Callable[[Tensor], Tensor], activation: str, *, tanh_gelu: bool) -> None:
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        self._qkv = [place(torch.cat([p.weight for p in parts])), place(torch.cat([p.bias for p in parts]))]
        outputs = (layer.attention.output, layer.intermediate, layer.output)
        self._attended, self._up, self._down = ([place(m.dense.weight), place(m.dense.bias)] for m in outputs)
        self._norms = [_Norm(m.LayerNorm, place) for m in (layer.attention.output, layer.output)]
        self._activate = IN_PLACE[activation]
        self._tanh_gelu = tanh_gelu and activation.startswith("gelu")

    def __call__(self, x: Tensor, heads: int, attend: Attend) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        qkv = functional.linear(x, *self._qkv).view(len(x), 3, heads, -1)
        x = self._norms[0](functional.linear(attend(qkv), *self._attended).add_(x))
        if self._tanh_gelu:  # applied by the product itself, before it writes
            weight, bias = self._up
            inner = torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
        else:
            inner = functional.linear(x, *self._up)
            self._activate(inner)
        return self._norms[1](functional.linear(inner, *self._down).add_(x))


class _Norm:
    def __init__(self, norm: nn.LayerNorm, place: Callable[[Tensor], Tensor]) -> None:
        self._shape, self._eps = list(norm.normalized_shape), norm.eps
        self._weight, self._bias = place(norm.weight), place(norm.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self._shape, self._weight, self._bias, self._eps)


class FusedEncoder:
    """A ``PackedEncoder``'s weights on a device in one precision. ``tanh_gelu``: GELU by its approximation with tanh,
    which CUDA's products compute as they write; other activations stay exact."""

    def __init__(
        self, encoder: PackedEncoder, device: torch.device, dtype: torch.dtype, *, tanh_gelu: bool = False
    ) -> None:
        self.config, self.device, self.dtype = encoder.config, device, dtype
        table = encoder.embeddings

        def place(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype).contiguous()

        with torch.inference_mode():
            self._words = place(table.word_embeddings.weight)
            # Every token is of the first type, so its row is added to each position once and for all.
            positions = table.position_embeddings.weight[self.config.position_offset :]
            self._positions = place(positions + table.token_type_embeddings.weight[0])
            self._norm = _Norm(table.LayerNorm, place)
            activation = self.config.activation
            self._layers = [_Layer(m, place, activation, tanh_gelu=tanh_gelu) for m in encoder.encoder.layer]

    def check(self, tokens: Ints) -> None:
        """Raises IndexError for token ids that are not in the vocabulary; a GPU that meets one fails for good."""
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= self.config.vocab_size:
            raise IndexError(f"token ids {least} to {most}: the vocabulary has 0 to {self.config.vocab_size - 1}")

    def rows(
        self, tokens: Tensor, positions: Tensor, rows: Tensor, starts: Tensor, lengths: Tensor, attend: Attend
    ) -> Tensor:
        """Pooled rows, float32 [S, hidden], of the sequences in the order they lie.

        tokens, positions, rows (which sequence a token belongs to): integers [T]. starts, lengths: integers [S];
        lengths at least 1.
        """
        x = functional.embedding(tokens, self._words).add_(functional.embedding(positions, self._positions))
        x = self._norm(x)
        for layer in self._layers:
            x = layer(x, self.config.heads, attend)
        if self.config.pooling == "cls":
            return x.index_select(0, starts).float()
        total = torch.zeros(len(lengths), x.shape[1], device=x.device)
        return total.index_add_(0, rows, x.float()).div_(lengths[:, None])

    def flat(self, buffer: Tensor, layout: Layout, varlen: Varlen, longest: int) -> Tensor:
        """Pooled rows, float32 [S, hidden], of a flat buffer int32 [layout.size] on the device, whose texts have at
        most ``longest`` tokens. Rows of padding mean nothing."""
        tokens, positions, rows, cumulative = layout.split(buffer)
        starts = cumulative[:-1].clamp(max=layout.tokens - 1)  # an empty sequence starts past the end
        lengths = cumulative.diff().clamp(min=1)

        def attend(qkv: Tensor) -> Tensor:
            q, k, v = qkv.unbind(1)
            return varlen(q, k, v, cumulative, cumulative, longest, longest).flatten(1)  # type: ignore[no-any-return]

        with torch.inference_mode():
            return self.rows(tokens, positions, rows, starts, lengths, attend)

    def grouped(self, packed: Packed) -> Tensor:
        """Pooled rows, float32 [n, hidden], in the texts' own order, with attention in groups of near-equal length."""

        def attend(qkv: Tensor) -> Tensor:
            query, key, value = qkv.flatten(2).unbind(1)
            return attention_in_groups(packed, query, key, value, self.config.heads)

        with torch.inference_mode():
            p = packed
            return self.rows(p.tokens, p.positions, p.rows, p.starts, p.lengths, attend).index_select(0, p.restore)
