"""The shared encoder: a packed forward for the BERT family, the padded Hugging Face path for the rest.

Packed: the tokens of all texts lie end to end, so no matrix product sees padding; only attention works by sequence, in
groups of near-equal length or, in half precision on a GPU, by flash attention that knows where each text ends.
Padded: all of it works by those groups, so padding is bounded. Parameter names are Hugging Face's, so a checkpoint
loads as it is.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.packing import Group, Packed
from model.varlen import varlen_for

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}
_POSITIONS = ("position_embeddings", "embed_positions")  # Hugging Face's names for a table of positions


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Shape of an encoder. ``family`` is ``packed`` (BERT, RoBERTa, XLM-R, MiniLM) or ``padded`` (anything else)."""

    family: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    position_offset: int = 0
    types: int = 2
    eps: float = 1e-12
    activation: str = "gelu"
    pooling: str = "mean"  # or "cls"
    foreign: dict[str, Any] = field(default_factory=dict)  # Hugging Face configuration of a padded encoder

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def attention_in_groups(packed: Packed, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of each text to itself, texts of near-equal length at once. All [T, hidden]."""
    outputs, width = [], query.shape[1]
    for group in packed.groups:
        shape = (group.texts, group.longest, heads, width // heads)
        q, k, v = (group.grid(t).view(shape).transpose(1, 2) for t in (query, key, value))  # [g, heads, L, d]
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
        outputs.append(group.tokens(out.transpose(1, 2).reshape(-1, width)))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class _SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.heads = config.heads

    def forward(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        width = x.shape[1]
        query, key, value = (m(x) for m in (self.query, self.key, self.value))
        if not packed.groups:
            size = width // self.heads
            varlen = varlen_for(self.heads, size, x.device, query.dtype)
            assert varlen is not None, "texts without groups come from pack, which has asked"  # noqa: S101
            q, k, v = (t.view(len(t), self.heads, size) for t in (query, key, value))
            out = varlen(q, k, v, packed.ends, packed.ends, packed.longest, packed.longest)
            return out.reshape(-1, width)  # type: ignore[no-any-return]
        return attention_in_groups(packed, query, key, value, self.heads)


class _Residual(nn.Module):
    """Dense, add, normalise: Hugging Face's ``output`` modules."""

    def __init__(self, inner: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.dropout = 0.0  # training's: what is loaded has none

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.dense(x)
        if self.dropout and self.training:
            x = functional.dropout(x, self.dropout)
        return self.LayerNorm(x + residual)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = _SelfAttention(config)
        self.output = _Residual(config.hidden, config)

    def forward(self, x: Tensor, packed: Packed) -> Tensor:
        return self.output(self.self(x, packed), x)  # type: ignore[no-any-return]


class _Intermediate(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.intermediate)


class _Layer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Residual(config.intermediate, config)
        self._activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, packed: Packed) -> Tensor:
        x = self.attention(x, packed)
        return self.output(self._activation(self.intermediate.dense(x)), x)  # type: ignore[no-any-return]


class _Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(config.types, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self._offset = config.position_offset

    def forward(self, packed: Packed) -> Tensor:
        x = self.word_embeddings(packed.tokens) + self.position_embeddings(packed.positions + self._offset)
        return self.LayerNorm(x + self.token_type_embeddings.weight[0])  # type: ignore[no-any-return]


class _Stack(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.layers))


class PackedEncoder(nn.Module):
    """The BERT family without padding. ``forward`` gives pooled rows, float32 [n, hidden], in the texts' own order."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = _Stack(config)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def tokens_max(self) -> int:
        """The longest text that there are positions for."""
        return self.config.positions - self.config.position_offset

    def set_dropout(self, share: float) -> None:
        """Drop ``share`` of what each layer adds to its input, in training."""
        for module in self.modules():
            if isinstance(module, _Residual):
                module.dropout = share

    def attends_by_ends(self, device: torch.device, kind: torch.dtype) -> bool:
        """Whether attention on ``device`` in precision ``kind`` needs no groups (``model.packing.pack``)."""
        return varlen_for(self.config.heads, self.config.hidden // self.config.heads, device, kind) is not None

    def states(self, packed: Packed) -> Tensor:
        """Last hidden states of the sorted tokens, [T, hidden]."""
        x = self.embeddings(packed)
        for layer in self.encoder.layer:
            x = layer(x, packed)
        return x  # type: ignore[no-any-return]

    def forward(self, packed: Packed) -> Tensor:
        x = self.states(packed).float()
        if self.config.pooling == "cls":
            pooled = x[packed.starts]
        else:
            total = torch.zeros(len(packed.starts), x.shape[1], device=x.device).index_add(0, packed.rows, x)
            pooled = total / packed.lengths[:, None]
        return pooled[packed.restore]


class PaddedEncoder(nn.Module):
    """Any other Hugging Face encoder, from its configuration; same calling convention.

    It runs once for each group of ``packed``, so no more is padded than ``model.packing.GROUP_WASTE_MAX`` allows.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel  # lazy: our own artifacts never need transformers to be scored

        self.config = config
        foreign = AutoConfig.for_model(**config.foreign)
        # Whatever the checkpoint's own precision: training in half of it breaks down or moves most weights not at all.
        self.model = AutoModel.from_config(foreign, dtype=torch.float32)

    @property
    def tokens_max(self) -> int | None:
        """The longest text that there are positions for; None where they are relative or rotary, without a table."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding) and name.endswith(_POSITIONS):
                # With a padding id, as in RoBERTa, positions start after it.
                return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        return None

    def set_dropout(self, share: float) -> None:
        """Drop ``share`` wherever the body drops anything in training, instead of what its configuration says."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = share
            for name, value in vars(module).items():
                if "dropout" in name and isinstance(value, float):  # attention's, where a function applies it
                    setattr(module, name, share)

    def forward(self, packed: Packed) -> Tensor:
        return torch.cat([self._pooled(group, packed) for group in packed.groups])[packed.restore]

    def _pooled(self, group: Group, packed: Packed) -> Tensor:
        """Rows of a group's texts [g, hidden], float32."""
        ids = group.grid(packed.tokens).view(group.texts, group.longest)
        mask = torch.ones_like(ids) if group.mask is None else group.mask.view(ids.shape).long()
        x = self.model(input_ids=ids * mask, attention_mask=mask).last_hidden_state.float()
        if self.config.pooling == "cls":
            return x[:, 0]  # type: ignore[no-any-return]
        return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)  # type: ignore[no-any-return]


def build_encoder(config: EncoderConfig) -> PackedEncoder | PaddedEncoder:
    """An encoder with random weights."""
    return PackedEncoder(config) if config.family == "packed" else PaddedEncoder(config)
