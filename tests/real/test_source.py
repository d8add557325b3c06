"""What only the real client shows of the source: a pause outlives a revocation in librdkafka, and must not in ours."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import msgspec
import pytest

from schemas.topics import EVENTS_CLICK, TOPICS
from tests.worker_harness import events, produce, until
from worker.config import KafkaConfig
from worker.kafka.admin import create_topics, topic_ids
from worker.kafka.records import Partition
from worker.kafka.source import KafkaSource

PARTITIONS = TOPICS[EVENTS_CLICK].partitions
pytestmark = pytest.mark.real


class Member:
    """A source of the test's group, what it holds and what it has read."""

    def __init__(self, kafka: KafkaConfig) -> None:
        topic = kafka.topic(EVENTS_CLICK)
        self.source = KafkaSource(kafka, topic_ids(kafka, [topic]), f"{kafka.group_prefix}.worker")
        self.held: set[Partition] = set()
        self.read: set[tuple[int, int]] = set()

    def poll(self) -> None:
        polled = self.source.poll(1000, 0.1, lambda gone: None)
        self.held.difference_update(polled.lost)
        self.held.update(polled.assigned)
        self.read.update((record.partition, record.offset) for record in polled.records)

    def holds(self, count: int) -> bool:
        self.poll()
        return len(self.held) == count

    def has_read(self, count: int) -> bool:
        self.poll()
        return len(self.read) >= count

    def close(self) -> None:
        self.source.close()


@pytest.mark.parametrize("protocol", ["cooperative", "eager", "consumer"])
def test_a_partition_that_was_paused_when_it_left_is_read_when_it_comes_back(
    kafka_config: dict[str, Any], protocol: str
) -> None:
    kafka = msgspec.convert({**kafka_config, "group_protocol": protocol}, KafkaConfig)
    create_topics(kafka, contracts=[EVENTS_CLICK])
    with closing(Member(kafka)) as first:
        until(lambda: first.holds(PARTITIONS), "all partitions")
        first.source.pause()
        with closing(Member(kafka)) as second:
            half = PARTITIONS // 2
            until(lambda: first.holds(half) & second.holds(half), "half of them each")  # not "and": both must poll
            first.source.resume()  # the load is over while the other has half of them
        until(lambda: first.holds(PARTITIONS), "all partitions again")
        produce(kafka, EVENTS_CLICK, events(200))
        until(lambda: first.has_read(200), "every partition's events")
        assert len({partition for partition, _ in first.read}) == PARTITIONS


def test_a_partition_that_was_paused_is_read_again_after_a_rewind(kafka_config: dict[str, Any]) -> None:
    kafka = msgspec.convert(kafka_config, KafkaConfig)
    create_topics(kafka, contracts=[EVENTS_CLICK])
    produce(kafka, EVENTS_CLICK, events(200))
    with closing(Member(kafka)) as member:
        until(lambda: member.has_read(200), "every partition's events")
        member.source.pause()
        member.source.rewind(member.held)
        member.read.clear()
        until(lambda: member.has_read(200), "every partition's events once more")
