"""The features topics: states published for whoever reads them, and the snapshot an empty Redis is rebuilt from.

Partition = shard, key = id, value = `State` bytes; then one fence record per publication (`FENCE_RECORD_KEY`): all
folds below its ``fold_offset`` are in the states before it. Every record names its vector space in a header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, TopicPartition

from schemas.dead import Headers
from schemas.folds import FormatError
from schemas.redis_keys import Kind
from schemas.states import FENCE_RECORD_KEY, Fence, State, decode_fence, encode_state, read_head
from schemas.topics import FEATURES
from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka.readback import Readback
from worker.kafka.records import OutMessage

SPACE_HEADER: Final = "millrace-space"


class Published(msgspec.Struct, frozen=True, gc=False):
    """A state as it was published, the latest event time in it, and when it was published (0: unknown)."""

    data: bytes
    time_ms: int
    written_ms: int


class Features:
    """Writes and reads the features topics of one vector space. ``reader``: what to read them with."""

    def __init__(self, kafka: KafkaConfig, space: str, reader: Readback | None = None) -> None:
        self._kafka = kafka
        self._space = space
        self._headers: Headers = [(SPACE_HEADER, space.encode())]
        self._reader = Readback(kafka, "profiles.restore") if reader is None else reader

    def messages(
        self, kind: Kind, shard: int, keys: Sequence[str], states: Sequence[State | None], fence: bytes | None
    ) -> list[OutMessage]:
        """States of keys (None deletes), and then the shard's fence, where these are the last that it covers."""
        topic = FEATURES[kind]
        messages = [
            OutMessage(topic, key.encode(), None if state is None else encode_state(state), self._headers, shard)
            for key, state in zip(keys, states, strict=True)
        ]
        if fence is not None:
            messages.append(OutMessage(topic, FENCE_RECORD_KEY, fence, self._headers, shard))
        return messages

    def snapshot(self, kind: Kind, shard: int) -> tuple[dict[str, Published], Fence | None]:
        """The latest state of every key of a shard, as bytes, and the last fence record (None when there is none).

        Raises `KafkaError` when the partition cannot be read to its end, or holds what this release cannot read.
        """
        topic, ours = self._kafka.topic(FEATURES[kind]), self._space.encode()
        states: dict[str, Published] = {}
        fence: Fence | None = None
        for message in self._reader.read([TopicPartition(topic, shard)]):
            if dict(message.headers() or ()).get(SPACE_HEADER) != ours:
                continue
            key, value = message.key() or b"", message.value()
            try:
                if key == FENCE_RECORD_KEY:
                    fence = decode_fence(value) if value else None
                elif value is None:
                    states.pop(key.decode(), None)
                else:
                    head = read_head(value)
                    kind_of_time, written_ms = message.timestamp()
                    known = kind_of_time != TIMESTAMP_NOT_AVAILABLE
                    states[head.key] = Published(value, head.time_ms, written_ms if known else 0)
            except (FormatError, UnicodeDecodeError) as error:
                raise KafkaError(
                    f"{topic} partition {shard} offset {message.offset()}: {error}. The shard cannot be rebuilt from it"
                    " by this release"
                ) from error
        return states, fence

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()
