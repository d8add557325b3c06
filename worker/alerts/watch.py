"""Opinions counted by partition, between Faust's fetches on one side and its producer on the other.

Order of writing, always: alerts, then the states that say they were published, then the position that says all
below it is in the states. Each waits until Kafka has acknowledged the one before, and behind a write that failed
nothing is written, so a position is never ahead of its states. On assignment the changelog is read, and the partition
is read on from its position; an opinion already counted is known by its subject's source marks, whether Kafka or a
restarted worker delivers it again. So counts are exact through any crash; an alert may be published a second time,
equal in all but ``process_time_ms`` and ``evidence`` (same ``alert_id``, status, severity, window), if the process dies
between an alert and its state.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog
from faust.types import TP

from schemas.events import FUTURE_LIMIT_MS
from schemas.folds import FormatError
from schemas.scores import Alert, Opinion
from schemas.shards import shard_of
from schemas.topics import ALERTS_OPINION, OPINIONS, TRENDS_OPINION
from schemas.trends import TrendBucket
from worker.alerts.error_rates import error_rates
from worker.alerts.evidence import EvidenceKeeper
from worker.alerts.faust_app import made_anew
from worker.alerts.rules import RulesFile
from worker.alerts.surge import SurgeDetector
from worker.alerts.trend import TrendKeeper
from worker.config import Config
from worker.errors import KafkaError, TopicError
from worker.metrics import AlertsMetrics

MAX_UNWRITTEN: Final = 2000
"""Changed subjects and unpublished alerts of a partition at which reading waits for writing."""
COMMIT_INTERVAL_S: Final = 2.0
RULES_INTERVAL_S: Final = 3.0
RELEASE_TIMEOUT_S: Final = 5.0
STALL_S: Final = 30.0
"""With a write that Kafka has not acknowledged for so long the role is not ready."""
TABLE: Final = "subjects"
POSITION_KEY: Final = b"#position"
"""Key of a partition's position in the changelog; subjects have a level and a colon, so none is like it."""
POSITION_VERSION: Final = 1

_log = structlog.get_logger(__name__)
_opinion_decoder = msgspec.json.Decoder(Opinion)
_encoder = msgspec.json.Encoder()
_Sent = tuple[str, bytes, bytes | None, int | None]
"""Topic, key, value and partition of a record."""


def changelog_name(config: Config) -> str:
    """The changelog of the table of subjects, as Faust names it."""
    return f"{config.kafka.group_prefix}.alerts-{TABLE}-changelog"


class Position(msgspec.Struct, array_like=True, frozen=True):
    """How far a partition has been counted: the next offset, the highest event time seen below it, the minute in which
    it was last heard again after a silence, and Kafka's id of the topic. New fields go last, with a default."""

    next_offset: int
    watermark_ms: int
    heard_minute: int = 0
    topic_id: str = ""

    def to_bytes(self) -> bytes:
        """Format version, then msgpack."""
        return bytes([POSITION_VERSION]) + msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Position:
        """Position of the bytes. Raises `FormatError` when this release cannot read them."""
        if not data or data[0] != POSITION_VERSION:
            raise FormatError(f"alert position: this release reads format version {POSITION_VERSION}")
        try:
            return msgspec.msgpack.decode(memoryview(data)[1:], type=Position)
        except msgspec.MsgspecError as error:
            raise FormatError(f"alert position: {error}") from error


class _Partition:
    """One partition of opinions: its detector, how far it has been fed, and the alerts not yet published."""

    def __init__(self, detector: SurgeDetector, next_offset: int | None) -> None:
        self.detector = detector
        self.next_offset = next_offset
        self.written_offset = next_offset
        self.alerts: list[Alert] = []
        self.evidence = EvidenceKeeper()
        self.trend = TrendKeeper(next_offset or 0)

    @property
    def unwritten(self) -> int:
        return self.detector.changes + len(self.alerts)


class OpinionWatch:
    """Partitions and their detectors, between Faust's fetches on one side and its producer on the other.

    Everything runs on the app's event loop; only `health` is called from another thread, and it only reads.
    """

    def __init__(self, config: Config, metrics: AlertsMetrics) -> None:
        self._rules = RulesFile(config.alerts.rules)
        self._rates = error_rates(config)
        self._metrics = metrics
        self._opinions = config.kafka.topic(OPINIONS)
        self._alerts = config.kafka.topic(ALERTS_OPINION)
        self._trends = config.kafka.topic(TRENDS_OPINION)
        self._changelog = changelog_name(config)
        self._recovered: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)
        self._partitions: dict[int, _Partition] = {}
        self._write_lock = asyncio.Lock()
        # A write took alerts and states and has not come to its end: a later position would lie beyond them.
        self._torn = False
        self._committed: dict[int, int] = {}
        self._committed_at = 0.0
        self._rules_read_at = time.monotonic()
        self._writing_since_s: float | None = None
        self.failure: BaseException | None = None
        self.app: Any = None
        # Whether Kafka answered when the role last looked at its topics.
        self.kafka_answers = True
        # Partitions of trends.opinion; 0 where the topic has not been made: then no trends are written.
        self.trend_partitions = 0
        # Kafka's id of opinions.
        self.topic_id = ""

    # --- what Faust calls ---------------------------------------------------------------------------------------

    def recover(self, partition: int, key: bytes, value: bytes | None) -> None:
        """One record of the changelog."""
        if value is None:
            self._recovered[partition].pop(key, None)
        else:
            self._recovered[partition][key] = value

    def open(self, partitions: Iterable[int]) -> None:
        """The changelog of these partitions has been read: build their detectors."""
        for partition in partitions:
            if partition in self._partitions:
                continue
            records = self._recovered.pop(partition, {})
            try:
                self._partitions[partition] = self._restore(records)
            except FormatError as error:
                self.failure = KafkaError(
                    f"{self._changelog}, partition {partition}: {error}. Run the release that wrote it, or stop all"
                    " alerts processes and run `millrace alerts rebuild`: opinions still retained are counted again"
                )
                return
            except TopicError as error:
                self.failure = error
                return
        self._recovered.clear()
        self._show()

    def partitions(self) -> list[int]:
        """Open partitions."""
        return list(self._partitions)

    def positions(self, earliest: Mapping[int, int], ends: Mapping[int, int]) -> dict[int, int]:
        """Where to read on, given the first and the last offset of each partition.

        Empty, with `failure` set, when a position lies behind the end: the topic is not the one that was counted.
        """
        positions = {}
        for number, first in earliest.items():
            wanted = self._partitions[number].next_offset
            if wanted is not None and wanted > ends[number]:
                self.failure = TopicError(
                    f"{self._opinions}, partition {number} ends at {ends[number]}, but {wanted} were counted: the"
                    " topic has been made anew. Stop all alerts processes and run `millrace alerts rebuild`"
                )
                return {}
            if wanted is not None and wanted < first:
                # What retention has taken is days older than any window, so it is told and not a reason to stop.
                _log.warning("opinions expired before they were counted", partition=number, missing=first - wanted)
            positions[number] = max(wanted or 0, first)
        return positions

    async def release(self) -> None:
        """Partitions are being taken away: write what was counted, then forget them."""
        try:
            await asyncio.wait_for(self.write(last=True), RELEASE_TIMEOUT_S)
        except TimeoutError:
            # Nothing is lost: the next owner reads on from what was written.
            _log.warning("not all written before partitions were handed over", seconds=RELEASE_TIMEOUT_S)
        self._partitions.clear()
        self._recovered.clear()
        self._committed.clear()
        self._torn = False
        self._show()

    # --- what the role calls ------------------------------------------------------------------------------------

    async def feed(self, partition: int, records: Sequence[Any]) -> None:
        """Count records of ``opinions`` (with ``offset``, ``timestamp`` in ms, ``value``), in their order.

        Waits for writing when `MAX_UNWRITTEN` subjects have changed. What goes wrong becomes `failure`.
        """
        part = self._partitions.get(partition)
        if part is None:
            return
        try:
            for record in records:
                # A write waits, and the partition may be taken away meanwhile.
                if self.failure is not None or self._partitions.get(partition) is not part:
                    return
                self._count(part, record)
                if part.unwritten >= MAX_UNWRITTEN:
                    await self.write()
        except Exception as error:  # noqa: BLE001 raised again by the role
            # Not through Faust: it would tell a traceback, and go on behind the record that broke it.
            self.failure = error

    def reload_rules(self) -> None:
        """Take up the rules file where it has changed; looked at once in `RULES_INTERVAL_S`."""
        now = time.monotonic()
        if now - self._rules_read_at < RULES_INTERVAL_S:
            return
        self._rules_read_at = now
        book = self._rules.changed()
        if book is not None:
            for partition in self._partitions.values():
                partition.detector.use(book)

    async def write(self, *, last: bool = False) -> None:
        """Publish alerts, then write states, positions, and the trends that are due; ``last``: all trends.

        Done when Kafka has acknowledged all. What goes wrong becomes `failure`, and those who wait write nothing.
        """
        async with self._write_lock:
            if self._torn:
                return
            self._torn, self._writing_since_s = True, time.monotonic()
            try:
                await asyncio.gather(*(self._write(*numbered, last) for numbered in self._partitions.items()))
                self._torn = False
            except Exception as error:  # noqa: BLE001 raised again by the role
                self.failure = self.failure or error
            finally:
                self._writing_since_s = None
            self._show()

    async def write_and_commit(self, *, force: bool = False) -> None:
        """`write`, then `commit`."""
        await self.write(last=force)
        await self.commit(force=force)

    async def commit(self, *, force: bool = False) -> None:
        """Tell the group how far we are, for those who watch its lag. Nothing here depends on it."""
        now = time.monotonic()
        if not force and now - self._committed_at < COMMIT_INTERVAL_S:
            return
        self._committed_at = now
        offsets = {number: part.written_offset for number, part in self._partitions.items()}
        news = {number: at for number, at in offsets.items() if at is not None and self._committed.get(number) != at}
        if news:
            await self.app.consumer._commit({TP(self._opinions, number): at for number, at in news.items()})
            self._committed.update(news)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """For ``/healthz``: not ready while states are read back, partitions move, or Kafka is away."""
        partitions = list(self._partitions.values())
        since_s = self._writing_since_s
        writing_s = 0.0 if since_s is None else time.monotonic() - since_s
        running = self.failure is None and self.app is not None and self.app.started and not self.app.rebalancing
        return running and self.kafka_answers and writing_s < STALL_S, {
            "role": "alerts",
            "kafka": "answers" if self.kafka_answers else "away: waiting, opinions stay in Kafka",
            "writing_s": round(writing_s, 3),
            "partitions": len(partitions),
            "subjects": sum(len(partition.detector) for partition in partitions),
            "open_alerts": sum(partition.detector.open_alerts for partition in partitions),
        }

    def _count(self, part: _Partition, record: Any) -> None:
        if record.offset < (part.next_offset or 0):
            return
        part.next_offset = record.offset + 1
        opinion = decode(record.value, record.timestamp)
        if opinion is None:
            self._metrics.skipped.labels("malformed").inc()
            _log.warning("record is no opinion, skipped", partition=record.partition, offset=record.offset)
            return
        counted, alerts = part.detector.add(opinion, time.time_ns() // 1_000_000)
        if counted == "counted":
            self._metrics.opinions.inc()
            part.evidence.add(opinion)
            part.trend.add(opinion)
        else:
            self._metrics.skipped.labels(counted).inc()
        if alerts:
            part.alerts += [part.evidence.attach(alert) for alert in alerts]

    def _restore(self, records: dict[bytes, bytes]) -> _Partition:
        data = records.pop(POSITION_KEY, None)
        position = Position.from_bytes(data) if data is not None else None
        if position is not None and position.topic_id not in ("", self.topic_id):
            raise made_anew(self._opinions)
        subjects = {key.decode(): value for key, value in records.items()}
        watermark_ms = position.watermark_ms if position else -1
        heard_minute = position.heard_minute if position else 0
        detector = SurgeDetector.restore(
            self._rules.book, subjects, watermark_ms, heard_minute=heard_minute, rates=self._rates
        )
        return _Partition(detector, position.next_offset if position else None)

    async def _write(self, number: int, partition: _Partition, last: bool) -> None:
        # Taken together with the states, before the first wait: what is fed meanwhile belongs to the next write.
        # Sent behind the position: what has been published is never fed again, so no part counts it twice.
        trends = partition.trend.take(time.monotonic(), last=last)
        if partition.next_offset is not None and partition.next_offset != partition.written_offset:
            await self._write_states(number, partition, partition.next_offset)
        if trends and self.trend_partitions and self._partitions.get(number) is partition:
            await self._send([_trend_record(self._trends, self.trend_partitions, each) for each in trends])

    async def _write_states(self, number: int, partition: _Partition, reached: int) -> None:
        alerts, partition.alerts = partition.alerts, []
        detector = partition.detector
        states = detector.take_changes()
        position = Position(reached, detector.watermark_ms, detector.heard_minute, self.topic_id)
        # Each behind the other's acknowledgement: of one partition the client may give up a batch and deliver the next.
        steps: tuple[list[_Sent], ...] = (
            [(self._alerts, alert.subject.encode(), _encoder.encode(alert), None) for alert in alerts],
            [(self._changelog, name.encode(), value, number) for name, value in states.items()],
            [(self._changelog, POSITION_KEY, position.to_bytes(), number)],
        )
        for records in steps:
            if self._partitions.get(number) is not partition:
                return  # handed over while this waited: what follows would land behind the new owner's
            await self._send(records)
        partition.written_offset = reached
        for alert in alerts:
            self._metrics.alerts.labels(alert.status).inc()
            _log.info(
                "alert",
                status=alert.status,
                subject=alert.subject,
                alert_id=alert.alert_id,
                score=round(alert.score, 1),
            )

    async def _send(self, records: list[_Sent]) -> None:
        sent = [
            await self.app.producer.send(topic, key, value, partition, None, None)
            for topic, key, value, partition in records
        ]
        await asyncio.gather(*sent)

    def _show(self) -> None:
        self._metrics.subjects.set(sum(len(partition.detector) for partition in self._partitions.values()))


def _trend_record(topic: str, partitions: int, bucket: TrendBucket) -> tuple[str, bytes, bytes | None, int | None]:
    return topic, bucket.key().encode(), _encoder.encode(bucket), shard_of(bucket.subject, partitions)


def decode(value: bytes | None, timestamp_ms: int) -> Opinion | None:
    """Opinion of a record; None when it is none, or lies further ahead of its own record than events may."""
    try:
        opinion = _opinion_decoder.decode(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    valid = 0 <= opinion.p_negative <= 1 and 0 <= opinion.event_time_ms <= timestamp_ms + FUTURE_LIMIT_MS
    return opinion if valid else None
