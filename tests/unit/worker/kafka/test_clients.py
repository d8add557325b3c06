"""Client settings, and librdkafka's errors as ours."""

from __future__ import annotations

import confluent_kafka
import pytest
from confluent_kafka import KafkaError as Code
from confluent_kafka import KafkaException

from worker.config import KafkaConfig
from worker.errors import KafkaError, KafkaRefusedError, OffsetLostError, TopicError
from worker.kafka.clients import consumer_config, producer_config, translate

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
