"""Partitions move between workers on real Kafka, under load: nothing lost, nothing scored twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.topics import EVENTS_CLICK, INPUTS
from tests.worker_harness import Reader, Worker, committed, events, produce, until, worker
from worker.config import Config, KafkaConfig
from worker.errors import TopicError
from worker.kafka.admin import create_topics
from worker.kafka.clients import consumer_config, membership, transactional_config

SCORES = ("scores.ctr", "scores.sentiment", "scores.intent")
pytestmark = pytest.mark.real


def test_partitions_move_without_loss_or_repeat(kafka_config: dict[str, Any]) -> None:
    kafka = msgspec.convert(kafka_config, KafkaConfig)
    create_topics(kafka)
    config = msgspec.convert({"kafka": kafka_config, "model": {"artifact": "null"}}, Config)
    reader = Reader(kafka, *SCORES)
    enough, sent = threading.Event(), [0]

    def feed() -> None:
        producer = Producer({"bootstrap.servers": kafka.bootstrap})
        while not enough.is_set():
            for topic in INPUTS:
                produce(kafka, topic, events(10, start=sent[0], text="hello"), producer=producer)
                sent[0] += 10
            enough.wait(0.05)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with worker(config) as first:
            until(lambda: read_by(first) > 100, "the first worker's events")
            with worker(config) as second:
                until(lambda: read_by(second) > 100, "the second worker's events")
            before = read_by(first)
            until(lambda: read_by(first) > before + 200, "events after moving back")
            enough.set()
            feeder.join()
            until(lambda: len({m.value() for m in reader.read()}) >= sent[0], "all scores")
            until(lambda: committed(kafka) == sent[0], "all commits")
    finally:
        enough.set()
        feeder.join()
    scored = Counter(json.loads(m.value())["event_id"] for m in reader.read())
    assert set(scored) == {f"e{n}" for n in range(sent[0])}
    assert max(scored.values()) == 1, "handed over without finishing: scored twice"


def test_a_topic_made_again_is_refused_rather_than_taken_for_the_old_one(kafka_config: dict[str, Any]) -> None:
    kafka = msgspec.convert(kafka_config, KafkaConfig)
    create_topics(kafka)
    config = msgspec.convert({"kafka": kafka_config, "model": {"artifact": "null"}}, Config)
    produce(kafka, "events.click", events(20), key="one partition")
    produce(kafka, "events.review", events(20, text="hello"))
    with worker(config):
        until(lambda: committed(kafka) == 40, "all commits")
    name = kafka.topic("events.click")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.delete_topics([name])[name].result(timeout=30)
    until(lambda: name not in admin.list_topics(timeout=10).topics, "the topic's end")
    create_topics(kafka)
    produce(kafka, "events.click", events(60), key="one partition")
    error = Worker(config).ends()
    assert isinstance(error, TopicError)
    assert f"{name} was deleted and made again" in str(error)


@pytest.mark.parametrize("protocol", ["consumer", "eager"])
def test_the_other_group_protocols_share_and_move_partitions_too(kafka_config: dict[str, Any], protocol: str) -> None:
    kafka_config["group_protocol"] = protocol
    kafka = msgspec.convert(kafka_config, KafkaConfig)
    create_topics(kafka)
    config = msgspec.convert({"kafka": kafka_config, "model": {"artifact": "null"}}, Config)
    reader = Reader(kafka, *SCORES)
    with worker(config) as first:
        for topic in INPUTS:
            produce(kafka, topic, events(50, text="hello"))
        until(lambda: read_by(first) == 150, "the first worker's events")
        with worker(config) as second:
            until(lambda: bool(second.value("transactions_total", result="opened")), "the second worker")
            sent = 150
            while not read_by(second):
                for topic in INPUTS:
                    produce(kafka, topic, events(10, start=sent, text="hello"))
                    sent += 10
        until(lambda: len(reader.read()) >= sent, "all scores")
    scored = Counter(json.loads(m.value())["source"]["offset"] for m in reader.read())
    assert sum(scored.values()) == sent, "scored twice, or not at all"


def read_by(running: Worker) -> float:
    return sum(running.value("events_total", topic=topic) for topic in INPUTS)


def test_a_client_that_is_no_member_has_no_membership(kafka_config: dict[str, Any]) -> None:
    """Why `membership` gives None: from a client that has not joined yet the broker takes any offset."""
    kafka = msgspec.convert(kafka_config, KafkaConfig)
    create_topics(kafka, contracts=[EVENTS_CLICK])
    topic, group = kafka.topic(EVENTS_CLICK), f"{kafka.group_prefix}.worker"
    owner = Consumer(consumer_config(kafka, group))
    other = Consumer(consumer_config(kafka, group, session_timeout_ms=6000, max_poll_interval_ms=6000))
    owner.subscribe([topic])
    until(lambda: owner.poll(0.1) is None and bool(owner.assignment()), "an owner of the partitions")
    producer = Producer(transactional_config(kafka, f"{kafka.group_prefix}.x", 30_000))
    producer.init_transactions(20)

    def taken(offset: int) -> bool:
        producer.begin_transaction()
        try:
            producer.send_offsets_to_transaction(
                [TopicPartition(topic, 0, offset)], other.consumer_group_metadata(), 20
            )
            producer.commit_transaction(20)
        except KafkaException as error:
            producer.abort_transaction(20)
            if error.args[0].code() != KafkaError.UNKNOWN_MEMBER_ID:
                raise
        return bool(owner.committed([TopicPartition(topic, 0)], timeout=20)[0].offset == offset)

    assert membership(other) is None
    assert taken(41), "the broker has become stricter: membership() may go"
    other.subscribe([topic])
    until(lambda: owner.poll(0.01) is None and other.poll(0.1) is None and bool(other.assignment()), "both are members")
    assert membership(other) is not None
    until(lambda: owner.poll(0.01) is None and not other.memberid(), "expelled for not having polled")
    assert membership(other) is None
    assert not taken(42), "an expelled client's metadata keeps its generation"
    owner.close()
    other.close()
