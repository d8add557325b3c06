"""Committed records of some partitions, from a place up to where they end now. Belongs to no group."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from worker.clients import REQUEST_TIMEOUT_S, consumer_config, translate, watermarks
from worker.config import KafkaConfig
from worker.errors import KafkaError

STALL_S: Final = 30.0
"""A partition that yields nothing for so long before its end cannot be read."""
_EOF: Final = confluent_kafka.KafkaError._PARTITION_EOF


def read_to_end(kafka: KafkaConfig, parts: Sequence[TopicPartition], name: str) -> Iterator[Any]:
    """Messages of the partitions, each from its offset (from the beginning where it has none) to its present end.

    ``name`` tells the reader in the broker's log; nothing is committed or balanced. Raises `KafkaError` when a
    partition cannot be read to its end.
    """
    reader = Consumer(consumer_config(kafka, f"{kafka.group_prefix}.{name}", enable_partition_eof=True))
    topics = ", ".join(sorted({part.topic for part in parts}))
    try:
        begin = [part for part in (_place(reader, part) for part in parts) if part is not None]
        if begin:
            reader.assign(begin)
            yield from _drain(reader, {(part.topic, part.partition) for part in begin}, topics)
    except KafkaException as error:
        raise translate(error, doing=f"reading {topics}") from error
    finally:
        reader.close()


def partitions_of(kafka: KafkaConfig, topic: str, name: str) -> list[TopicPartition]:
    """Every partition of a topic (the cluster's name), from its beginning; none where the topic is missing."""
    reader = Consumer(consumer_config(kafka, f"{kafka.group_prefix}.{name}"))
    try:
        found = reader.list_topics(timeout=REQUEST_TIMEOUT_S).topics.get(topic)
        return [] if found is None else [TopicPartition(topic, each, OFFSET_BEGINNING) for each in found.partitions]
    except KafkaException as error:
        raise translate(error, doing=f"asking for the partitions of {topic}") from error
    finally:
        reader.close()


def _place(reader: Consumer, part: TopicPartition) -> TopicPartition | None:
    """Where to begin; None where there is nothing to read."""
    low, high = watermarks(reader, part)
    first = low if part.offset < 0 else max(low, part.offset)
    return TopicPartition(part.topic, part.partition, first) if first < high else None


def _drain(reader: Consumer, unread: set[tuple[str, int]], topics: str) -> Iterator[Any]:
    progress = time.monotonic()
    while time.monotonic() - progress < STALL_S:
        for message in reader.consume(1000, 0.1):
            progress = time.monotonic()
            error = message.error()
            if error is None:
                yield message
            elif error.code() == _EOF:
                # Said again when a partition grows after its end was reached: the first time is the one that counts.
                unread.discard((message.topic(), message.partition()))
                if not unread:
                    return
                reader.pause([TopicPartition(message.topic(), message.partition())])
            elif not error.retriable():
                raise translate(error, doing=f"reading {topics}") from KafkaException(error)
    raise KafkaError(f"{topics} gave nothing for {STALL_S:.0f} s. Check kafka.bootstrap and the partitions' leaders")
