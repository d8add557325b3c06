"""Topics read without a group: a compacted one from its beginning and on, and the past of partitions that are ours."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import confluent_kafka
from confluent_kafka import Consumer, KafkaException, TopicPartition

from worker.config import KafkaConfig
from worker.errors import KafkaError, TopicError
from worker.kafka.clients import REQUEST_TIMEOUT_S, consumer_config, translate, watermarks

READ_TIMEOUT_S: Final = 30.0
_code: Final = confluent_kafka.KafkaError


class TopicFeed:
    """All of a topic in order of partition and offset, then what comes. Raises `TopicError`, `KafkaError`."""

    def __init__(self, kafka: KafkaConfig, topic: str) -> None:
        self._topic, self._embedded = topic, kafka.embedded
        group = f"{kafka.group_prefix}.feed-{uuid.uuid4().hex[:8]}"
        self._consumer = Consumer(consumer_config(kafka, group, enable_partition_eof=True))

    def load(self, partition: int | None = None, since_ms: int | None = None) -> Iterator[Any]:
        """Messages up to the ends at the time of the call, of one partition or all, from a time of writing on or all.

        Raises when the ends are not reached in `READ_TIMEOUT_S`.
        """
        try:
            found = self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S).topics.get(self._topic)
            if found is None or not found.partitions:
                raise TopicError(f"topics missing: {self._topic}. Run `millrace topics create`")
            wanted = found.partitions if partition is None else [partition]
            yield from _read(self._consumer, self._topic, {part: self._stretch(part, since_ms) for part in wanted})
        except KafkaException as error:
            raise translate(error, doing=f"reading {self._topic}") from error

    def poll(self) -> list[Any]:
        """Messages that have come since; never waits."""
        try:
            return [message for message in self._consumer.consume(500, 0.0) if _good(message)]
        except KafkaException as error:
            raise translate(error, doing=f"reading {self._topic}") from error

    def _stretch(self, partition: int, since_ms: int | None) -> tuple[int, int]:
        low, high = watermarks(self._consumer, TopicPartition(self._topic, partition))
        if since_ms is not None and not self._embedded:  # the embedded broker finds no offsets by time
            asked = TopicPartition(self._topic, partition, since_ms)
            (first,) = self._consumer.offsets_for_times([asked], timeout=REQUEST_TIMEOUT_S)
            low = max(low, first.offset) if first.offset >= 0 else high  # below 0: nothing is as new
        return low, high

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()


def read_before(kafka: KafkaConfig, group: str, topic: str, partitions: Iterable[int], count: int) -> Iterator[Any]:
    """Up to ``count`` messages of each partition that stand right before what ``group`` has committed.

    Nothing where it has committed nothing. Raises `KafkaError`.
    """
    consumer = Consumer(consumer_config(kafka, group, enable_partition_eof=True))
    try:
        stretches = {}
        for part in consumer.committed([TopicPartition(topic, each) for each in partitions], timeout=REQUEST_TIMEOUT_S):
            low, high = watermarks(consumer, part)
            if part.offset > low:
                stretches[part.partition] = (max(low, part.offset - count), min(part.offset, high))
        yield from _read(consumer, topic, stretches)
    except KafkaException as error:
        raise translate(error, doing=f"reading {topic}") from error
    finally:
        consumer.close()


def _read(consumer: Consumer, topic: str, stretches: Mapping[int, tuple[int, int]]) -> Iterator[Any]:
    """Messages of each partition from the first of its two offsets to before the second; the consumer stays there."""
    consumer.assign([TopicPartition(topic, part, start) for part, (start, _) in stretches.items()])
    ends = {part: end for part, (start, end) in stretches.items() if start < end}
    deadline = time.monotonic() + READ_TIMEOUT_S
    while ends:
        if time.monotonic() > deadline:
            raise KafkaError(f"{topic} was not read to its end within {READ_TIMEOUT_S:.0f} s. Check the broker")
        for message in consumer.consume(500, 0.2):
            part = message.partition()
            if _good(message):
                if message.offset() < ends.get(part, 0):
                    yield message
                if message.offset() + 1 < ends.get(part, 0):
                    continue
            elif message.error().code() != _code._PARTITION_EOF:
                continue
            # What stood last may be compacted away, or the marker of a transaction: then only the end itself tells.
            ends.pop(part, None)


def _good(message: Any) -> bool:
    """Whether this is a record. Raises KafkaException for what the client cannot mend by itself."""
    error = message.error()
    if error is None:
        return True
    passing = error.retriable() or error.code() in (
        _code._PARTITION_EOF,
        _code._TRANSPORT,
        _code._ALL_BROKERS_DOWN,
        _code._TIMED_OUT,
        _code._RESOLVE,
    )
    if not passing:
        raise KafkaException(error)
    return False
