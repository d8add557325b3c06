"""Records as the worker holds them: what was read, where it stood, what is to be written."""

from __future__ import annotations

import msgspec

from schemas.dead import Headers

Partition = tuple[str, int]
Offsets = dict[Partition, int]
"""Topic and partition to the next offset to read."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """One Kafka record. ``topic`` is the cluster's name."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None = None


class OutMessage(msgspec.Struct, gc=False):
    """One record to write. ``topic`` is the contract's name; ``partition`` None lets the key decide.

    ``value`` None deletes the key from a compacted topic.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers | None = None
    partition: int | None = None
