"""CUDA graphs for shapes that come again: a pass that is launched as one, not kernel by kernel.

Launching a sub-batch's hundred-odd kernels takes the host longer than a GPU takes for a small one. A shape is captured
once it has been seen a few times, which also has warmed up what a capture must not do first (libraries' workspaces).
"""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from model.flat import Layout

SEEN_BEFORE_CAPTURE = 2
"""Passes of a shape before it is captured."""

_log = logging.getLogger(__name__)


class GraphCache:
    """``compute`` by captured graphs, at most ``graphs_max`` of them, and as it is for any other shape.

    ``compute`` maps a flat buffer of int32 [layout.size] on the device to rows [S, hidden] there, and must neither wait
    for the device nor depend on anything else that changes. One stream, one thread.
    """

    def __init__(
        self, compute: Callable[[Tensor, Layout], Tensor], largest: Layout, stream: torch.cuda.Stream, graphs_max: int
    ) -> None:
        self._compute, self._stream, self.graphs_max = compute, stream, graphs_max
        self._seen: Counter[Layout] = Counter()
        self._graphs: dict[Layout, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(stream):
            self._input = torch.zeros(largest.size, dtype=torch.int32, device=stream.device)

    def __len__(self) -> int:
        """Graphs captured."""
        return len(self._graphs)

    def wants(self, layout: Layout) -> bool:
        """Whether this shape has a graph or may get one."""
        room = len(self._graphs) < self.graphs_max and layout.size <= len(self._input)
        return room or (layout in self._graphs and self.graphs_max > 0)

    def __call__(self, staged: Tensor, layout: Layout) -> Tensor:
        """Rows [S, hidden] of a flat buffer on the device, on the current stream, which must be the cache's own.

        Valid until the next call: the graphs share memory, and another's pass may overwrite them. Raises
        torch.OutOfMemoryError, and what ``compute`` raises. A shape that cannot be captured, for want of memory too,
        ends capturing for good, with a warning, and everything else is computed as it is.
        """
        if layout not in self._graphs and not self._capture(layout):
            return self._compute(staged, layout)
        graph, rows = self._graphs[layout]
        self._input[: layout.size].copy_(staged)  # a graph reads from where it was captured
        graph.replay()
        return rows

    def _capture(self, layout: Layout) -> bool:
        """Whether the shape is captured now. Nothing is computed yet."""
        if not self.wants(layout):
            return False
        self._seen[layout] += 1
        if self._seen[layout] <= SEEN_BEFORE_CAPTURE:
            return False
        graph = torch.cuda.CUDAGraph()
        try:
            torch.cuda.synchronize(self._stream.device)
            # Only this thread must refrain from what a capture forbids: others may use the device meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                rows = self._compute(self._input[: layout.size], layout)
            finally:
                self._end(graph)
        except RuntimeError as error:
            # After a failed capture torch 2.11 captures nothing more in this process ("use_count > 0" fails), seen on
            # an H200; and it keeps a pointer to the graph where pinned memory is allocated.
            self.graphs_max, self._failed = 0, graph
            _log.warning("CUDA graphs are off: a shape of %d tokens could not be captured: %s", layout.tokens, error)
            if isinstance(error, torch.OutOfMemoryError):
                raise  # the caller's: it makes smaller batches
            if isinstance(error.__context__, torch.OutOfMemoryError):  # ending the capture failed because of it
                raise error.__context__ from None
            return False
        self._graphs[layout] = (graph, rows)
        return True

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture, and with it what a failed one would leave of itself."""
        try:
            graph.capture_end()
        except RuntimeError:
            # Up to torch 2.11 the allocator then still takes a capture to be under way, and the next `empty_cache`, as
            # after a full memory, fails. Later ones have ended that, and say so by an error of their own.
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
            raise
