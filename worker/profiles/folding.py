"""Which rows of which fold blocks to fold, and what they make of the states. Pure: bytes and states in, states out.

A row is folded once: rows at or below the mark of their source partition are repeats (a worker wrote them again
after a crash), and rows of a block that a state already contains (`State.fold_offset`) are not folded into it
again (a shard restored from features may hold states newer than its fence). Rows of a person who asked to be forgotten
are not folded up to their cut-off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from model.state import States
from schemas.folds import F16, F32, I64, MAX_BLOCK_FOLDS, VECTOR_SIZE, FoldBlock, FormatError, decode_block
from schemas.redis_keys import Kind
from schemas.states import Fence, State
from worker.privacy.erasures import NOBODY, Erasures

MAX_CHUNK_ROWS: Final = MAX_BLOCK_FOLDS
"""Rows of blocks folded and written at a time; whole blocks, so that the fence always stands between two."""

Placed = tuple[int, FoldBlock | None]
"""Offset in the folds partition, and the block; None for one that is passed over (another space, unreadable)."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The ``m`` rows to fold of some blocks, over ``keys``, and the fence after them. ``forgotten`` rows were left out.

    index [m] into keys, block_offset [m] offset of the block a row came in; the rest as in `FoldBlock`.
    """

    fence: Fence
    repeats: int
    forgotten: int
    keys: list[str]
    index: I64
    block_offset: I64
    time_ms: I64
    weights: F32
    counts: F32
    vectors: F16


def read_block(value: bytes | None, kind: Kind, shard: int) -> FoldBlock:
    """Decode a block and check that it can be folded here. Raises `FormatError`."""
    block = decode_block(value or b"")
    if (block.kind, block.shard) != (kind, shard):
        raise FormatError(f"fold block of {block.kind} shard {block.shard}, found in {kind} shard {shard}")
    if len(block) > MAX_BLOCK_FOLDS:
        raise FormatError(f"fold block of {len(block)} folds, at most {MAX_BLOCK_FOLDS} are allowed")
    if len(block) and not 0 <= block.topic_index.min() <= block.topic_index.max() < len(block.topic_ids):
        raise FormatError("fold block: a row names a source topic that the block does not")
    if (block.time_ms < 0).any() or (block.weights < 0).any() or (block.counts < 0).any():
        raise FormatError("fold block: a time, weight or count below zero")
    # One NaN would stay in a state for good.
    if not all(np.isfinite(column).all() for column in (block.weights, block.counts, block.vectors)):
        raise FormatError("fold block: a weight, count or vector that is not a number")
    return block


def chunks(blocks: Sequence[Placed], rows_max: int = MAX_CHUNK_ROWS) -> Iterator[list[Placed]]:
    """Blocks in runs of at most ``rows_max`` rows; a longer block stands alone."""
    chunk: list[Placed] = []
    rows = 0
    for placed in blocks:
        more = 0 if placed[1] is None else len(placed[1])
        if chunk and rows + more > rows_max:
            yield chunk
            chunk, rows = [], 0
        chunk.append(placed)
        rows += more
    if chunk:
        yield chunk


def select(fence: Fence, blocks: Sequence[Placed], erasures: Erasures = NOBODY) -> Selection:
    """The rows above the fence's marks, of blocks in offset order from ``fence.fold_offset`` on (at least one).

    ``erasures`` are those that concern the keys of these blocks.
    """
    present = [(at, block) for at, block in blocks if block is not None]
    topic_ids = list(dict.fromkeys(topic_id for _, block in present for topic_id in block.topic_ids))
    offsets = {id(block): at for at, block in present}
    number = {topic_id: i for i, topic_id in enumerate(topic_ids)}

    def column(of: Callable[[FoldBlock], npt.NDArray[Any]], *width: int) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros((0, *width), np.int8), *(of(block) for _, block in present)])

    topic = column(lambda block: np.array([number[i] for i in block.topic_ids], np.int64)[block.topic_index])
    marks = {topic_id: dict(parts) for topic_id, parts in fence.marks.items()}
    fresh = _fresh(topic_ids, topic, column(lambda b: b.partition), column(lambda b: b.offset), marks)
    repeats = int(len(fresh) - fresh.sum())
    every = [key for _, block in present for key in block.keys]
    time_ms = column(lambda b: b.time_ms)
    if erasures.any_of(every):
        fresh &= [not erasures.cover(key, at) for key, at in zip(every, time_ms.tolist(), strict=True)]
    keys: dict[str, int] = {}
    index = np.array([keys.setdefault(key, len(keys)) for key in compress(every, fresh)], np.int64)
    return Selection(
        fence=msgspec.structs.replace(fence, fold_offset=blocks[-1][0] + 1, marks=marks),
        repeats=repeats,
        forgotten=int(len(fresh) - fresh.sum()) - repeats,
        keys=list(keys),
        index=index,
        block_offset=column(lambda b: np.full(len(b), offsets[id(b)]))[fresh],
        time_ms=time_ms[fresh],
        weights=column(lambda b: b.weights, 2)[fresh],
        counts=column(lambda b: b.counts, 3)[fresh],
        vectors=column(lambda b: b.vectors, VECTOR_SIZE)[fresh],
    )


def fold(
    selection: Selection, states: Sequence[State | None], kind: Kind, scales_s: Sequence[float]
) -> tuple[list[State], int]:
    """New states of ``selection.keys``, given the present ones, and the number of rows folded.

    Raises `FormatError` when a state has another number of time scales.
    """
    contained = np.array([-1 if state is None else state.fold_offset for state in states], np.int64)
    rows = np.flatnonzero(selection.block_offset > contained[selection.index])
    touched = np.unique(selection.index[rows])
    moved = States.from_records([states[i] for i in touched], scales_s)
    moved.fold(
        np.searchsorted(touched, selection.index[rows]),
        selection.time_ms[rows],
        selection.weights[rows],
        selection.counts[rows],
        selection.vectors[rows],
    )
    keys = [selection.keys[i] for i in touched]
    return moved.to_records(kind, keys, selection.fence.incarnation, selection.fence.fold_offset - 1), len(rows)


def _fresh(
    topic_ids: list[str],
    topic: npt.NDArray[Any],
    partition: npt.NDArray[Any],
    offset: npt.NDArray[Any],
    marks: dict[str, dict[int, int]],
) -> npt.NDArray[np.bool_]:
    """Which rows stand above everything before them of their source partition; ``marks`` move up to the highest."""
    fresh = np.zeros(len(offset), np.bool_)
    for t, p in np.unique(np.stack([topic, partition], axis=1), axis=0).tolist():
        rows = np.flatnonzero((topic == t) & (partition == p))
        own = marks.setdefault(topic_ids[t], {})
        seen = np.maximum.accumulate(np.concatenate([[own.get(p, -1)], offset[rows]]))
        fresh[rows] = offset[rows] > seen[:-1]
        own[p] = int(seen[-1])
    return fresh
