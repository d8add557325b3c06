"""Fold blocks as workers write them, and the states that they come to by plain numpy.

Rows of a source partition come in order; some of them again, cut into other blocks, as after a worker's crash. Among
them is what must be passed over: what is no block, and blocks of another space.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.folds import FoldBlock, encode_block
from schemas.redis_keys import Kind
from schemas.shards import shard_of
from schemas.states import State
from schemas.topics import FOLDS
from worker.kafka.records import Partition

SPACE = "space"
SHARDS = 3
SCALES_S = (3600.0, 1e6)
SOURCES = [(topic_id, partition) for topic_id in ("id-of-events.click", "id-of-events.review") for partition in (0, 1)]
BATCHES = 36
_VECTORS = np.random.default_rng(7).standard_normal((16, 64))
VECTORS = (_VECTORS / np.linalg.norm(_VECTORS, axis=1, keepdims=True)).astype(np.float16)
NO_BLOCKS = (None, b"", b"\x01 not a block", b"\x09")
MARK = b"the mark of a transaction"
"""What stands in a partition and is handed to nobody."""

Name = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One fold; ``vector`` is one of `VECTORS`."""

    kind: Kind
    key: str
    source: tuple[str, int]
    offset: int
    time_ms: int
    liked: float
    counts: tuple[float, float, float]
    vector: int


def blocks_of(rng: random.Random) -> tuple[list[tuple[Partition, bytes | None]], list[Row]]:
    """Values of the folds topics in the order in which they are written, and every distinct row in them."""
    arriving: list[tuple[Partition, bytes | None]] = []
    written: dict[tuple[str, int], list[list[Row]]] = {source: [] for source in SOURCES}
    for _ in range(rng.randrange(BATCHES // 2, BATCHES)):
        source = rng.choice(SOURCES)
        past = written[source]
        if past and rng.random() < 0.2:
            # A worker that crashed begins again some batches before, and cuts them otherwise.
            again = [rows for batch in past[-rng.randrange(1, 4) :] for rows in batch]
            size = rng.randrange(1, 8)
            for start in range(0, len(again), size):
                arriving += _written(again[start : start + size], SPACE)
        else:
            offset = past[-1][-1].offset if past else -1
            batch = [_row(rng, source, offset := offset + rng.randrange(1, 3)) for _ in range(rng.randrange(1, 7))]
            past.append(batch)
            arriving += _written(batch, SPACE)
        if rng.random() < 0.1:
            partition = (rng.choice(list(FOLDS.values())), rng.randrange(SHARDS))
            arriving.append((partition, rng.choice(NO_BLOCKS)))
        if rng.random() < 0.05:
            arriving += _written([_row(rng, source, 10_000)], "another space")
    return arriving, [row for batches in written.values() for batch in batches for row in batch]


def states_of(rows: Sequence[Row]) -> dict[Name, tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Time, sums, weights and counts of every kind and key, by the definition."""
    found: dict[Name, tuple[int, np.ndarray, np.ndarray, np.ndarray]] = {}
    of: dict[Name, list[Row]] = defaultdict(list)
    for row in rows:
        of[row.kind, row.key].append(row)
    for name, own in of.items():
        time_ms = np.array([row.time_ms for row in own])
        decay = np.exp((time_ms - time_ms.max())[:, None] / 1000 / np.array(SCALES_S))
        weights = np.array([(1.0, row.liked) for row in own])
        sums = np.einsum("na,ns,nd->asd", weights, decay, VECTORS[[row.vector for row in own]].astype(float))
        counts = decay.T @ np.array([row.counts for row in own])
        found[name] = int(time_ms.max()), sums, weights.T @ decay, counts
    return found


def differences(
    found: Mapping[Name, State], expected: Mapping[Name, tuple[int, np.ndarray, np.ndarray, np.ndarray]]
) -> list[str]:
    """What is not as it should be, within 1e-5."""
    wrong = [f"no state of {name}" for name in expected if name not in found]
    wrong += [f"a state of {name} from nowhere" for name in found if name not in expected]
    for name, (time_ms, *arrays) in expected.items():
        if (state := found.get(name)) is None:
            continue
        own = np.concatenate([state.sums.ravel(), state.weights.ravel(), state.counts.ravel()])
        want = np.concatenate([array.ravel() for array in arrays])
        if state.time_ms != time_ms or len(own) != len(want) or (abs(own - want) > 1e-5 * (1 + abs(want))).any():
            shown, should = state.counts[-1, 0], arrays[2][-1, 0]
            wrong.append(f"state of {name} as of {state.fold_offset}: shown {shown:.3f}, should be {should:.3f}")
    return wrong


def _row(rng: random.Random, source: tuple[str, int], offset: int) -> Row:
    kind: Kind = "user" if rng.random() < 0.6 else "item"
    key = f"{kind[0]}{rng.randrange(12 if kind == 'user' else 8)}"
    time_ms = int(1.7e12) + rng.randrange(2_000_000_000)
    counts = (1.0, float(rng.random() < 0.5), float(rng.random() < 0.2))
    return Row(kind, key, source, offset, time_ms, float(rng.random() < 0.5), counts, rng.randrange(len(VECTORS)))


def _written(rows: Sequence[Row], space: str) -> list[tuple[Partition, bytes | None]]:
    groups: dict[tuple[Kind, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.kind, shard_of(row.key, SHARDS)), []).append(row)
    return [((FOLDS[kind], shard), _block(kind, shard, own, space)) for (kind, shard), own in groups.items()]


def _block(kind: Kind, shard: int, rows: Sequence[Row], space: str) -> bytes:
    topic_ids = sorted({row.source[0] for row in rows})
    return encode_block(
        FoldBlock(
            kind=kind,
            space=space,
            shard=shard,
            topic_ids=topic_ids,
            keys=[row.key for row in rows],
            topic_index=np.array([topic_ids.index(row.source[0]) for row in rows], np.int32),
            partition=np.array([row.source[1] for row in rows], np.int32),
            offset=np.array([row.offset for row in rows], np.int64),
            time_ms=np.array([row.time_ms for row in rows], np.int64),
            weights=np.array([(1.0, row.liked) for row in rows], np.float32),
            counts=np.array([row.counts for row in rows], np.float32),
            vectors=VECTORS[[row.vector for row in rows]],
        )
    )
