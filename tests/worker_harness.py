"""A worker on a thread, and what a test needs to feed and watch it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client import CollectorRegistry

from schemas.topics import INPUTS
from worker.config import Config, KafkaConfig
from worker.scoring.pipeline import run

DEADLINE_S = 90.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S} s"
        time.sleep(0.02)


class Worker:
    """``run`` on a thread of its own."""

    def __init__(self, config: Config) -> None:
        self.stop, self.error = threading.Event(), None
        self.registry = CollectorRegistry()
        self.config = config
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            run(self.config, self.stop, self.registry)
        except Exception as error:  # noqa: BLE001 given to the test by `ends`
            self.error = error

    def ends(self) -> Exception | None:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        return self.error

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"millrace_worker_{name}", labels) or 0.0


@contextmanager
def worker(config: Config) -> Iterator[Worker]:
    running = Worker(config)
    try:
        yield running
    finally:
        running.stop.set()
        error = running.ends()
    if error is not None:
        raise error


def produce(
    kafka: KafkaConfig, topic: str, values: list[Any], key: str | None = None, producer: Producer | None = None
) -> None:
    producer = producer or Producer({"bootstrap.servers": kafka.bootstrap})
    for n, value in enumerate(values):
        data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        producer.produce(kafka.topic(topic), data, key or f"k{n}")
    assert producer.flush(DEADLINE_S) == 0


def events(n: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    base = {"event_time_ms": int(time.time() * 1000)}
    return [{"event_id": f"e{i}", "user_id": f"u{i % 7}", **base, **more} for i in range(start, start + n)]


def positions(consumer: Any, kafka: KafkaConfig, topics: Iterable[str], offset: int = -1001) -> list[TopicPartition]:
    names = [kafka.topic(topic) for topic in topics]
    found = {name: consumer.list_topics(name, timeout=10).topics[name].partitions for name in names}
    return [TopicPartition(name, partition, offset) for name, parts in found.items() for partition in parts]


class Reader:
    """Everything that was ever written to some topics."""

    def __init__(self, kafka: KafkaConfig, *topics: str) -> None:
        self.records: list[Any] = []
        self._consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "test-reader"})
        self._consumer.assign(positions(self._consumer, kafka, topics, 0))

    def read(self) -> list[Any]:
        for message in self._consumer.consume(1000, 0.05):
            assert message.error() is None, message.error()
            self.records.append(message)
        return self.records

    def wait(self, count: int) -> list[Any]:
        until(lambda: len(self.read()) >= count, f"{count} records")
        return self.records


def committed(kafka: KafkaConfig) -> int:
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": f"{kafka.group_prefix}.worker"})
    found = sum(max(p.offset, 0) for p in consumer.committed(positions(consumer, kafka, INPUTS), timeout=10))
    consumer.close()
    return found
