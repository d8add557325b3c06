"""The notify role: reads ``alerts.opinion``, tells people through the sinks of the configuration, at least once.

    alerts.opinion > Dispatcher (repeats, mutes, filters) > Outbox a sink > Sender
                                     ^                                        | delivered, or a dead letter acknowledged
    alerts.control ------------------┘                                        └> OffsetLedger > offsets committed

An offset is committed when every sink of every alert below it has taken it or given it up; what was given up is on
``events.dead`` by then. After a crash what was not committed is told again, under the same message id. One event loop
runs everything; Kafka is polled without waiting. Bounds: `Outbox.full` of one sink and `UNFINISHED_MAX` alerts pause
reading; `DRAIN_S` for the attempt under way at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from contextlib import closing
from threading import Event
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import TopicPartition
from prometheus_client import CollectorRegistry

from schemas.scores import Alert
from schemas.topics import ALERTS_CONTROL, ALERTS_OPINION, EVENTS_DEAD
from worker.config import Config, WebhookConfig
from worker.errors import ConfigError
from worker.kafka.admin import partition_counts, topic_ids
from worker.kafka.ledger import OffsetLedger, Ticket
from worker.kafka.readback import FOLLOW_WAIT_MS, Readback
from worker.kafka.records import Offsets, Partition, Record
from worker.kafka.source import KafkaSource
from worker.metrics import NotifyMetrics
from worker.notify.controls import Controls
from worker.notify.dispatch import SEEN_MAX, Dispatcher
from worker.notify.lane import Lane
from worker.notify.letters import DeadLetters
from worker.notify.notice import Notice
from worker.notify.outbox import Limits, Outbox, Settled
from worker.notify.senders import sender
from worker.observe import Observer

TICK_S: Final = 0.05
"""How often Kafka is looked at: what an alert waits for at most before it is under way."""
COMMIT_INTERVAL_S: Final = 0.2
POLL_RECORDS: Final = 200
UNFINISHED_MAX: Final = 5000
DRAIN_S: Final = 10.0
STALL_S: Final = 30.0
"""With offsets that Kafka has not taken for so long the role is not ready."""
GROUP: Final = "notify"
WARNED_MAX: Final = 100
UNKNOWN_SINK: Final = "notify.sinks has no sink of this name"

_log = structlog.get_logger(__name__)
_decoder = msgspec.json.Decoder(Alert)


def run(config: Config, stop: Event) -> None:
    """Tell of alerts until ``stop`` is set.

    Raises `ConfigError` when there is no sink or a secret is missing, `TopicError` for missing topics, `KafkaError`
    when the broker is away at the start or refuses.
    """
    if not config.notify.sinks:
        raise ConfigError("notify.sinks is empty: name where alerts go, see README, Alerts that reach people")
    kafka = config.kafka
    partition_counts(kafka, [kafka.topic(name) for name in (ALERTS_OPINION, ALERTS_CONTROL, EVENTS_DEAD)])
    asyncio.run(_serve(config, stop))


async def _serve(config: Config, stop: Event) -> None:
    registry = CollectorRegistry()
    notifier = Notifier(config, NotifyMetrics(registry))
    try:
        with Observer(config.observe, registry, notifier.health) as observer:
            pumps = [asyncio.ensure_future(lane.pump()) for lane in notifier.lanes]
            try:
                while not stop.is_set():
                    notifier.step()
                    observer.turned()
                    for pump in pumps:
                        if pump.done():
                            pump.result()
                    await asyncio.sleep(TICK_S)
                await notifier.drain(pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
    finally:
        await notifier.close()


class _Pending:
    """One alert of which not every sink has settled."""

    __slots__ = ("record", "remaining", "ticket")

    def __init__(self, record: Record, ticket: Ticket[bool], remaining: int) -> None:
        self.record, self.ticket, self.remaining = record, ticket, remaining


class Notifier:
    """Alerts between Kafka and the lanes. All calls come on one event loop; `health` from another thread only reads."""

    def __init__(self, config: Config, metrics: NotifyMetrics) -> None:
        self._config, self._kafka, self._metrics = config.notify, config.kafka, metrics
        self.lanes = [self._lane(name) for name in config.notify.sinks]
        self._by_name = {lane.name: lane for lane in self.lanes}
        for lane in self.lanes:
            metrics.dead_letters.labels(lane.name, "undeliverable")  # from 0, so that the first one is an increase
        self._controls = Controls()
        self._dispatcher = Dispatcher(config.notify, self._controls)
        self._ledger: OffsetLedger[bool] = OffsetLedger()
        self._control_feed = Readback(config.kafka, "notify.control", FOLLOW_WAIT_MS)
        for message in self._control_feed.follow(self._control_feed.places(config.kafka.topic(ALERTS_CONTROL))):
            self._control(message)
        self._letters: DeadLetters[_Pending] = DeadLetters(config.kafka)
        self._warned: set[str] = set()
        self._committing, self._commit_at = False, 0.0
        self._untaken_since_s: float | None = None  # since when there are offsets that Kafka has not taken
        alerts = topic_ids(config.kafka, [config.kafka.topic(ALERTS_OPINION)])
        self._source = KafkaSource(config.kafka, alerts, f"{config.kafka.group_prefix}.{GROUP}")

    def step(self) -> None:
        """Take in controls and alerts, settle what is over, commit."""
        for message in self._control_feed.poll():
            self._control(message)
        self._settle()
        if self._ledger.load >= UNFINISHED_MAX or any(lane.outbox.full for lane in self.lanes):
            self._source.pause()
        else:
            self._source.resume()
        polled = self._source.poll(POLL_RECORDS, 0.0, self._hand_over)
        self._forget(polled.lost)
        if polled.assigned:
            self._open(polled.assigned)
        for record in polled.records:
            self._take(record)
        for offsets, failure in polled.commits:
            self._committing = False
            if failure is None:
                self._ledger.committed(offsets)
                self._untaken_since_s = None
            else:
                _log.warning("offsets not committed, tried again", detail=failure)
        self._commit()

    async def drain(self, pumps: Sequence[asyncio.Future[None]]) -> None:
        """Let attempts under way come to their end, then commit what is finished; the next process tells the rest."""
        for lane in self.lanes:
            lane.stopping = True
            lane.wake.set()
        await asyncio.wait(pumps, timeout=DRAIN_S)
        deadline = time.monotonic() + DRAIN_S
        self._settle()
        while self._letters and time.monotonic() < deadline:
            await asyncio.sleep(TICK_S)
            self._settle()
        self._commit_now()

    async def close(self) -> None:
        """Leave the group, let go of connections."""
        self._source.close()
        self._control_feed.close()
        self._letters.close(DRAIN_S)
        for lane in self.lanes:
            await lane.close()

    def health(self) -> tuple[bool, dict[str, Any]]:
        """For ``/healthz``: not ready while Kafka takes no offsets. A sink that fails is told: the others go on."""
        since_s = self._untaken_since_s
        untaken_s = 0.0 if since_s is None else time.monotonic() - since_s
        return untaken_s < STALL_S, {
            "role": "notify",
            "offsets_untaken_s": round(untaken_s, 3),
            "partitions": len(self._ledger.partitions),
            "unfinished": self._ledger.load,
            "sinks": {
                lane.name: {"waiting": len(lane.outbox), "failures_in_a_row": lane.outbox.failures}
                for lane in self.lanes
            },
        }

    def _control(self, message: Any) -> None:
        if not self._controls.apply(message.key(), message.value()):
            _log.warning("a record of alerts.control is no control, passed over", offset=message.offset())

    def _lane(self, name: str) -> Lane:
        config, sink = self._config, self._config.sinks[name]
        limits = Limits(
            queue_max=config.queue_max,
            max_per_minute=sink.max_per_minute,
            retry_min_s=config.retry_min_ms / 1000,
            retry_max_s=config.retry_max_ms / 1000,
            give_up_s=config.give_up_minutes * 60,
            # A program may want every step of an alert's life; people want the latest.
            latest_only=not (isinstance(sink, WebhookConfig) and sink.format == "json"),
        )
        outbox = Outbox(limits, random.Random())  # noqa: S311 jitter, not a secret
        return Lane(name, outbox, sender(name, config, os.environ), self._silenced, self._metrics)

    def _silenced(self, notice: Notice) -> bool:
        return self._controls.silence(notice.alert, _now_ms()) is not None

    def _open(self, partitions: list[Partition]) -> None:
        self._ledger.assign(partitions)
        topic = self._kafka.topic(ALERTS_OPINION)
        parts = [TopicPartition(topic, number) for _, number in partitions]
        with closing(Readback(self._kafka, GROUP)) as reader:
            for message in reader.before(parts, SEEN_MAX):
                alert, _ = _decode(message.value())
                if alert is not None:
                    self._dispatcher.remember(message.partition(), alert)

    def _take(self, record: Record) -> None:
        ticket = self._ledger.begin((record.topic, record.partition), record.offset, "alert", time.monotonic())
        if ticket is None:
            return
        self._ledger.charge(ticket, 1)
        alert, problem = _decode(record.value)
        if alert is None:
            self._metrics.dead_letters.labels("", "wrong_type").inc()
            self._letters.write(record, "decode", "wrong_type", problem, "", _Pending(record, ticket, 1))
            return
        routed = self._dispatcher.route(record.partition, alert, _now_ms(), record.headers or ())
        if routed.unknown:
            self._warn(routed.unknown, alert.rule)
        pending = _Pending(record, ticket, max(1, len(routed.sinks)))
        if routed.skipped is not None:
            self._metrics.skipped.labels(routed.skipped).inc()
            self._one_less(pending)
            return
        if routed.notice is None:
            # Its sink was renamed or left out since: nobody can be told, and a letter must not end untold.
            self._metrics.dead_letters.labels("", "undeliverable").inc()
            self._letters.write(record, "notify", "undeliverable", UNKNOWN_SINK, routed.unknown[0], pending)
            return
        for name in routed.sinks:
            lane = self._by_name[name]
            lane.outbox.put(routed.notice, pending, time.monotonic())
            lane.wake.set()

    def _warn(self, names: Sequence[str], rule: str) -> None:
        for name in names:
            if name not in self._warned and len(self._warned) < WARNED_MAX:
                self._warned.add(name)
                _log.warning("an alert is for a sink that notify.sinks does not have", sink=name, rule=rule)

    def _settle(self) -> None:
        for lane in self.lanes:
            settled, lane.settled = lane.settled, []
            for each in settled:
                self._settle_one(lane, each)
            self._metrics.waiting.labels(lane.name).set(len(lane.outbox))
        for pending in self._letters.acknowledged():
            self._one_less(pending)

    def _settle_one(self, lane: Lane, settled: Settled) -> None:
        alert, pendings = settled.entry.notice.alert, settled.entry.handles
        if settled.withdrawn:
            self._metrics.skipped.labels("withdrawn").inc()
        if settled.failure is None:
            _log.info(
                "withdrawn" if settled.withdrawn else "told",
                sink=lane.name,
                alert_id=alert.alert_id,
                status=alert.status,
                subject=alert.subject,
            )
            for pending in pendings:
                self._one_less(pending)
            return
        _log.error("alert not delivered", sink=lane.name, alert_id=alert.alert_id, detail=settled.failure)
        for pending in pendings:
            self._metrics.dead_letters.labels(lane.name, "undeliverable").inc()
            self._letters.write(pending.record, "notify", "undeliverable", settled.failure, lane.name, pending)

    def _one_less(self, pending: _Pending) -> None:
        pending.remaining -= 1
        if pending.remaining <= 0:
            # Of a partition that has moved on: the ledger knows, and its next owner tells it again.
            self._ledger.finish(pending.ticket, True)

    def _commit(self) -> None:
        """Begin to commit what is finished, once in `COMMIT_INTERVAL_S`; a broker that is away must hold nobody up."""
        offsets, now_s = self._finished(), time.monotonic()
        if not offsets:
            self._untaken_since_s = None
        elif self._untaken_since_s is None:
            self._untaken_since_s = now_s
        if offsets and not self._committing and now_s >= self._commit_at:
            self._committing, self._commit_at = True, now_s + COMMIT_INTERVAL_S
            self._source.commit(offsets)

    def _commit_now(self) -> None:
        offsets = self._finished()
        if self._source.commit_now(offsets):
            self._ledger.committed(offsets)

    def _finished(self) -> Offsets:
        self._ledger.release()
        self._ledger.acknowledge(self._ledger.seal())
        return self._ledger.uncommitted()

    def _hand_over(self, partitions: list[Partition]) -> None:
        self._settle()
        self._commit_now()

    def _forget(self, partitions: list[Partition]) -> None:
        gone = set(partitions) & set(self._ledger.partitions)
        if not gone:
            return
        self._ledger.revoke(gone)
        for lane in self.lanes:
            lane.outbox.forget(lambda pending: (pending.record.topic, pending.record.partition) in gone)
        for _, number in gone:
            self._dispatcher.forget(number)


def _decode(value: bytes | None) -> tuple[Alert | None, str]:
    try:
        return _decoder.decode(value or b""), ""
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return None, f"not an alert: {error}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
