"""Topics read without balancing: committed records of some partitions up to an end, and what is written after it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from worker.config import KafkaConfig
from worker.errors import KafkaError, TopicError
from worker.kafka.clients import REQUEST_TIMEOUT_S, consumer_config, raise_if_final, translate, watermarks
from worker.kafka.records import Partition

STALL_S: Final = 30.0
"""Partitions of which nothing is heard for so long before their ends cannot be read."""
FETCH_WAIT_MS: Final = 100
"""An end where no record stands (transactions leave marks there) is told only by an empty answer, after so long."""
FOLLOW_WAIT_MS: Final = 500
"""For who follows a topic for as long as a role runs: fewer empty answers."""
_EOF: Final = confluent_kafka.KafkaError._PARTITION_EOF


class Readback:
    """A reader that is kept, for making one costs more than reading a thousand records. One read at a time.

    ``name`` is its group, which tells it in the broker's log and whose offsets `before` asks for; nothing is committed
    or balanced. Raises `KafkaError`.
    """

    def __init__(self, kafka: KafkaConfig, name: str, fetch_wait_ms: int = FETCH_WAIT_MS) -> None:
        settings = {"enable_partition_eof": True, "fetch_wait_max_ms": fetch_wait_ms}
        self._consumer = Consumer(consumer_config(kafka, f"{kafka.group_prefix}.{name}", **settings))
        self._embedded = kafka.embedded
        self._next: dict[Partition, int] = {}  # the first offset of each partition that is not read yet

    def places(self, topic: str, since_ms: int | None = None) -> list[TopicPartition]:
        """Where each partition of a topic (the cluster's name) begins, or its first record of that time or later.

        Partitions without such a record are left out. Raises `TopicError` where the topic is missing.
        """
        try:
            found = self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S).topics.get(topic)
            if found is None or not found.partitions:
                raise TopicError(f"topics missing: {topic}. Run `millrace topics create`")
            # The embedded broker cannot look for times.
            if since_ms is None or self._embedded:
                return [TopicPartition(topic, each, OFFSET_BEGINNING) for each in found.partitions]
            asked = [TopicPartition(topic, each, since_ms) for each in found.partitions]
            first = self._consumer.offsets_for_times(asked, timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error, doing=f"asking for the partitions of {topic}") from error
        # Where nothing is that young the answer is the end, as -1: nothing to read there.
        return [part for part in first if part.offset >= 0]

    def read(self, parts: Sequence[TopicPartition]) -> Generator[Any, None, None]:
        """Messages of the partitions, each from its offset (its beginning where that is below 0) to its present end.

        Raises `KafkaError` when a partition cannot be read to its end.
        """
        try:
            yield from self.follow(parts)
        finally:
            self._consumer.unassign()

    def follow(self, parts: Sequence[TopicPartition]) -> Iterator[Any]:
        """As `read`, and stays there: `poll` and `reach` go on."""
        yield from self._from({(part.topic, part.partition): part.offset for part in parts}, {})

    def before(self, parts: Sequence[TopicPartition], count: int) -> Iterator[Any]:
        """Up to ``count`` messages of each partition that stand right before what the group has committed.

        Nothing where it has committed nothing.
        """
        try:
            found = self._consumer.committed(list(parts), timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error, doing="reading the group's offsets") from error
        ends = {(part.topic, part.partition): part.offset for part in found if part.offset >= 0}
        try:
            for message in self._from({place: max(0, end - count) for place, end in ends.items()}, ends):
                if message.offset() < ends[message.topic(), message.partition()]:
                    yield message
        finally:
            self._consumer.unassign()

    def poll(self) -> list[Any]:
        """Messages that have come since, of the partitions that are followed; never waits."""
        try:
            return [message for message in self._consumer.consume(1000, 0) if self._good(message)]
        except KafkaException as error:
            raise translate(error, doing=f"reading {_topics(self._next)}") from error

    def reach(self, ends: Mapping[Partition, int]) -> Iterator[Any]:
        """Messages of the partitions that are followed, until each of these has been read up to its end, an offset.

        They may grow meanwhile, or others may: those records come too. Raises `KafkaError` when an end is not reached.
        """
        left = {place: end for place, end in ends.items() if self._next[place] < end}
        deadline = time.monotonic() + STALL_S
        while left:
            heard = False
            for message in self._consumed():
                place = (message.topic(), message.partition())
                heard = heard or place in left
                if self._good(message):
                    yield message
                # The end is told by the last record before it, or, where that is no record, by the client.
                if place in left and self._next[place] >= left[place]:
                    del left[place]
            if heard:
                deadline = time.monotonic() + STALL_S
            elif time.monotonic() > deadline:
                raise KafkaError(
                    f"{_topics(left)} gave nothing for {STALL_S:.0f} s. Check kafka.bootstrap and the leaders"
                )

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _from(self, first: Mapping[Partition, int], last: Mapping[Partition, int]) -> Iterator[Any]:
        """Messages from the ``first`` offset of each partition to its end, or to ``last`` where that is earlier."""
        self._next, ends = {}, {}
        try:
            for place, offset in first.items():
                low, high = watermarks(self._consumer, TopicPartition(*place), STALL_S)
                self._next[place] = max(low, offset)
                ends[place] = min(high, last.get(place, high))
            self._consumer.assign([TopicPartition(*place, offset) for place, offset in self._next.items()])
        except KafkaException as error:
            raise translate(error, doing=f"reading {_topics(first)}") from error
        yield from self.reach(ends)

    def _consumed(self) -> Sequence[Any]:
        try:
            # consume() waits until it has all that it was asked for, so the first is waited for alone.
            first = self._consumer.poll(0.1)
            return () if first is None else (first, *self._consumer.consume(1000, 0))
        except KafkaException as error:
            raise translate(error, doing=f"reading {_topics(self._next)}") from error

    def _good(self, message: Any) -> bool:
        """Whether this is a record; where it is not, it may tell of an end. Raises for what is final."""
        error, place = message.error(), (message.topic(), message.partition())
        if error is None:
            self._next[place] = message.offset() + 1
        elif error.code() == _EOF:
            self._next[place] = max(self._next.get(place, 0), message.offset())
        else:
            raise_if_final(error, doing=f"reading {_topics(self._next)}")
        return error is None


def _topics(places: Mapping[Partition, int]) -> str:
    return ", ".join(sorted({topic for topic, _ in places}))
