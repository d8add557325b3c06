"""Packed inference on CPU: each core takes sub-batches of its own, and every operation stays on one thread.

Threads inside a matrix product meet at its end, some fifty times a sub-batch, and all wait there for whichever the
machine holds up. Sub-batches of neighbours in length need no meeting.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from model.encoder import PackedEncoder
from model.inference import InferenceEncoder, Workspace
from model.packing import even_chunks, pack
from model.scoring import Floats, Ints

CHUNK_TOKENS_MAX = 1024
"""Tokens of one sub-batch. Measured 384 wide on two cores with AVX-512, us of CPU a token in float32 / bfloat16: 256
tokens 244 / 155, 512 229 / 149, 1,024 231 / 150, 2,048 233 / 153, 4,096 240 / 152; with AVX2, 512 to 4,096 the same
within noise. This many keep the buffers of two threads within 40 MB."""


class CpuEncoder:
    """Token ids to pooled rows on ``threads`` cores; as many as torch is set to by default."""

    def __init__(
        self,
        encoder: PackedEncoder,
        threads: int | None = None,
        chunk_tokens_max: int = CHUNK_TOKENS_MAX,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._encoder = InferenceEncoder(encoder, dtype)
        self.threads = threads or torch.get_num_threads()
        self._chunk_tokens_max = chunk_tokens_max
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(self.threads, "encode", initializer=torch.set_num_threads, initargs=(1,))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its products."""
        return self._encoder.dtype

    def encode(self, ids: Sequence[Ints]) -> Floats:
        """Rows [n, hidden] of n texts, float32. Not for several threads at once. Raises what torch raises."""
        result = np.zeros((len(ids), self._encoder.config.hidden), np.float32)
        parts = even_chunks([len(i) for i in ids], self.threads, self._chunk_tokens_max)

        def run(part: list[int]) -> None:
            if not hasattr(self._local, "workspace"):
                self._local.workspace = Workspace(self._encoder.config, self.dtype)
            result[part] = self._encoder(pack([ids[i] for i in part]), self._local.workspace).numpy()

        before = torch.get_num_threads()
        torch.set_num_threads(1)  # the product library's count is the process's, not the thread's
        try:
            for _ in self._pool.map(run, parts):
                pass
        finally:
            torch.set_num_threads(before)
        return result
