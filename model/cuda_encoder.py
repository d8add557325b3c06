"""Packed inference on a GPU: half precision, attention over sequences of any length, captured graphs, copies that
overlap with computing. What a device cannot do it does without."""

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from model.cuda_pipeline import CudaPipeline
from model.encoder import PackedEncoder
from model.fused_encoder import FusedEncoder
from model.packing import chunks, pack
from model.scoring import Floats, Ints
from model.varlen import usable_varlen

CHUNK_TOKENS_MAX = 16384
"""Tokens of one sub-batch: enough to fill a large GPU, few enough that several overlap in a full batch."""
GRAPHS_MAX = 24

_log = logging.getLogger(__name__)


class CudaEncoder:
    """Token ids to pooled rows on a device, for one thread at a time.

    ``dtype``: float16 unless given, on CPU float32: its rows are seven times nearer to float32's than bfloat16's. A
    model whose values do not fit into it (65,504) is served in what does from the first text on that shows it.
    ``longest``: the most tokens that a text has, as many as there are positions unless given. ``graphs_max``: the most
    CUDA graphs kept, 0 for none. ``tanh_gelu``: as in ``FusedEncoder``.
    """

    attention: Literal["varlen", "grouped"]
    """Over all sequences at once, which `usable_varlen` tells the conditions of; or in groups of near-equal length,
    without graphs and overlapping copies."""

    def __init__(
        self,
        encoder: PackedEncoder,
        device: torch.device | str = "cuda",
        dtype: torch.dtype | None = None,
        *,
        longest: int | None = None,
        chunk_tokens_max: int = CHUNK_TOKENS_MAX,
        graphs_max: int = GRAPHS_MAX,
        tanh_gelu: bool = False,
    ) -> None:
        """Raises what torch raises, torch.OutOfMemoryError among it."""
        self.device = place = torch.empty(0, device=device).device  # "cuda" as the one it stands for now
        config = encoder.config
        positions = config.positions - config.position_offset
        self._longest = min(longest or positions, positions)
        self._chunk_tokens_max = max(chunk_tokens_max, self._longest)
        self._graphs_max, self._tanh_gelu, self._trained = graphs_max, tanh_gelu, encoder
        self._serve_in(dtype or native(place))

    def _serve_in(self, dtype: torch.dtype) -> None:
        config = self._trained.config
        self._encoder = FusedEncoder(self._trained, self.device, dtype, tanh_gelu=self._tanh_gelu)
        size = config.hidden // config.heads
        varlen = usable_varlen(config.heads, size, self._longest, self.device, dtype)
        self._pipeline: CudaPipeline | None = None
        if varlen is not None:
            limits = (self._longest, self._chunk_tokens_max, self._graphs_max)
            self._pipeline = CudaPipeline(self._encoder, varlen, *limits)
        self.attention = "grouped" if varlen is None else "varlen"

    @property
    def dtype(self) -> torch.dtype:
        """The precision that is served in."""
        return self._encoder.dtype

    @property
    def graphs(self) -> int:
        """CUDA graphs captured so far."""
        return 0 if self._pipeline is None else len(self._pipeline.graphs)

    def encode(self, ids: Sequence[Ints]) -> Floats:
        """Rows [n, hidden] of n texts, float32, in their own order.

        Raises ValueError for a text without tokens or with too many, IndexError for a token that is not in the
        vocabulary (the GPU itself would fail for good), torch.OutOfMemoryError, and what else torch raises.
        """
        result = np.zeros((len(ids), self._encoder.config.hidden), np.float32)
        if not len(ids):
            return result
        self._encode(ids, result)
        if self.dtype is torch.float16 and not np.isfinite(result).all():
            wider = torch.bfloat16 if capability(self.device) >= (8, 0) else torch.float32
            _log.warning("values of this model do not fit into float16: it is served in %s", wider)
            self._serve_in(wider)
            self._encode(ids, result)
        return result

    def _encode(self, ids: Sequence[Ints], result: Floats) -> None:
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        least, most = int(lengths.min()), int(lengths.max())
        if least < 1 or most > self._longest:
            raise ValueError(f"texts of {least} to {most} tokens: each must have 1 to {self._longest}")
        if self._pipeline is not None:
            self._pipeline.encode(ids, lengths, result)
            return
        parts = chunks(lengths.tolist(), len(ids), self._chunk_tokens_max)
        rows = []
        for part in parts:
            texts = [ids[i] for i in part]
            self._encoder.check(np.concatenate(texts))
            rows.append(self._encoder.grouped(pack(texts, self.device)))
        result[[i for part in parts for i in part]] = torch.cat(rows).cpu().numpy()


def native(device: torch.device) -> torch.dtype:
    """The precision that a device is fast in and that is nearest to float32."""
    return torch.float16 if device.type == "cuda" else torch.float32


def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
