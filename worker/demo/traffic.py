"""The demo's two ends at Kafka: the shop's events go in at their pace, everything the roles write is read.

A few records are broken on purpose, so that dead letters are seen; `BROKEN` says how and what becomes of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import confluent_kafka
import msgspec

from schemas import topics
from schemas.dead import Reason
from worker.config import KafkaConfig
from worker.demo.meter import Meter
from worker.demo.shop import ShopEvent
from worker.errors import KafkaError
from worker.kafka.clients import REQUEST_TIMEOUT_S, consumer_config, producer_config, translate

OUTPUTS: Final = (
    topics.SCORES_CTR,
    topics.SCORES_SENTIMENT,
    topics.SCORES_INTENT,
    topics.OPINIONS,
    topics.ALERTS_OPINION,
    topics.EVENTS_DEAD,
    topics.FEATURES_USER,
)
BROKEN_EVERY: Final = 97
BROKEN: Final[tuple[tuple[Reason, str, bytes | None], ...]] = (
    ("not_json", topics.EVENTS_REVIEW, "好评！{{{".encode()),
    ("missing_field", topics.EVENTS_SERVICE, b'{"event_id": "broken", "text": "When am I?"}'),
    ("wrong_type", topics.EVENTS_CLICK, b'{"event_id": "broken", "event_time_ms": "yesterday"}'),
    ("empty_text", topics.EVENTS_REVIEW, b'{"event_id": "broken", "event_time_ms": 0, "text": ""}'),
    ("future_time", topics.EVENTS_CLICK, b'{"event_id": "broken", "event_time_ms": 4083955200000}'),
    ("not_utf8", topics.EVENTS_SERVICE, b'{"event_id": "broken", "event_time_ms": 0, "text": "\xff\xfe"}'),
    ("tombstone", topics.EVENTS_CLICK, None),
)
FLUSH_TIMEOUT_S: Final = 30.0
BURST: Final = 500
"""At most so many records are sent in one go, however late they are: the embedded broker keeps little."""

_json = msgspec.json.Encoder().encode


class Traffic:
    """Sends `events` and reads the outputs; `Meter` keeps the score. Not thread-safe. Close it."""

    def __init__(self, kafka: KafkaConfig, events: Iterator[ShopEvent], meter: Meter) -> None:
        self._kafka = kafka
        self._events = events
        self._meter = meter
        self._sent = 0
        self._failed: confluent_kafka.KafkaError | None = None
        self._producer = confluent_kafka.Producer(producer_config(kafka))
        # The embedded broker answers an empty fetch only after this time, and it would be part of every latency.
        config = consumer_config(kafka, f"{kafka.group_prefix}.demo", fetch_wait_max_ms=10)
        self._consumer = confluent_kafka.Consumer(config)
        self._contracts = {kafka.topic(name): name for name in OUTPUTS}
        listed = self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S).topics
        self._parts = [
            confluent_kafka.TopicPartition(name, part, 0)
            for name in self._contracts
            for part in listed[name].partitions
        ]
        self._consumer.assign(self._parts)

    @property
    def sent(self) -> int:
        """Records produced, broken ones too."""
        return self._sent

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()

    def send(self, count: int, *, timed: bool = True) -> None:
        """Produce the next records, at most `BURST`."""
        for _ in range(min(count, BURST)):
            at_s = time.monotonic()
            self._sent += 1
            if self._sent % BROKEN_EVERY == 0:
                _, topic, value = BROKEN[self._sent // BROKEN_EVERY % len(BROKEN) - 1]
                self._meter.sent_broken(topic, at_s)
                self._produce(topic, b"broken", value)
            else:
                event = next(self._events)
                self._meter.sent(event, at_s, timed=timed)
                self._produce(event.topic, event.key, _json(event.event))
        self._producer.poll(0)
        self._check()

    def collect(self, timeout_s: float) -> int:
        """Read what the roles have written, waiting up to ``timeout_s`` for the first record; how many."""
        try:
            messages = self._consumer.consume(BURST, timeout_s)
        except confluent_kafka.KafkaException as error:
            raise translate(error, doing="reading scores") from error
        for message in messages:
            if message.error() is not None:
                raise translate(message.error(), doing="reading scores")
            topic = self._contracts[message.topic()]
            self._meter.received(topic, message.key(), message.value(), time.monotonic())
        return len(messages)

    def collect_rest(self) -> None:
        """Read up to where the outputs end now. Raises `KafkaError` when that cannot be reached."""
        ends = {
            (part.topic, part.partition): self._consumer.get_watermark_offsets(part, timeout=REQUEST_TIMEOUT_S)[1]
            for part in self._parts
        }
        deadline = time.monotonic() + FLUSH_TIMEOUT_S
        while any(
            ends[part.topic, part.partition] > max(part.offset, 0) for part in self._consumer.position(self._parts)
        ):
            if time.monotonic() > deadline:
                raise KafkaError(f"the outputs could not be read to their end within {FLUSH_TIMEOUT_S:.0f} s")
            self.collect(0.1)

    def _produce(self, topic: str, key: bytes, value: bytes | None) -> None:
        try:
            self._producer.produce(self._kafka.topic(topic), value, key, on_delivery=self._delivered)
        except BufferError as error:
            raise KafkaError("the embedded broker takes no more events: use a lower --rate") from error

    def _delivered(self, error: confluent_kafka.KafkaError | None, _: confluent_kafka.Message) -> None:
        self._failed = self._failed or error

    def _check(self) -> None:
        if self._failed is not None:
            raise translate(self._failed, doing="sending events")
