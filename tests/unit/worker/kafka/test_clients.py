"""Client settings, and librdkafka's errors as ours."""

from __future__ import annotations

import logging
import threading

import confluent_kafka
import pytest
from confluent_kafka import KafkaError as Code
from confluent_kafka import KafkaException

from worker.config import KafkaConfig
from worker.errors import KafkaError, KafkaRefusedError, OffsetLostError, TopicError
from worker.kafka import clients
from worker.kafka.clients import (
    LOG_AGAIN_S,
    OnceInAWhile,
    client_config,
    consumer_config,
    leave,
    producer_config,
    translate,
)

KAFKA = KafkaConfig(bootstrap="broker:9092", options={"linger.ms": 7, "security.protocol": "ssl", "fetch.min.bytes": 9})


def test_what_the_user_sets_wins_over_ours_and_what_the_role_sets_wins_over_both() -> None:
    producer = producer_config(KAFKA)
    assert (producer["bootstrap.servers"], producer["linger.ms"], producer["acks"]) == ("broker:9092", 7, "all")
    assert producer_config(KAFKA, linger_ms=50)["linger.ms"] == 50
    consumer = consumer_config(KAFKA, "millrace.worker", auto_offset_reset="error")
    assert (consumer["group.id"], consumer["auto.offset.reset"]) == ("millrace.worker", "error")
    assert consumer["fetch.min.bytes"] == 9


def test_delivery_is_never_traded_away_by_default() -> None:
    producer = producer_config(KafkaConfig())
    assert producer["enable.idempotence"] is True
    assert producer["message.timeout.ms"] == 0
    consumer = consumer_config(KafkaConfig(), "g")
    assert consumer["isolation.level"] == "read_committed"
    assert consumer["enable.auto.commit"] is False
    assert consumer["auto.offset.reset"] == "earliest"


def test_librdkafka_takes_the_settings() -> None:
    local = KafkaConfig(bootstrap="127.0.0.1:1")
    confluent_kafka.Producer(producer_config(local, on_delivery=lambda error, message: None, message_timeout_ms=1000))
    confluent_kafka.Consumer(consumer_config(local, "g", error_cb=lambda error: None)).close()


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (Code._TRANSPORT, KafkaError, "kafka.bootstrap"),
        (Code._TIMED_OUT, KafkaError, "kafka.bootstrap"),
        (Code.UNKNOWN_TOPIC_OR_PART, TopicError, "millrace topics create"),
        (Code.TOPIC_AUTHORIZATION_FAILED, KafkaRefusedError, "kafka.options"),
        (Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaRefusedError, "millrace topics acls"),
        (Code.OFFSET_OUT_OF_RANGE, OffsetLostError, "Retention"),
        (Code._FENCED, KafkaError, "_FENCED"),
    ],
)
def test_errors_say_what_was_being_done_and_what_to_do(code: int, kind: type[KafkaError], says: str) -> None:
    for error in (Code(code), KafkaException(Code(code))):
        ours = translate(error, doing="reading events")
        assert type(ours) is kind
        assert "while reading events" in str(ours)
        assert says in str(ours)


def test_the_clients_log_says_the_same_once_in_a_while_with_how_often_it_came() -> None:
    seldom = OnceInAWhile()

    def said(at_s: float, text: str, client: str = "millrace#producer-1", level: int = logging.ERROR) -> str | None:
        record = logging.LogRecord("worker.kafka", level, "", 0, "%s [%s] %s", ("FAIL", client, text), None)
        record.created = at_s
        return record.getMessage() if seldom(record) else None

    away = "[thrd:[::1]:1/bootstrap]: [::1]:1/bootstrap: Connect to ipv6#[::1]:1 failed: refused"
    other = away.replace("[::1]", "[::2]")
    first = said(1e9, f"{away} (after 0ms in state CONNECT)")
    assert first == f"FAIL [millrace#producer-1] {away} (after 0ms in state CONNECT)"
    assert said(1e9 + 1, f"{away} (after 2ms in state CONNECT, 9 identical error(s) suppressed)") is None
    assert said(1e9 + 2, away, client="millrace#consumer-2") is None
    assert said(1e9 + 3, other) is not None
    assert said(1e9 + 4, away, level=logging.INFO) is not None
    later = said(1e9 + LOG_AGAIN_S, away)
    assert later == f"FAIL [millrace#producer-1] {away}; 2 more like it since the last"
    assert said(1e9 + 2 * LOG_AGAIN_S, away) == f"FAIL [millrace#producer-1] {away}"
    for n in range(1000):
        said(1e9 + 2 * LOG_AGAIN_S, f"[thrd:a]: {n}")
    assert len(seldom._lines) <= 256


def test_what_the_client_logs_goes_through_it() -> None:
    logger = client_config(KAFKA)["logger"]
    assert any(isinstance(each, OnceInAWhile) for each in logger.filters)


class Leaving:
    """A client that gives its partitions back in the second poll; closes when it may."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.may_close = threading.Event()
        self.error: Exception | None = None

    def unsubscribe(self) -> None:
        self.calls.append("unsubscribe")

    def assignment(self) -> list[int]:
        return [1] if self.calls.count("poll") < 2 else []

    def poll(self, _timeout_s: float) -> None:
        self.calls.append("poll")

    def close(self) -> None:
        self.calls.append("close")
        self.may_close.wait()
        if self.error is not None:
            raise self.error


def test_partitions_are_given_back_before_a_client_closes() -> None:
    client = Leaving()
    client.may_close.set()
    leave(client)  # type: ignore[arg-type]
    assert client.calls == ["unsubscribe", "poll", "poll", "close"]


def test_a_client_that_does_not_close_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CLOSE_TIMEOUT_S", 0.05)
    said: list[str] = []
    monkeypatch.setattr(clients._log, "warning", lambda text, *_: said.append(text))
    client = Leaving()
    leave(client)  # type: ignore[arg-type]
    assert len(said) == 1
    assert "did not close" in said[0]
    client.may_close.set()


def test_what_a_callback_raises_comes_out_and_the_client_is_closed() -> None:
    client = Leaving()
    client.may_close.set()
    client.error = ValueError("revoked")
    with pytest.raises(ValueError, match="revoked"):
        leave(client)  # type: ignore[arg-type]

    def poll(_timeout_s: float) -> None:
        raise KeyError("handing over")

    client.poll, client.calls, client.error = poll, [], None  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="handing over"):
        leave(client)  # type: ignore[arg-type]
    assert client.calls == ["unsubscribe", "close"]
