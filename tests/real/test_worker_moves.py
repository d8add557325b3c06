"""Partitions move between workers on real Kafka, under load: nothing lost, nothing scored twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from schemas.topics import INPUTS
from tests.worker_harness import Reader, Worker, committed, events, produce, until, worker
from worker.config import Config, KafkaConfig
from worker.errors import TopicError
from worker.kafka.admin import create_topics

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
