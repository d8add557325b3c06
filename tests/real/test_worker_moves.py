"""Partitions move between workers on real Kafka, under load: nothing lost, nothing scored twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from schemas.topics import INPUTS
from tests.worker_harness import Reader, Worker, committed, events, produce, until, worker
from worker.admin import create_topics
from worker.config import Config, KafkaConfig

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


def read_by(running: Worker) -> float:
    return sum(running.value("events_total", topic=topic) for topic in INPUTS)
