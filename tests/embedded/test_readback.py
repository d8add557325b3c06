"""Topics read to their ends on the broker in the process: nothing twice, nothing lost to who goes on from there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.worker_harness import until
from worker.config import KafkaConfig
from worker.errors import TopicError
from worker.kafka.admin import create_topics
from worker.kafka.clients import consumer_config
from worker.kafka.readback import Readback


@pytest.fixture
def kafka(embedded_broker: str) -> KafkaConfig:
    return KafkaConfig(bootstrap=embedded_broker, embedded=True, fold_shards=4)


@pytest.fixture
def topic(kafka: KafkaConfig) -> str:
    create_topics(kafka)
    return kafka.topic("events.dead")


@pytest.fixture
def reader(kafka: KafkaConfig) -> Iterator[Readback]:
    reader = Readback(kafka, "test")
    yield reader
    reader.close()


def write(kafka: KafkaConfig, topic: str, values: range, partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for n in values:
        producer.produce(topic, str(n).encode(), None, partition)
    assert producer.flush(20) == 0


def test_what_is_written_while_the_past_is_read_comes_once(kafka: KafkaConfig, topic: str, reader: Readback) -> None:
    write(kafka, topic, range(100))
    past = reader.follow(reader.places(topic))
    seen = [next(past).value()]
    write(kafka, topic, range(100, 150))
    write(kafka, topic, range(150, 200), partition=1)
    seen += [message.value() for message in past]
    assert len(seen) >= 100
    until(lambda: seen.extend(m.value() for m in reader.poll()) or len(seen) >= 200, "what came later")
    assert sorted(seen, key=int) == [str(n).encode() for n in range(200)]
    write(kafka, topic, range(200, 210), partition=1)
    assert [m.value() for m in reader.reach({(topic, 1): 55})][:5] == [str(n).encode() for n in range(200, 205)]


def test_a_reader_is_used_again_and_begins_where_it_is_told(kafka: KafkaConfig, topic: str, reader: Readback) -> None:
    assert list(reader.read(reader.places(topic))) == []
    write(kafka, topic, range(10))
    for first in (-1, 0, 7, 10):
        found = [message.offset() for message in reader.read([TopicPartition(topic, 0, first)])]
        assert found == list(range(max(first, 0), 10))


def test_the_last_before_the_groups_offset(kafka: KafkaConfig, topic: str, reader: Readback) -> None:
    write(kafka, topic, range(10))
    parts = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    assert list(reader.before(parts, 3)) == [], "nothing was committed"
    group = Consumer(consumer_config(kafka, f"{kafka.group_prefix}.test"))
    group.commit(offsets=[TopicPartition(topic, 0, 6)], asynchronous=False)
    group.close()
    assert [message.offset() for message in reader.before(parts, 3)] == [3, 4, 5]
    assert [message.offset() for message in reader.before(parts, 100)] == [0, 1, 2, 3, 4, 5]


def test_a_missing_topic_is_said(kafka: KafkaConfig, reader: Readback) -> None:
    with pytest.raises(TopicError, match=r"topics missing: events\.none\. Run `millrace topics create`"):
        reader.places("events.none")
