"""States and fences: the bytes in Redis, and in the compacted topics ``features.user`` and ``features.item``.

A state is one record for both places, so the features topics are the snapshot that an empty Redis is rebuilt
from. Layout (little-endian): version u8 = 1, kind u8 (0 user, 1 item), scales u8, reserved u8, key length u32,
incarnation u64, fold offset i64, time i64 (ms), sums float32 [2, scales, 64] (shown, liked), weights float32
[2, scales], counts float32 [scales, 3] (shown, clicked, purchased), then the key in UTF-8. For a time scale
tau the embedding is S / (W + 1); see `model.state` for the arithmetic.

A fence is version u8 = 1, then msgpack: how far a shard is folded and from which source offsets.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import numpy as np

from schemas.folds import F32, VECTOR_SIZE, FormatError
from schemas.redis_keys import Kind

FORMAT_VERSION: Final = 1
FENCE_RECORD_KEY: Final = b"\x00fence"
"""Key of the fence record in a features partition; readers of features skip keys that begin with NUL."""

_HEAD = np.dtype(
    [
        ("version", "u1"),
        ("kind", "u1"),
        ("scales", "u1"),
        ("reserved", "u1"),
        ("key_length", "<u4"),
        ("incarnation", "<u8"),
        ("fold_offset", "<i8"),
        ("time_ms", "<i8"),
    ]
)


# The same head, for those who need only that: a tenth of the time.
_PLAIN_HEAD: Final = struct.Struct("<BBBBIQqq")
_INCARNATION: Final = struct.Struct("<Q")
_INCARNATION_AT: Final = 8


class State(msgspec.Struct, frozen=True, kw_only=True):
    """State of one user or item as of ``fold_offset``, the offset of the last fold block in it.

    sums     float32 [2, scales, 64] decayed sums of event vectors (shown, liked) at time_ms
    weights  float32 [2, scales]     the same of their weights
    counts   float32 [scales, 3]     decayed counts (shown, clicked, purchased)
    time_ms  latest event time seen
    """

    kind: Kind
    key: str
    incarnation: int
    fold_offset: int
    time_ms: int
    sums: F32
    weights: F32
    counts: F32


def encode_state(state: State) -> bytes:
    """Bytes of a state."""
    scales = state.sums.shape[1]
    key = state.key.encode()
    head = np.zeros((), _HEAD)
    head["version"], head["kind"], head["scales"] = FORMAT_VERSION, int(state.kind == "item"), scales
    head["key_length"], head["incarnation"] = len(key), state.incarnation
    head["fold_offset"], head["time_ms"] = state.fold_offset, state.time_ms
    return b"".join(
        (
            head.tobytes(),
            state.sums.astype("<f4", copy=False).tobytes(),
            state.weights.astype("<f4", copy=False).tobytes(),
            state.counts.astype("<f4", copy=False).tobytes(),
            key,
        )
    )


def decode_state(data: bytes) -> State:
    """State of the bytes. Raises `FormatError` when they are not a state that this release can read."""
    if len(data) < _HEAD.itemsize or data[0] != FORMAT_VERSION:
        found = data[0] if data else "nothing"
        raise FormatError(f"state: format version {found}, this release reads {FORMAT_VERSION}")
    head = np.frombuffer(data, _HEAD, 1)[0]
    scales = int(head["scales"])
    floats = 2 * scales * VECTOR_SIZE + 2 * scales + 3 * scales
    end = _HEAD.itemsize + 4 * floats
    if len(data) != end + int(head["key_length"]):
        raise FormatError(f"state: {len(data)} bytes, expected {end + int(head['key_length'])}")
    body = np.frombuffer(data, "<f4", floats, _HEAD.itemsize)
    cut = 2 * scales * VECTOR_SIZE
    return State(
        kind="item" if head["kind"] else "user",
        key=_key(data[end:]),
        incarnation=int(head["incarnation"]),
        fold_offset=int(head["fold_offset"]),
        time_ms=int(head["time_ms"]),
        sums=body[:cut].reshape(2, scales, VECTOR_SIZE),
        weights=body[cut : cut + 2 * scales].reshape(2, scales),
        counts=body[cut + 2 * scales :].reshape(scales, 3),
    )


class StateHead(msgspec.Struct, frozen=True, gc=False):
    """What stands at the ends of a state's bytes; its sums are not looked at."""

    kind: Kind
    key: str
    time_ms: int


def read_head(data: bytes) -> StateHead:
    """Head of a state's bytes. Raises `FormatError` as `decode_state` does."""
    if len(data) < _PLAIN_HEAD.size or data[0] != FORMAT_VERSION:
        found = data[0] if data else "nothing"
        raise FormatError(f"state: format version {found}, this release reads {FORMAT_VERSION}")
    _, kind, scales, _, key_length, _, _, time_ms = _PLAIN_HEAD.unpack_from(data)
    end = _PLAIN_HEAD.size + 4 * scales * (2 * VECTOR_SIZE + 5)
    if len(data) != end + key_length:
        raise FormatError(f"state: {len(data)} bytes, expected {end + key_length}")
    return StateHead("item" if kind else "user", _key(data[end:]), time_ms)


def _key(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        # Its own words quote the key.
        raise FormatError(f"state: the key is not UTF-8 from byte {error.start} on") from None


def restamped(data: bytes, incarnation: int) -> bytes:
    """The same state's bytes in another incarnation."""
    return data[:_INCARNATION_AT] + _INCARNATION.pack(incarnation) + data[_INCARNATION_AT + _INCARNATION.size :]


class Fence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a shard is folded.

    incarnation  states of another incarnation read as absent
    fold_offset  the next offset of the folds partition to fold
    marks        source topic id -> source partition -> highest source offset folded
    folds        id of the folds topic that fold_offset counts in; empty where an earlier release wrote the fence, which
                 passes this field over when it reads one
    """

    incarnation: int
    fold_offset: int
    marks: dict[str, dict[int, int]]
    folds: str = ""


_fence_encoder = msgspec.msgpack.Encoder()
_fence_decoder = msgspec.msgpack.Decoder(Fence)


def encode_fence(fence: Fence) -> bytes:
    """Bytes of a fence; equal fences give equal bytes, so a compare-and-set may compare bytes."""
    # Sorted by hand: msgspec's deterministic order takes only text as keys, and partitions are numbers.
    marks = {topic: dict(sorted(parts.items())) for topic, parts in sorted(fence.marks.items())}
    return bytes([FORMAT_VERSION]) + _fence_encoder.encode(msgspec.structs.replace(fence, marks=marks))


def decode_fence(data: bytes) -> Fence:
    """Fence of the bytes. Raises `FormatError` when they are not a fence that this release can read."""
    if not data or data[0] != FORMAT_VERSION:
        found = data[0] if data else "nothing"
        raise FormatError(f"fence: format version {found}, this release reads {FORMAT_VERSION}")
    try:
        return _fence_decoder.decode(memoryview(data)[1:])
    except msgspec.MsgspecError as error:
        raise FormatError(f"fence: {error}") from error
