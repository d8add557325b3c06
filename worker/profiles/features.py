"""The features topics: states published for whoever reads them, and the snapshot an empty Redis is rebuilt from.

Partition = shard, key = id, value = `State` bytes; then one fence record per publication (`FENCE_RECORD_KEY`): all
folds below its ``fold_offset`` are in the states before it. Every record names its vector space in a header.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import confluent_kafka
import msgspec
from confluent_kafka import Producer, TopicPartition

from schemas.dead import DeadLetter, Headers
from schemas.folds import FormatError
from schemas.redis_keys import Kind
from schemas.scores import SourcePosition
from schemas.states import FENCE_RECORD_KEY, Fence, State, decode_fence, encode_state, read_head
from schemas.topics import EVENTS_DEAD, FEATURES
from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka.clients import producer_config, translate
from worker.kafka.readback import Readback

SPACE_HEADER: Final = "millrace-space"
STALL_S: Final = 30.0
"""A full queue out of which nothing is delivered for so long means that the broker is away."""


class Published(msgspec.Struct, frozen=True, gc=False):
    """A state as it was published, and the latest event time in it."""

    data: bytes
    time_ms: int


class Features:
    """Writes and reads the features topics of one vector space, and takes blocks nobody can read out of the way."""

    def __init__(self, kafka: KafkaConfig, space: str) -> None:
        self._kafka = kafka
        self._space = space
        self._headers = [(SPACE_HEADER, space.encode())]
        self._producer = Producer(producer_config(kafka))
        self._reader = Readback(kafka, "profiles.restore")
        self._failed: confluent_kafka.KafkaError | None = None

    def send(self, kind: Kind, shard: int, states: Iterable[State], gone: Iterable[str], fence: bytes) -> None:
        """Queue states, deletions of keys that are ``gone``, then the shard's fence. They are there once `delivered`
        says so."""
        topic = self._kafka.topic(FEATURES[kind])
        for key in gone:
            self._produce(topic, key.encode(), None, self._headers, shard)
        for state in states:
            self._produce(topic, state.key.encode(), encode_state(state), self._headers, shard)
        self._produce(topic, FENCE_RECORD_KEY, fence, self._headers, shard)

    def send_dead(self, source: SourcePosition, value: bytes | None, detail: str) -> None:
        """Queue a copy of a block that cannot be read, whole."""
        letter = DeadLetter(stage="decode", reason="wrong_type", detail=detail, source=source, key=None, value=value)
        self._produce(self._kafka.topic(EVENTS_DEAD), letter.record_key(), value or b"", letter.headers(), -1)

    def delivered(self, timeout_s: float) -> bool:
        """Wait until everything sent is acknowledged; whether it is. Raises `KafkaError` when the broker refused."""
        waiting = self._producer.flush(max(0.0, timeout_s))
        if self._failed is not None:
            raise translate(self._failed, doing="publishing features")
        return bool(waiting == 0)

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
                    states[head.key] = Published(value, head.time_ms)
            except (FormatError, UnicodeDecodeError) as error:
                raise KafkaError(
                    f"{topic} partition {shard} offset {message.offset()}: {error}. The shard cannot be rebuilt from it"
                    " by this release"
                ) from error
        return states, fence

    def close(self) -> None:
        """Stop without waiting; what was not delivered is published again by whoever owns the shard next."""
        self._reader.close()
        self._producer.purge()
        self._producer.flush(1.0)

    def _produce(self, topic: str, key: bytes, value: bytes | None, headers: Headers, partition: int) -> None:
        while not self._queued(topic, key, value, headers, partition):
            # The queue is full: wait for deliveries. If there are none for so long, the broker is away.
            before = len(self._producer)
            self._producer.poll(STALL_S)
            if len(self._producer) >= before:
                raise KafkaError(
                    f"Kafka took no record for {STALL_S:.0f} s while publishing features. Check kafka.bootstrap"
                )
        self._producer.poll(0)

    def _queued(self, topic: str, key: bytes, value: bytes | None, headers: Headers, partition: int) -> bool:
        try:
            self._producer.produce(topic, value, key, partition, on_delivery=self._on_delivery, headers=list(headers))
        except BufferError:
            return False
        return True

    def _on_delivery(self, error: confluent_kafka.KafkaError | None, _message: object) -> None:
        if error is not None and error.code() != confluent_kafka.KafkaError._PURGE_QUEUE:
            self._failed = error
