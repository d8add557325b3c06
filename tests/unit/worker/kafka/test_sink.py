"""Output at least once: a mark is answered when all before it is acknowledged, whatever the client's queue takes."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException

from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka import sink
from worker.kafka.records import OutMessage
from worker.kafka.sink import Answer, KafkaSink

PLACE = ("events.click", 0)


class Client:
    """Of `confluent_kafka.Producer` what the sink asks: a queue with ``room`` that delivers when ``acknowledges``."""

    def __init__(self) -> None:
        self.room, self.acknowledges = 100, True
        self.error: ClientError | None = None
        self.refuses: ClientError | None = None
        self.delivered: list[bytes] = []
        self.queue: list[tuple[bytes, Any]] = []

    def produce(self, topic: str, value: bytes, key: Any, partition: int, answered: Any, headers: Any) -> None:
        if self.refuses is not None:
            raise KafkaException(self.refuses)
        if len(self.queue) >= self.room:
            raise BufferError
        self.queue.append((value, answered))

    def poll(self, timeout_s: float) -> None:
        queue, self.queue = (self.queue, []) if self.acknowledges else ([], self.queue)
        for value, answered in queue:
            self.delivered.append(value)
            answered(self.error, None)

    def flush(self, timeout_s: float) -> int:
        self.poll(timeout_s)
        return len(self.queue)

    def purge(self) -> None:
        self.queue.clear()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setattr(sink, "Producer", lambda settings: made)
    return made


def made() -> KafkaSink:
    return KafkaSink(KafkaConfig(bootstrap="nowhere:1"))


def messages(*values: bytes) -> list[OutMessage]:
    return [OutMessage("scores.ctr", b"k", value) for value in values]


def test_a_mark_is_answered_when_all_before_it_is_acknowledged(client: Client) -> None:
    kafka, client.acknowledges = made(), False
    kafka.write(messages(b"1", b"2"))
    kafka.seal({PLACE: 2})
    kafka.write(messages(b"3"))
    kafka.seal({PLACE: 3})
    assert (kafka.poll(), kafka.sealed) == ([], 2)
    client.acknowledges = True
    assert kafka.poll() == [Answer({PLACE: 2}), Answer({PLACE: 3})]
    assert kafka.sealed == 0


def test_what_the_client_has_no_room_for_waits_in_order(client: Client) -> None:
    kafka, client.room = made(), 2
    kafka.write(messages(b"1", b"2", b"3", b"4", b"5"))
    kafka.seal({PLACE: 5})
    assert kafka.full
    assert kafka.poll() == []
    assert kafka.full, "the second two are with the client, the last waits"
    assert kafka.poll() == []
    assert not kafka.full
    assert kafka.poll() == [Answer({PLACE: 5})]
    assert client.delivered == [b"1", b"2", b"3", b"4", b"5"]


def test_a_message_that_is_refused_for_good_ends_it_and_nothing_is_answered(client: Client) -> None:
    kafka = made()
    client.error = ClientError(ClientError.TOPIC_AUTHORIZATION_FAILED, "no right")
    kafka.write(messages(b"1"))
    kafka.seal({PLACE: 1})
    with pytest.raises(KafkaError, match="writing output"):
        kafka.poll()
    client.refuses = ClientError(ClientError.MSG_SIZE_TOO_LARGE, "too large")
    with pytest.raises(KafkaError, match=r"writing to scores\.ctr"):
        kafka.write(messages(b"2"))


def test_closing_says_what_was_not_acknowledged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    kafka, client.room, client.acknowledges = made(), 2, False
    kafka.write(messages(b"1", b"2", b"3"))
    with caplog.at_level(logging.WARNING, logger="worker.kafka.sink"):  # commands of other tests make it quieter
        kafka.close(0.1)
    assert "3 messages were not acknowledged" in caplog.text
    assert client.queue == []
