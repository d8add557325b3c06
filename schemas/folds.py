"""Fold blocks: what events add to user and item state, many folds of one shard in one Kafka record.

A block is columnar, so that producing, reading and folding it costs numpy calls, not Python per event: one
record per event would make the client library the bottleneck of the whole worker. Blocks of a shard go to
the partition of that number. Within a block and a partition, folds of one source partition stand in source
order; a fold at or below the source mark of its source partition is a repeat and is skipped.

Layout: byte 0 is the format version (1), then msgpack of `FoldBlock` as an array; columns are raw
little-endian arrays, ``n`` rows each.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.redis_keys import Kind

FORMAT_VERSION: Final = 1
VECTOR_SIZE: Final = 64
MAX_BLOCK_FOLDS: Final = 1024
"""A block this long is about 190 KB, where ids are short; longer ones are split by the writer."""
MAX_BLOCK_BYTES: Final = 1024 * 1024
"""What the rows of a block may take: ids may be long. The topic takes 64 KB more, for what stands before the rows."""
ROW_BYTES: Final = 4 + 4 + 8 + 8 + 2 * 4 + 3 * 4 + 2 * VECTOR_SIZE + 3
"""Bytes of a fold without its key, and what frames that."""

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class FormatError(ValueError):
    """Bytes that are not what they should be: unknown format version, or columns of unequal length."""


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    kind: Kind
    space: str
    shard: int
    topic_ids: list[str]
    keys: list[str]
    topic_index: bytes
    partition: bytes
    offset: bytes
    time_ms: bytes
    weights: bytes
    counts: bytes
    vectors: bytes


class FoldBlock(msgspec.Struct, frozen=True, kw_only=True):
    """``n`` folds of one shard.

    topic_ids    ids of the source topics (Kafka's topic id; the name where the broker has none)
    keys         [n] user or item id
    topic_index  int32 [n] into topic_ids
    partition    int32 [n] source partition
    offset       int64 [n] source offset
    time_ms      int64 [n] event time, ms
    weights      float32 [n, 2] how much the vector adds to (shown, liked), >= 0
    counts       float32 [n, 3] what is added to (shown, clicked, purchased), >= 0
    vectors      float16 [n, 64] event vector, unit length or zero
    """

    kind: Kind
    space: str
    shard: int
    topic_ids: list[str]
    keys: list[str]
    topic_index: I32
    partition: I32
    offset: I64
    time_ms: I64
    weights: F32
    counts: F32
    vectors: F16

    def __len__(self) -> int:
        return len(self.keys)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)


def encode_block(block: FoldBlock) -> bytes:
    """Bytes of a block."""
    wire = _Wire(
        block.kind,
        block.space,
        block.shard,
        block.topic_ids,
        block.keys,
        block.topic_index.astype("<i4", copy=False).tobytes(),
        block.partition.astype("<i4", copy=False).tobytes(),
        block.offset.astype("<i8", copy=False).tobytes(),
        block.time_ms.astype("<i8", copy=False).tobytes(),
        block.weights.astype("<f4", copy=False).tobytes(),
        block.counts.astype("<f4", copy=False).tobytes(),
        block.vectors.astype("<f2", copy=False).tobytes(),
    )
    return bytes([FORMAT_VERSION]) + _encoder.encode(wire)


def decode_block(data: bytes) -> FoldBlock:
    """Block of the bytes. Raises `FormatError` when they are not a block that this release can read."""
    if not data or data[0] != FORMAT_VERSION:
        found = data[0] if data else "nothing"
        raise FormatError(f"fold block: format version {found}, this release reads {FORMAT_VERSION}")
    try:
        wire = _decoder.decode(memoryview(data)[1:])
        n = len(wire.keys)
        return FoldBlock(
            kind=wire.kind,
            space=wire.space,
            shard=wire.shard,
            topic_ids=wire.topic_ids,
            keys=wire.keys,
            topic_index=np.frombuffer(wire.topic_index, "<i4", n),
            partition=np.frombuffer(wire.partition, "<i4", n),
            offset=np.frombuffer(wire.offset, "<i8", n),
            time_ms=np.frombuffer(wire.time_ms, "<i8", n),
            weights=np.frombuffer(wire.weights, "<f4", n * 2).reshape(n, 2),
            counts=np.frombuffer(wire.counts, "<f4", n * 3).reshape(n, 3),
            vectors=np.frombuffer(wire.vectors, "<f2", n * VECTOR_SIZE).reshape(n, VECTOR_SIZE),
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise FormatError(f"fold block: {error}") from error
