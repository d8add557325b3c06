"""Who asked to be forgotten: records of the compacted topic ``erasures``, keyed by user, all in partition 0.

They stay for as long as old events may come back: a replayed event of that person from before the cut-off is dropped.
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.events import EventTimeMs, Id
from schemas.folds import FormatError

ERASURES_PARTITION: Final = 0


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a user with an event time up to ``cutoff_ms`` (inclusive) is to be forgotten."""

    user_id: Id
    cutoff_ms: EventTimeMs
    v: int = 1


_decode: Final = msgspec.json.Decoder(Erasure).decode
_encode: Final = msgspec.json.Encoder().encode


def encode_erasure(erasure: Erasure) -> bytes:
    """Bytes of an erasure."""
    return _encode(erasure)


def decode_erasure(data: bytes) -> Erasure:
    """Erasure of the bytes. Raises `FormatError` when they are not one that this release can read."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"erasure: {error}") from error
