"""The worker as an operator runs it, on a broker inside the process: real client, real threads, null model."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from schemas.folds import decode_block
from schemas.topics import TOPICS
from tests.worker_harness import Reader, Worker, committed, events, produce, until, worker
from worker.config import Config, KafkaConfig
from worker.demo.embedded import EmbeddedBroker, embedded_config
from worker.errors import KafkaError, OffsetLostError, TopicError
from worker.kafka.records import OutMessage
from worker.kafka.sink import Answer, KafkaSink

SCORES = {"events.click": "scores.ctr", "events.review": "scores.sentiment", "events.service": "scores.intent"}
NO_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture
def kafka(broker: EmbeddedBroker) -> KafkaConfig:
    return config_for(broker).kafka


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as embedded:
        embedded.create_topics(TOPICS)
        yield embedded


def config_for(broker: EmbeddedBroker, **sections: Any) -> Config:
    # The embedded broker does not heed a member's leaving: its partitions move when its session times out.
    sections["kafka"] = {"options": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}} | sections.get(
        "kafka", {}
    )
    return embedded_config(broker, NO_REDIS, **{"model": {"artifact": "null"}, **sections})


def test_all_streams_are_scored_and_committed(broker: EmbeddedBroker, kafka: KafkaConfig) -> None:
    produce(kafka, "events.click", events(60, item_id="i", title="red guitar", clicked=True))
    produce(kafka, "events.review", events(40, text="very good", item_id="i", brand="b"))
    produce(kafka, "events.service", events(30, text="where is my order"))
    reader = Reader(kafka, *SCORES.values(), "opinions")
    folds = Reader(kafka, "folds.user", "folds.item")
    with worker(config_for(broker)) as running:
        reader.wait(130 + 80)
        until(lambda: sum(len(decode_block(m.value())) for m in folds.read()) >= 120, "folds")
        until(lambda: running.value("latency_seconds_count", lane="service") == 30, "commits")
        assert running.value("state_reads_total", result="unavailable") > 0
    counts = Counter(message.topic() for message in reader.read())
    assert counts == {"scores.ctr": 60, "scores.sentiment": 40, "scores.intent": 30, "opinions": 80}
    ids = [json.loads(message.value())["output_id"] for message in reader.records]
    assert len(set(ids)) == len(ids)
    assert committed(kafka) == 130
    for message in folds.records:
        assert message.partition() == decode_block(message.value()).shard


def test_bad_input_becomes_dead_letters_and_the_worker_goes_on(broker: EmbeddedBroker, kafka: KafkaConfig) -> None:
    bad = [b"", b"nonsense", b"\xff\xfe", b'{"event_id": 3}', b"[" * 100_000, None]
    bad += [{"event_id": "e", "event_time_ms": 4_070_908_800_000, "text": "2099"}]
    bad += [
        {"event_id": "e", "event_time_ms": 1_700_000_000_000, "text": " \u0000 "},
        {"event_id": "e", "event_time_ms": 1},
    ]
    produce(kafka, "events.service", bad, key="same")
    produce(kafka, "events.service", events(1, text="a" * 200_000), key="same")
    produce(kafka, "events.service", events(3, text="👍🏽 混合 text"), key="same")
    letters, scores = Reader(kafka, "events.dead"), Reader(kafka, "scores.intent")
    with worker(config_for(broker)) as running:
        letters.wait(len(bad))
        scores.wait(4)
        assert running.value("dead_letters_total", reason="future_time") == 1
    assert committed(kafka) == len(bad) + 4
    by_offset = {int(dict(m.headers())["millrace-source-offset"]): m for m in letters.records}
    for offset, value in enumerate(bad):
        original = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        assert (by_offset[offset].value() or b"") == original
        assert by_offset[offset].value() is not None, "a letter without a value would be a deletion"
    reasons = [dict(by_offset[n].headers())["millrace-reason"].decode() for n in range(len(bad))]
    assert reasons == [
        "not_json", "not_json", "not_utf8", "wrong_type", "wrong_type", "tombstone", "future_time", "empty_text",
        "missing_field",
    ]  # fmt: skip


def test_a_topic_with_fields_of_its_own_is_scored_by_its_rules(broker: EmbeddedBroker) -> None:
    broker.create_topics(["web.tracking", "app.tracking"])
    rules = {
        "event_id": "{@topic}-{@partition}-{@offset}",
        "event_time_ms": "meta.sent*1000",
        "action": "map:type(view=impression, pay=purchase, *=-)",
        "user_id": "str:customer",
        "item_id": "product.sku",
        "title": "product.name",
    }
    shop = {
        "topics": {"events.click": "web.tracking"},
        "further_topics": {"app.tracking": "events.click"},
        "fields": {"web.tracking": rules},
    }
    config = config_for(broker, kafka=shop)
    kinds = ["view", "scroll", "pay", "view", "ping"] * 4
    product = {"sku": "k1", "name": "red kettle"}
    rows = [
        {"type": kind, "meta": {"sent": time.time() - 5}, "customer": n % 3, "product": product}
        for n, kind in enumerate(kinds)
    ]
    broken: dict[str, Any] = {**rows[0], "customer": ["no id"]}
    produce(config.kafka, "events.click", [*rows, broken], key="one partition")
    produce(config.kafka, "app.tracking", events(5, item_id="k1"))
    scores, letters = Reader(config.kafka, "scores.ctr"), Reader(config.kafka, "events.dead")
    with worker(config) as running:
        scores.wait(12 + 5)
        letters.wait(1)
        until(lambda: committed(config.kafka) == 21, "all commits")
        assert running.value("passed_over_total", topic="web.tracking") == 8
        until(lambda: running.value("latency_seconds_count", lane="click") == 21 + 5, "all commits of both topics")
        assert running.value("events_total", topic="events.click") == 21 + 5
    scored = [json.loads(message.value()) for message in scores.read()]
    found = [each for each in scored if each["source"]["topic"] != "app.tracking"]
    offsets = sorted(each["source"]["offset"] for each in found)
    assert offsets == [n for n, kind in enumerate(kinds) if kind in ("view", "pay")]
    assert {each["user_id"] for each in found} == {"0", "1", "2"}
    assert {each["item_id"] for each in found} == {"k1"}
    (letter,) = letters.read()
    assert json.loads(letter.value()) == broken


def test_a_restart_goes_on_where_it_was_committed(broker: EmbeddedBroker, kafka: KafkaConfig) -> None:
    reader = Reader(kafka, "scores.intent")
    produce(kafka, "events.service", events(50, text="hello"))
    with worker(config_for(broker)):
        reader.wait(50)
    produce(kafka, "events.service", events(25, start=50, text="hello"))
    with worker(config_for(broker)):
        reader.wait(75)
    scored = Counter(json.loads(m.value())["event_id"] for m in reader.read())
    assert scored == {f"e{n}": 1 for n in range(75)}


def test_a_lost_offset_stops_the_worker_loudly(broker: EmbeddedBroker, kafka: KafkaConfig) -> None:
    produce(kafka, "events.service", events(5, text="hello"))
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "millrace.worker"})
    consumer.commit(offsets=[TopicPartition("events.service", 0, 10_000)], asynchronous=False)
    consumer.close()
    error = Worker(config_for(broker)).ends()
    assert isinstance(error, OffsetLostError)
    assert "events.service/0" in str(error)


def test_missing_topics_are_named() -> None:
    with EmbeddedBroker() as broker:
        broker.create_topics(["events.click"])
        error = Worker(config_for(broker)).ends()
    assert isinstance(error, TopicError)
    assert "events.review" in str(error)
    assert "millrace topics create" in str(error)


def test_another_shard_count_is_refused(broker: EmbeddedBroker) -> None:
    error = Worker(config_for(broker, kafka={"fold_shards": 7})).ends()
    assert isinstance(error, TopicError)
    assert "kafka.fold_shards is 7" in str(error)


def test_an_unreachable_broker_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.kafka.admin.REQUEST_TIMEOUT_S", 1.0)
    error = Worker(embedded_config("127.0.0.1:1", NO_REDIS, model={"artifact": "null"})).ends()
    assert isinstance(error, KafkaError)
    assert "kafka.bootstrap" in str(error)


def test_a_sink_keeps_what_the_client_has_no_room_for(broker: EmbeddedBroker, kafka: KafkaConfig) -> None:
    options = {"queue.buffering.max.messages": 10, "linger.ms": 50}
    sink = KafkaSink(config_for(broker, kafka={"options": options}).kafka)
    sink.write([OutMessage("scores.ctr", b"k", b"%d" % n, None, 1) for n in range(100)])
    sink.seal({("events.click", 0): 7})
    assert sink.full
    marks: list[Any] = []
    until(lambda: bool(marks.extend(sink.poll(0.01)) or marks), "acknowledgement")
    assert (marks, sink.full, sink.sealed) == ([Answer({("events.click", 0): 7})], False, 0)
    sink.close(5)
    written = Reader(kafka, "scores.ctr").wait(100)
    assert [int(message.value()) for message in written] == list(range(100))


def test_a_message_that_the_client_refuses_is_an_error(broker: EmbeddedBroker, kafka: KafkaConfig) -> None:
    sink = KafkaSink(kafka)
    with pytest.raises(KafkaError, match=r"writing to scores\.ctr"):
        sink.write([OutMessage("scores.ctr", b"k", b"x" * 2_000_000)])
    sink.close(5)
