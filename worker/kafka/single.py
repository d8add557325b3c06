"""One record that somebody waits for: written, or said why not."""

from __future__ import annotations

from typing import Any, Final

from confluent_kafka import KafkaException, Producer

from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka.clients import producer_config, translate
from worker.kafka.sink import ANY_PARTITION

FLUSH_MORE_S: Final = 5.0
"""The client tells of its time-out by itself; this much later it is not going to."""


def write_one(
    kafka: KafkaConfig,
    topic: str,
    value: bytes | None,
    key: bytes | None,
    *,
    doing: str,
    timeout_s: float,
    partition: int = ANY_PARTITION,
) -> int:
    """The record's offset, once all in-sync replicas have it. ``topic`` is the cluster's name; ``doing`` as for
    `translate`. Raises `KafkaError`: what was not acknowledged in time may be there all the same.
    """
    told: list[tuple[Any, Any]] = []
    producer = Producer(producer_config(kafka, message_timeout_ms=int(timeout_s * 1000)))
    producer.produce(topic, value, key, partition, on_delivery=lambda error, message: told.append((error, message)))
    producer.flush(timeout_s + FLUSH_MORE_S)
    if not told:
        raise KafkaError(f"Kafka does not answer while {doing}. Check the broker, then run it again")
    ((error, message),) = told
    if error is not None:
        raise translate(error, doing=doing) from KafkaException(error)
    return int(message.offset())
