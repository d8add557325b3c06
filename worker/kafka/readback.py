"""Committed records of some partitions, from a place up to where they end now. Belongs to no group."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka.clients import REQUEST_TIMEOUT_S, consumer_config, translate, watermarks

STALL_S: Final = 30.0
"""A partition that yields nothing for so long before its end cannot be read."""
FETCH_WAIT_MS: Final = 100
"""An end where no record stands (transactions leave marks there) is told only by an empty answer, after so long."""
_EOF: Final = confluent_kafka.KafkaError._PARTITION_EOF


class Readback:
    """A reader that is kept, for making one costs more than reading a thousand records. One `read` at a time.

    ``name`` tells it in the broker's log; nothing is committed or balanced. Raises `KafkaError`.
    """

    def __init__(self, kafka: KafkaConfig, name: str) -> None:
        settings = {"enable_partition_eof": True, "fetch_wait_max_ms": FETCH_WAIT_MS}
        self._consumer = Consumer(consumer_config(kafka, f"{kafka.group_prefix}.{name}", **settings))

    def partitions(self, topic: str) -> list[TopicPartition]:
        """Every partition of a topic (the cluster's name), from its beginning; none where the topic is missing."""
        try:
            found = self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S).topics.get(topic)
        except KafkaException as error:
            raise translate(error, doing=f"asking for the partitions of {topic}") from error
        return [] if found is None else [TopicPartition(topic, each, OFFSET_BEGINNING) for each in found.partitions]

    def since(self, parts: Sequence[TopicPartition], time_ms: int) -> list[TopicPartition]:
        """Where in the partitions that have any the first record of that time or later stands."""
        asked = [TopicPartition(part.topic, part.partition, time_ms) for part in parts]
        try:
            first = self._consumer.offsets_for_times(asked, timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error, doing=f"looking for a time in {parts[0].topic}") from error
        # Where nothing is that young the answer is the end, as -1: nothing to read there.
        return [part for part in first if part.offset >= 0]

    def read(self, parts: Sequence[TopicPartition]) -> Generator[Any, None, None]:
        """Messages of the partitions, each from its offset (its beginning where that is below 0) to its present end.

        Raises `KafkaError` when a partition cannot be read to its end.
        """
        topics = ", ".join(sorted({part.topic for part in parts}))
        try:
            begin, ends = self._bounds(parts)
            if begin:
                self._consumer.assign(begin)
                yield from self._drain(ends, topics)
        except KafkaException as error:
            raise translate(error, doing=f"reading {topics}") from error
        finally:
            self._consumer.unassign()

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _bounds(self, parts: Sequence[TopicPartition]) -> tuple[list[TopicPartition], dict[tuple[str, int], int]]:
        """Where to begin, and the ends, of the partitions that have something to read."""
        begin, ends = [], {}
        for part in parts:
            low, high = watermarks(self._consumer, part)
            first = low if part.offset < 0 else max(low, part.offset)
            if first < high:
                begin.append(TopicPartition(part.topic, part.partition, first))
                ends[part.topic, part.partition] = high
        return begin, ends

    def _drain(self, ends: dict[tuple[str, int], int], topics: str) -> Iterator[Any]:
        progress = time.monotonic()
        while time.monotonic() - progress < STALL_S:
            # consume() waits until it has all that it was asked for, so the first is waited for alone.
            first = self._consumer.poll(0.1)
            for message in () if first is None else (first, *self._consumer.consume(1000, 0)):
                progress = time.monotonic()
                error = message.error()
                place = (message.topic(), message.partition())
                if error is None:
                    yield message
                elif error.code() != _EOF:
                    if error.retriable():
                        continue
                    raise translate(error, doing=f"reading {topics}") from KafkaException(error)
                # The end is told by the last record before it, or, where that is no record, by the client.
                if place in ends and (error is not None or message.offset() + 1 >= ends[place]):
                    # It may grow while others are read: those records come too.
                    del ends[place]
                    if not ends:
                        return
        raise KafkaError(f"{topics} gave nothing for {STALL_S:.0f} s. Check kafka.bootstrap and the leaders")
