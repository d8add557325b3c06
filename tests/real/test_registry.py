"""A shop that writes Avro through a schema registry: real Kafka, a real registry, the serialiser that shops use."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka.schema_registry import (
    Schema,
    SchemaReference,
    SchemaRegistryClient,
    topic_subject_name_strategy,
)
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.real.conftest import server
from tests.servers import free_ports, or_skip, registry_jar
from tests.worker_harness import Reader, Worker, committed, produce, until, worker
from worker.config import Config, KafkaConfig
from worker.errors import RegistryError
from worker.kafka.admin import create_topics
from worker.tools.doctor import examine

pytestmark = pytest.mark.real
API = "apis/ccompat/v7"
OWN = frozenset({"event_id", "output_id", "source", "process_time_ms"})
"""What each record's score has for itself."""
MONEY = {"type": "record", "name": "shop.Money", "fields": [{"name": "amount", "type": "double"}]}


class Registry:
    """A registry on a port of its own, started and stopped at will; schemas end with it."""

    def __init__(self, jar: Path, folder: Path) -> None:
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}/{API}"
        self._command = [
            *("java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dquarkus.http.host=127.0.0.1"),
            *(f"-Dquarkus.http.port={self._port}", "-jar", str(jar)),
        ]
        self._folder = folder

    def running(self) -> contextlib.AbstractContextManager[None]:
        return server(self._command, self._folder / "registry.out", self._answers)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", f"/{API}/subjects")
            return connection.getresponse().status == 200
        return False


@pytest.fixture(scope="module")
def stopped_registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    with or_skip():
        jar = registry_jar()
    return Registry(jar, tmp_path_factory.mktemp("registry"))


@pytest.fixture
def registry(stopped_registry: Registry) -> Iterator[Registry]:
    with stopped_registry.running():
        yield stopped_registry


def review_schema(**more: Any) -> dict[str, Any]:
    """A shop's: time as a logical type, what may be missing nullable, money a type of its own, more than we read."""
    fields: dict[str, Any] = {
        "event_id": "string",
        "event_time_ms": {"type": "long", "logicalType": "timestamp-micros"},
        "user_id": ["null", "string"],
        "item_id": ["null", "string"],
        "text": "string",
        "stars": ["null", "float"],
        "category": ["null", {"type": "enum", "name": "shop.Category", "symbols": ["books", "shoes"]}],
        "paid": "shop.Money",
        **more,
    }
    return {
        "type": "record",
        "name": "shop.Review",
        "fields": [{"name": name, "type": kind} for name, kind in fields.items()],
    }


class Shop:
    """Writes reviews as Confluent's own serialiser does."""

    def __init__(self, kafka: KafkaConfig, url: str, **more: Any) -> None:
        self._topic = kafka.topic("events.review")
        client = SchemaRegistryClient({"url": url})
        client.register_schema("shop.Money", Schema(json.dumps(MONEY), "AVRO"))
        to_money = SchemaReference("shop.Money", "shop.Money", 1)
        settings = {"subject.name.strategy": topic_subject_name_strategy}
        self._serialise = AvroSerializer(
            client, Schema(json.dumps(review_schema(**more)), "AVRO", [to_money]), conf=settings
        )
        self._client = client

    def frame(self, review: dict[str, Any]) -> bytes:
        avro = review | {"event_time_ms": review["event_time_ms"] * 1000, "paid": {"amount": 9.5}}
        framed = self._serialise(avro, SerializationContext(self._topic, MessageField.VALUE))
        assert framed is not None
        return framed

    def close(self) -> None:
        self._client.close()


def reviews(n: int, prefix: str) -> list[dict[str, Any]]:
    texts = ["质量很好，很喜欢", "arrived broken, awful", "还可以", "fine 👍🏽"]
    now_ms = time.time_ns() // 1_000_000
    return [
        {
            "event_id": f"{prefix}{i}",
            "event_time_ms": now_ms,
            "user_id": None if i % 5 == 0 else f"u{i % 7}",
            "item_id": f"i{i % 3}",
            "text": texts[i % 4],
            "stars": None if i % 3 == 0 else float(1 + i % 5),
            "category": None if i % 4 == 0 else "shoes",
        }
        for i in range(n)
    ]


def scores(records: list[Any], prefix: str) -> dict[str, Any]:
    """By the event's number, what was said of it."""
    found: dict[str, Any] = {}
    for message in records:
        score = json.loads(message.value())
        if score["event_id"].startswith(prefix):
            number = score["event_id"].removeprefix(prefix)
            assert number not in found, "scored twice"
            found[number] = {name: value for name, value in score.items() if name not in OWN}
    return found


def test_avro_events_are_scored_as_the_same_json_is(kafka_config: dict[str, Any], registry: Registry) -> None:
    config = msgspec.convert(
        {"kafka": kafka_config, "registry": {"url": registry.url}, "model": {"artifact": "null"}}, Config
    )
    kafka = config.kafka
    create_topics(kafka)
    found, dead = Reader(kafka, "scores.sentiment"), Reader(kafka, "events.dead")
    (check,) = [check for check in examine(config, replication=1) if check.name == "registry"]
    assert check.well, check
    with contextlib.closing(Shop(kafka, registry.url)) as shop, worker(config):
        as_json = reviews(200, "j")
        produce(kafka, "events.review", as_json)
        produce(
            kafka, "events.review", [shop.frame(review | {"event_id": f"a{n}"}) for n, review in enumerate(as_json)]
        )
        bad = [
            shop.frame(as_json[0])[:-3],
            b"\x00\x00\x0f\x42\x40no such schema",
            shop.frame(as_json[0] | {"text": ""}),
        ]
        produce(kafka, "events.review", bad)
        found.wait(400)
        dead.wait(3)
        until(lambda: committed(kafka) == 403, "all commits")
    assert scores(found.read(), "a") == scores(found.read(), "j")
    letters = {message.value(): dict(message.headers())["millrace-reason"].decode() for message in dead.read()}
    assert letters == dict(zip(bad, ("not_json", "not_json", "empty_text"), strict=True)), "the bytes as they came"


def test_a_worker_without_its_registry_goes_on_with_what_it_knows_and_ends_at_what_it_does_not(
    kafka_config: dict[str, Any], stopped_registry: Registry
) -> None:
    # Few tries and short: how long it waits is the client's, that nothing is lost is ours.
    options = {"max.retries": 1, "retries.wait.ms": 50}
    settings = {"url": stopped_registry.url, "options": options}
    config = msgspec.convert({"kafka": kafka_config, "registry": settings, "model": {"artifact": "null"}}, Config)
    kafka = config.kafka
    create_topics(kafka)
    found, dead = Reader(kafka, "scores.sentiment"), Reader(kafka, "events.dead")
    known, unasked = reviews(40, "k"), reviews(20, "n")

    def frames() -> list[bytes]:
        """Registered anew with each start, in one order, so with the same ids; ``unasked`` have a schema of theirs."""
        with contextlib.closing(Shop(kafka, stopped_registry.url)) as shop:
            first = [shop.frame(review) for review in known]
        with contextlib.closing(Shop(kafka, stopped_registry.url, colour="string")) as shop:
            return first + [shop.frame(review | {"colour": "red"}) for review in unasked]

    with stopped_registry.running():
        framed = frames()
        running = Worker(config)
        produce(kafka, "events.review", framed[:20])
        found.wait(20)
    produce(kafka, "events.review", framed[20:40])
    found.wait(40)
    produce(kafka, "events.review", framed[40:])
    error = running.ends()
    assert isinstance(error, RegistryError), error
    assert "cannot be reached" in str(error)
    with stopped_registry.running():
        assert frames() == framed
        with worker(config):
            found.wait(60)
            until(lambda: committed(kafka) == 60, "all commits")
    assert len(scores(found.read(), "k")) == 40
    assert len(scores(found.read(), "n")) == 20
    assert not dead.read()
