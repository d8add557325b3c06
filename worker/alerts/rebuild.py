"""The changelog of subjects written anew from the opinions that Kafka still holds, for as many partitions as there are.

For an operator, with all alerts processes stopped: when ``opinions`` has got more partitions a subject's opinions lie
in two of them, and counted by partition it would begin again in the one and fall silent in the other. Here every
opinion is counted in the partition that its subject belongs to now, in the order in which Kafka was given them. Alerts
are published only of opinions that had not been counted yet; they bear the ids that they would have borne.

Bounds: one reader a partition; subjects as in the live role. If it is stopped between the deletion and the end, the
role counts what is retained by partition, or the rebuild is run again.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, Final

import confluent_kafka
import msgspec
from confluent_kafka import TopicPartition

from schemas.folds import FormatError
from schemas.scores import Alert
from schemas.shards import shard_of
from schemas.topics import ALERTS_OPINION, OPINIONS
from worker.alerts.error_rates import error_rates
from worker.alerts.evidence import EvidenceKeeper
from worker.alerts.faust_app import ensure_changelog
from worker.alerts.rules import RulesFile
from worker.alerts.surge import SurgeDetector
from worker.alerts.watch import POSITION_KEY, Position, changelog_name, decode
from worker.config import Config
from worker.errors import KafkaError, TopicError
from worker.kafka.admin import admin_client, partition_counts, topic_ids
from worker.kafka.bulk import BulkProducer
from worker.kafka.clients import REQUEST_TIMEOUT_S, translate
from worker.kafka.readback import Readback

DELETION_TIMEOUT_S: Final = 60.0
DELIVERY_TIMEOUT_S: Final = 60.0
GROUP: Final = "alerts-rebuild"

Progress = Callable[[int], None]


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted, and what is written."""

    partitions: int
    opinions: int
    malformed: int
    subjects: int
    open_alerts: int
    alerts_published: int


class Rebuild:
    """One rebuild: `run` once."""

    def __init__(self, config: Config) -> None:
        self._kafka = config.kafka
        self._opinions = config.kafka.topic(OPINIONS)
        self._alerts = config.kafka.topic(ALERTS_OPINION)
        self._changelog = changelog_name(config)
        self._count = partition_counts(config.kafka, [self._opinions, self._alerts])[self._opinions]
        self._topic_id = topic_ids(config.kafka, [self._opinions])[self._opinions]
        book, rates = RulesFile(config.alerts.rules).book, error_rates(config)
        self._detectors = [SurgeDetector(book, rates) for _ in range(self._count)]
        self._evidence = [EvidenceKeeper() for _ in range(self._count)]
        self._admin = admin_client(config.kafka)
        self._next: dict[int, int] = {}
        self._alerts_of: list[tuple[int, int, Alert]] = []  # partition and offset of the opinion, alert
        self._opinions_read = self._malformed = 0

    def run(self, progress: Progress) -> Rebuilt:
        """Count, publish, write. ``progress`` is told how many records have been read.

        Raises `KafkaError` while an alerts process runs and when a topic cannot be read or written, `TopicError` when
        one is missing.
        """
        self._check_nobody_counts()
        with ExitStack() as open_:
            readers = [open_.enter_context(closing(Readback(self._kafka, GROUP))) for _ in range(self._count)]
            streams = [self._read(partition, reader) for partition, reader in enumerate(readers)]
            for message in heapq.merge(*streams, key=_timestamp):
                self._add(message)
                progress(self._opinions_read + self._malformed)
        alerts = self._untold(self._counted_positions())
        self._check_nobody_counts()
        self._write(alerts)
        return Rebuilt(
            partitions=self._count,
            opinions=self._opinions_read,
            malformed=self._malformed,
            subjects=sum(map(len, self._detectors)),
            open_alerts=sum(each.open_alerts for each in self._detectors),
            alerts_published=len(alerts),
        )

    def _add(self, message: Any) -> None:
        partition, offset = message.partition(), message.offset()
        self._next[partition] = offset + 1
        opinion = decode(message.value(), _timestamp(message))
        if opinion is None:
            self._malformed += 1
            return
        self._opinions_read += 1
        home = shard_of(opinion.subject, self._count)
        counted, alerts = self._detectors[home].add(opinion, time.time_ns() // 1_000_000)
        if counted == "counted":
            self._evidence[home].add(opinion)
        self._alerts_of += [(partition, offset, self._evidence[home].attach(alert)) for alert in alerts]

    def _untold(self, counted: dict[int, int]) -> list[Alert]:
        """Alerts of opinions at or above the positions counted before; a position above its end is another topic's."""
        told = {partition: at for partition, at in counted.items() if at <= self._next.get(partition, 0)}
        return [alert for partition, offset, alert in self._alerts_of if offset >= told.get(partition, 0)]

    def _read(self, partition: int, reader: Readback) -> Iterator[Any]:
        return reader.read([TopicPartition(self._opinions, partition, confluent_kafka.OFFSET_BEGINNING)])

    def _check_nobody_counts(self) -> None:
        group = f"{self._kafka.group_prefix}.alerts"
        try:
            found = self._admin.describe_consumer_groups([group], request_timeout=REQUEST_TIMEOUT_S)
            members = len(found[group].result(2 * REQUEST_TIMEOUT_S).members)
        except confluent_kafka.KafkaException as error:
            raise translate(error, doing=f"asking who is in {group}") from error
        if members:
            raise KafkaError(
                f"{members} alerts process(es) are in {group}: stop them all first. One that was killed leaves after"
                " its session time-out of ten seconds"
            )

    def _counted_positions(self) -> dict[int, int]:
        """Next offset of each partition, as the old changelog has it; empty where there is none."""
        positions: dict[int, int] = {}
        with closing(Readback(self._kafka, GROUP)) as reader:
            try:
                places = reader.places(self._changelog)
            except TopicError:
                return positions
            for message in reader.read(places):
                if message.key() == POSITION_KEY and message.value() is not None:
                    positions[message.partition()] = self._next_offset(message.value())
        return positions

    def _write(self, alerts: list[Alert]) -> None:
        """Alerts, then states, then positions: what is in a position is in the states, and was told."""
        producer = self._producer(self._alerts)
        encoder = msgspec.json.Encoder()
        for alert in alerts:
            producer.write(encoder.encode(alert), alert.subject.encode())
        producer.finish()
        self._make_changelog_anew()
        producer = self._producer(self._changelog)
        for number, detector in enumerate(self._detectors):
            for name, value in detector.take_changes().items():
                producer.write(value, name.encode(), partition=number)
        producer.finish()
        for number, next_offset in self._next.items():
            detector = self._detectors[number]
            position = Position(next_offset, detector.watermark_ms, detector.heard_minute, self._topic_id)
            producer.write(position.to_bytes(), POSITION_KEY, partition=number)
        producer.finish()

    def _producer(self, topic: str) -> BulkProducer:
        return BulkProducer(
            self._kafka, topic, doing=f"writing {topic}", advice="Run the rebuild again", timeout_s=DELIVERY_TIMEOUT_S
        )

    def _make_changelog_anew(self) -> None:
        name, admin = self._changelog, self._admin
        try:
            if name in admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics:
                admin.delete_topics([name], request_timeout=REQUEST_TIMEOUT_S)[name].result(2 * REQUEST_TIMEOUT_S)
            deadline = time.monotonic() + DELETION_TIMEOUT_S
            while name in admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics:
                if time.monotonic() > deadline:
                    raise KafkaError(f"{name} is still there {DELETION_TIMEOUT_S:.0f} s after its deletion. Try again")
                admin.poll(0.05)
        except confluent_kafka.KafkaException as error:
            raise translate(error, doing=f"deleting {name}") from error
        ensure_changelog(self._kafka, self._opinions, name)

    def _next_offset(self, data: bytes) -> int:
        try:
            position = Position.from_bytes(data)
        except FormatError:
            # Of another release, which a rebuild is the way out of: its alerts are told again.
            return 0
        return position.next_offset if position.topic_id in ("", self._topic_id) else 0


def _timestamp(message: Any) -> int:
    return int(message.timestamp()[1])
