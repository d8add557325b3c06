"""Sub-batches through a GPU without waiting: while one is computed, the host lays out the next and it is copied.

Three streams: up, compute, down. Every sub-batch of a call has its own place in the staging buffers, so none is written
while it is still being copied, and the host waits for nothing until all are on their way; then it takes the rows of
each as they arrive. The next call uses the buffers again, after everything has arrived.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt
import torch

from model.cuda_graphs import GraphCache
from model.flat import SEQUENCE_SHARES, Layout, bucket, lay_out, padded, runs
from model.fused_encoder import FusedEncoder
from model.scoring import Floats, Ints
from model.varlen import Varlen


class CudaPipeline:
    """``FusedEncoder.flat`` over texts of at most ``longest`` tokens, in sub-batches of ``chunk_tokens_max`` tokens.
    For one thread at a time."""

    def __init__(
        self, encoder: FusedEncoder, varlen: Varlen, longest: int, chunk_tokens_max: int, graphs_max: int
    ) -> None:
        self._encoder, self._longest, self._chunk_tokens_max = encoder, longest, chunk_tokens_max
        device = encoder.device
        self._up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._compute = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._down = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        largest = bucket(chunk_tokens_max)
        self.graphs = GraphCache(
            lambda buffer, layout: encoder.flat(buffer, layout, varlen, longest),
            Layout(largest, largest // SEQUENCE_SHARES[-1]),
            self._compute,
            graphs_max,
        )
        self._staged_host = self._staged = torch.empty(0, dtype=torch.int32)
        self._rows_host = self._rows = torch.empty(0, encoder.config.hidden)
        torch.cuda.synchronize(device)  # the weights came on another stream than reads them

    def encode(self, ids: Sequence[Ints], lengths: npt.NDArray[np.int64], result: Floats) -> None:
        """Write the rows [n, hidden] of n texts into ``result``. Raises IndexError for a token that is not in the
        vocabulary, ValueError as `lay_out` does, torch.OutOfMemoryError, and what else torch raises."""
        parts = runs(lengths, self._chunk_tokens_max)
        layouts = [self._layout(lengths[first:last]) for first, last in parts]
        places = [0, *accumulate(layout.size for layout in layouts)]
        with torch.inference_mode(), torch.cuda.device(self._encoder.device):
            self._make_room(places[-1], len(ids))
            arrived = []
            for (first, last), layout, (start, end) in zip(parts, layouts, pairwise(places), strict=True):
                lay_out(ids[first:last], layout, self._longest, self._staged_host[start:end].numpy())
                self._encoder.check(self._staged_host[start : start + layout.tokens].numpy())
                arrived.append(self._launch(layout, start, first, last))
            rows = self._rows_host.numpy()
            for (first, last), event in zip(parts, arrived, strict=True):
                event.synchronize()
                result[first:last] = rows[first:last]

    def _launch(self, layout: Layout, start: int, first: int, last: int) -> torch.cuda.Event:
        """Copy, compute and copy back what lies from ``start`` in the staging buffer as rows first to last; the event
        that these have arrived."""
        staged = self._staged[start : start + layout.size]
        with torch.cuda.stream(self._up):
            staged.copy_(self._staged_host[start : start + layout.size], non_blocking=True)
        self._compute.wait_stream(self._up)
        with torch.cuda.stream(self._compute):
            # Away from the graph's own rows at once: the next sub-batch may overwrite them while these are copied.
            self._rows[first:last].copy_(self.graphs(staged, layout)[: last - first])
        self._down.wait_stream(self._compute)
        with torch.cuda.stream(self._down):
            self._rows_host[first:last].copy_(self._rows[first:last], non_blocking=True)
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # a core is for others meanwhile
            event.record()
        return event

    def _layout(self, lengths: npt.NDArray[np.int64]) -> Layout:
        """A shape that comes again where it has a graph or may get one, otherwise just what is needed."""
        texts, tokens = len(lengths), int(lengths.sum())
        layout = padded(texts, tokens, self._longest)
        return layout if layout is not None and self.graphs.wants(layout) else Layout(tokens, texts)

    def _make_room(self, staged: int, texts: int) -> None:
        """Buffers of at least so many numbers and rows, of which nothing is in use any more."""
        for stream in (self._up, self._compute, self._down):
            stream.synchronize()  # nothing is under way, unless the call before failed
        if staged > len(self._staged):
            size = bucket(staged)
            self._staged_host = torch.empty(size, dtype=torch.int32, pin_memory=True)
            self._staged = torch.empty(size, dtype=torch.int32, device=self._encoder.device)
        if texts > len(self._rows):
            size, hidden = bucket(texts), self._encoder.config.hidden
            self._rows_host = torch.empty(size, hidden, pin_memory=True)
            self._rows = torch.empty(size, hidden, device=self._encoder.device)
