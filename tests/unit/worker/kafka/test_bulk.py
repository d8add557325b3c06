"""Many records: a full queue is waited for, a failed delivery is said with how far it came, and every wait ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError as Code
from confluent_kafka import KafkaException

from worker.config import KafkaConfig
from worker.errors import KafkaError, TopicError
from worker.kafka import bulk
from worker.kafka.bulk import BulkProducer

TIMEOUT_S = 30.0
PATIENCE_S = TIMEOUT_S + bulk.FLUSH_MORE_S


class Client:
    """A client with room for ``room`` records, which tells of one delivery a poll. A poll takes its whole time."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.room = 100
        self.settings: dict[str, Any] = {}
        self.records: list[tuple[Any, ...]] = []
        self.reports: list[Callable[[], None]] = []
        self.faults: dict[bytes, int] = {}
        self.refuses: Code | None = None
        self.silent = False

    def produce(
        self, topic: str, value: Any, key: Any, partition: int, on_delivery: Callable[..., None], headers: Any
    ) -> None:
        if self.refuses is not None:
            raise KafkaException(self.refuses)
        if len(self.reports) >= self.room:
            raise BufferError
        self.records.append((topic, value, key, partition, headers))
        error = Code(self.faults[value]) if value in self.faults else None
        self.reports.append(lambda: on_delivery(error, None))

    def poll(self, timeout_s: float) -> None:
        self.now_s += timeout_s
        if timeout_s and self.reports and not self.silent:
            self.reports.pop(0)()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()

    def made(settings: dict[str, Any]) -> Client:
        client.settings = settings
        return client

    monkeypatch.setattr(bulk, "Producer", made)
    return client


@pytest.fixture
def producer(client: Client) -> BulkProducer:
    return BulkProducer(
        KafkaConfig(), "t", doing="writing t", advice="Go again", timeout_s=TIMEOUT_S, clock=lambda: client.now_s
    )


def test_records_go_as_they_are_and_all_are_waited_for(client: Client, producer: BulkProducer) -> None:
    producer.finish()
    producer.write(b"a", b"k")
    producer.write(None, b"k", partition=3, headers=[("h", b"1")])
    assert (producer.queued, producer.acknowledged) == (2, 0)
    producer.finish()
    assert (producer.queued, producer.acknowledged) == (2, 2)
    assert client.records == [("t", b"a", b"k", -1, None), ("t", None, b"k", 3, [("h", b"1")])]
    assert client.settings["message.timeout.ms"] == 30_000
    producer.write(b"b", b"k")
    producer.finish()
    assert producer.acknowledged == 3


def test_a_full_queue_is_waited_for_and_every_record_goes_once(client: Client, producer: BulkProducer) -> None:
    client.room = 2
    for n in range(500):
        producer.write(b"%d" % n, b"k")
    producer.finish()
    assert [record[1] for record in client.records] == [b"%d" % n for n in range(500)]
    assert producer.acknowledged == 500
    assert client.now_s - 1000 > PATIENCE_S, "the bound is a record's, not the whole run's"


def test_a_queue_that_stays_full_is_said_in_time(client: Client, producer: BulkProducer) -> None:
    client.room, client.silent = 2, True
    producer.write(b"a", b"k")
    producer.write(b"b", b"k")
    with pytest.raises(KafkaError, match=r"while writing t: 2 of 2 records are not .* after 35 s\. .*\. Go again$"):
        producer.write(b"c", b"k")
    assert PATIENCE_S < client.now_s - 1000 < PATIENCE_S + 1


def test_what_is_never_acknowledged_is_said_in_time(client: Client, producer: BulkProducer) -> None:
    for value in (b"a", b"b", b"c"):
        producer.write(value, b"k")
    producer.wait_until(client.now_s + bulk.POLL_S)
    client.silent = True
    began_s = client.now_s
    with pytest.raises(KafkaError, match=r"while writing t: 2 of 3 records are not .* after 35 s\. .*\. Go again$"):
        producer.finish()
    assert PATIENCE_S < client.now_s - began_s < PATIENCE_S + 1


def in_finish(client: Client, producer: BulkProducer) -> None:
    producer.finish()


def in_pacing(client: Client, producer: BulkProducer) -> None:
    producer.wait_until(client.now_s + 10)


def in_write(client: Client, producer: BulkProducer) -> None:
    client.room = 1
    producer.write(b"d", b"k")


@pytest.mark.parametrize("waiting", [in_finish, in_pacing, in_write])
def test_a_failed_delivery_is_told_with_how_many_were_acknowledged(
    client: Client, producer: BulkProducer, waiting: Callable[[Client, BulkProducer], None]
) -> None:
    client.faults = {b"b": Code.UNKNOWN_TOPIC_OR_PART, b"c": Code.TOPIC_AUTHORIZATION_FAILED}
    for value in (b"a", b"b", b"c"):
        producer.write(value, b"k")
    said = r"missing while writing t: .*topics create`; 1 of 3 records were acknowledged\. Go again$"
    with pytest.raises(TopicError, match=said) as told:
        waiting(client, producer)
    assert isinstance(told.value.__cause__, KafkaException)
    assert client.now_s - 1000 < 1, "at once"
    with pytest.raises(TopicError, match="1 of 3"):
        producer.finish()  # the first failure stays


def test_what_the_client_itself_refuses_is_ours(client: Client, producer: BulkProducer) -> None:
    producer.write(b"a", b"k")
    client.refuses = Code(Code.MSG_SIZE_TOO_LARGE)
    with pytest.raises(KafkaError, match=r"failed while writing t: .*; 0 of 1 records were acknowledged\. Go again$"):
        producer.write(b"b", b"k")


def test_pacing_serves_the_client_until_the_moment(client: Client, producer: BulkProducer) -> None:
    producer.write(b"a", b"k")
    producer.wait_until(client.now_s - 1)
    assert (client.now_s, producer.acknowledged) == (1000, 0)
    producer.wait_until(1000.5)
    assert client.now_s == pytest.approx(1000.5)
    assert producer.acknowledged == 1


def test_with_the_real_client_a_full_queue_ends_with_its_time_out() -> None:
    away = KafkaConfig(bootstrap="127.0.0.1:1", options={"queue.buffering.max.messages": 2})
    producer = BulkProducer(away, "t", doing="writing t", advice="Go again", timeout_s=0.5)
    began_s = time.monotonic()
    producer.write(b"a", b"k")
    producer.write(b"b", b"k")
    with pytest.raises(KafkaError, match=r"kafka\.bootstrap .*; 0 of 2 records were acknowledged\. Go again$"):
        producer.write(b"c", b"k")
    assert time.monotonic() - began_s >= 0.4
