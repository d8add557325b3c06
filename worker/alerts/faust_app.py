"""Faust, bent to our delivery rules: read committed, positions from our own marks, state by partition.

What Faust gives here: the consumer group, the reassignment of partitions, and the recovery of a table from its
changelog. What it does not decide: when an opinion counts as done. Its acknowledgements pass over unfinished work
(faust#606), so they are off (``acks=False``), and a partition is read on from the position that its table holds.
Its consumers read uncommitted records unless its own exactly-once mode is on; ours read committed ones.

Records of ``topic`` go to the keeper by the fetch, not through one of Faust's streams, for two reasons. A stream costs
two tasks and three turns of the event loop for every record. And Faust seeks beside a running fetch: of a fetch that
came back meanwhile it may drop the first records (partition not open yet, flow suspended) and hand over those behind
them, and what it dropped is never read again. Here the one task that fetches also seeks, before it fetches; and what
was fetched while somebody wished for another seek is thrown away whole.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import aiokafka.errors
import confluent_kafka
import faust
import structlog
from confluent_kafka.admin import NewTopic
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from worker.config import KafkaConfig
from worker.errors import ConfigError, TopicError
from worker.kafka.admin import admin_client, partition_counts
from worker.kafka.clients import REQUEST_TIMEOUT_S, translate

CHANGELOG_SETTINGS: Final = {
    "cleanup.policy": "compact",
    # A state is written anew many times a minute: small segments, so that compaction keeps recovery short.
    "segment.bytes": str(16 * 1024 * 1024),
    "min.cleanable.dirty.ratio": "0.2",
}

NOTHING_TO_FETCH_S: Final = 0.1

_OPTIONS_USED: Final = frozenset(
    {"security.protocol", "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password", "ssl.ca.location"}
)
_PLAIN, _SSL, _SASL, _SASL_SSL = "PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"

_log = structlog.get_logger("worker.alerts")


class Keeper(Protocol):
    """Who owns the state of the partitions. All calls come on the app's event loop."""

    def recover(self, partition: int, key: bytes, value: bytes | None) -> None:
        """One record of the changelog, in its order."""

    def open(self, partitions: Iterable[int]) -> None:
        """The changelog of these partitions has been read to its end."""

    def partitions(self) -> list[int]:
        """Partitions that are open."""

    async def feed(self, partition: int, records: Sequence[Any]) -> None:
        """The next records of a partition, in their order."""

    def positions(self, earliest: Mapping[int, int], ends: Mapping[int, int]) -> dict[int, int]:
        """Next offset of the open partitions, given the first and the last there are; those left out are not sought."""

    async def release(self) -> None:
        """All partitions are being taken away: write what can be written, forget them."""


class KeptApp(faust.App):  # type: ignore[misc]
    """A Faust app that reads ``topic`` from the positions of its keeper, and feeds it."""

    def __init__(self, *args: Any, keeper: Keeper, topic: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keeper = keeper
        self.kept_topic = topic

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Any:
        return _Transport(self.conf.broker_producer, self)


class KeptTable(faust.Table):  # type: ignore[misc]
    """A table whose values live with the keeper, by partition; Faust reads them back from the changelog."""

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        for event in batch:
            message = event.message
            self.app.keeper.recover(message.partition, message.key, message.value)

    async def on_recovery_completed(self, active_tps: set[Any], standby_tps: set[Any]) -> None:
        await super().on_recovery_completed(active_tps, standby_tps)
        self.app.keeper.open(sorted(tp.partition for tp in active_tps))


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust has no setting for it, and the fetcher that takes it is only made at start.
        # tests/real/test_alerts.py aborts transactions and counts.
        consumer._isolation_level = "read_committed"
        return consumer

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        # Of partitions that have moved meanwhile (or whose topic was deleted) nothing is left to commit, and Faust
        # would crash on aiokafka's refusal of nothing.
        return bool(await super()._commit(offsets)) if offsets.keys() & self.assignment() else False

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust would look for the stream behind the fetch, and miss it."""

    async def on_thread_stop(self) -> None:
        try:
            await super().on_thread_stop()
        except (asyncio.CancelledError, aiokafka.errors.KafkaError):
            # aiokafka cannot close a fetch that waits to try again; the thread ends here anyway.
            _log.warning("the broker is away: the consumer ends without leaving its group")


class _Consumer(driver.Consumer):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Partitions of the kept topic that stand where their keeper wants them; another set for every wish to seek.
        self._sought: set[TP] = set()
        self._fetching: asyncio.Future[Any] | None = None

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        # Called after recovery, and when a fetch came back while the flow stood still: the next fetch seeks.
        self._sought = set()

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        if self._fetching is not None and not self._fetching.done():
            # Left by a call that was cancelled. Its thread would take records from behind the next seek.
            await asyncio.wait([self._fetching])
        topic, sought = self.app.kept_topic, self._sought
        active = active_partitions or set()
        kept = {TP(topic, partition) for partition in self.app.keeper.partitions()} & active
        wanted = {tp for tp in active if tp.topic != topic or tp in kept}
        if not wanted:
            # Assigned, and the changelog is not read to its end yet.
            await self.sleep(NOTHING_TO_FETCH_S)
            return {}
        try:
            if kept - sought:
                await self._seek_kept(kept - sought)
                sought |= kept
            self._fetching = asyncio.ensure_future(super()._getmany(wanted, timeout))
            fetched = await asyncio.shield(self._fetching)
            return await self._feed(fetched, sought)
        except BaseException:
            # What was fetched and not fed is read again.
            self._sought = set()
            raise

    async def _feed(self, fetched: dict[TP, Any], sought: set[TP]) -> dict[TP, Any]:
        """Give the keeper what is its own, if nobody wishes to seek meanwhile; the rest is Faust's."""
        for tp in [tp for tp in fetched if tp.topic == self.app.kept_topic]:
            records = fetched.pop(tp)
            if sought is self._sought and self.flow_active:
                await self.app.keeper.feed(tp.partition, records)
            else:
                self._sought = set()
        return fetched

    async def _seek_kept(self, tps: set[TP]) -> None:
        # Together: each waits behind a running fetch, up to a second.
        first, last = await asyncio.gather(self.earliest_offsets(*tps), self.highwaters(*tps))
        earliest = {tp.partition: at for tp, at in first.items()}
        ends = {tp.partition: at for tp, at in last.items()}
        positions = self.app.keeper.positions(earliest, ends)
        await self.seek_wait({tp: positions[tp.partition] for tp in tps if tp.partition in positions})

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        # Before the group goes on, so that the next owner of a partition finds all that we counted.
        self._sought = set()
        await self.app.keeper.release()
        for tp in self.app.tables.recovery.active_tps:
            # Partitions that come back are read from their beginning again, like all others.
            self.app.tables.recovery.revoke(tp)
        await super().on_partitions_revoked(revoked)


class _Producer(driver.Producer):  # type: ignore[misc]
    def _settings_extra(self) -> Mapping[str, Any]:
        # Idempotent: a retry can neither repeat a state nor put it behind a later one.
        return {"acks": "all", "enable_idempotence": True}


class _Transport(driver.Transport):  # type: ignore[misc]
    Consumer = _Consumer
    Producer = _Producer


def broker_urls(kafka: KafkaConfig) -> list[str]:
    """Faust's way to write ``kafka.bootstrap``."""
    return [f"kafka://{server.strip()}" for server in kafka.bootstrap.split(",") if server.strip()]


def credentials(kafka: KafkaConfig) -> Any:
    """Faust's credentials for the security settings of ``kafka.options`` (librdkafka's names), None for none.

    Raises `ConfigError` for a security setting that cannot be passed on: connecting without it would be worse.
    """
    options = {name: str(value) for name, value in kafka.options.items()}
    unknown = [
        name for name in options if name.startswith(("sasl.", "ssl.", "security.")) and name not in _OPTIONS_USED
    ]
    if unknown:
        raise ConfigError(
            f"kafka.options {', '.join(sorted(unknown))}: the alerts role cannot pass these to Faust, which takes"
            f" {', '.join(sorted(_OPTIONS_USED))}. Give that role a user with a password, and options of its own"
        )
    protocol = options.get("security.protocol", _PLAIN).upper()
    if protocol == _PLAIN:
        return None
    if protocol not in (_SSL, _SASL, _SASL_SSL):
        raise ConfigError(f"kafka.options security.protocol: {protocol} is not one of PLAINTEXT, SSL, SASL_*")
    try:
        context = ssl.create_default_context(cafile=options.get("ssl.ca.location")) if protocol != _SASL else None
    except OSError as error:
        raise ConfigError(f"kafka.options ssl.ca.location {options.get('ssl.ca.location')}: {error}") from error
    if protocol == _SSL:
        return SSLCredentials(context)
    mechanism = options.get("sasl.mechanism") or options.get("sasl.mechanisms", "PLAIN")
    try:
        return SASLCredentials(
            username=options.get("sasl.username"),
            password=options.get("sasl.password"),
            ssl_context=context,
            mechanism=mechanism,
        )
    except ValueError as error:
        raise ConfigError(f"kafka.options sasl.mechanism: {error}") from error


def ensure_changelog(kafka: KafkaConfig, source: str, name: str) -> int:
    """Make the changelog of a table over ``source`` if it is missing; returns the partitions of both.

    Raises `TopicError` when ``source`` is missing, or when its partitions are no longer those of the changelog:
    states would be looked for in the wrong one.
    """
    wanted = partition_counts(kafka, [source])[source]
    admin = admin_client(kafka)
    try:
        cluster = admin.list_topics(timeout=REQUEST_TIMEOUT_S)
        if name not in cluster.topics:
            _make_changelog(admin, kafka, name, wanted, min(3, len(cluster.brokers)))
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing=f"creating {name}") from error
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while name not in admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics and time.monotonic() < deadline:
        admin.poll(0.05)
    found = partition_counts(kafka, [name])[name]
    if found != wanted:
        raise other_partitions(source, wanted, name, found)
    return wanted


def other_partitions(source: str, wanted: int, name: str, found: int) -> TopicError:
    """The error of a changelog ``name`` with ``found`` partitions over a ``source`` that has ``wanted``."""
    return TopicError(
        f"{source} has {wanted} partitions, {name} has {found}. Stop all alerts processes and run"
        " `millrace alerts rebuild`: opinions still retained are counted again, and alerts keep their ids"
    )


def made_anew(source: str) -> TopicError:
    """The error of a ``source`` that was deleted and made again: its offsets are not those that were counted."""
    return TopicError(
        f"{source} has been made anew: other opinions were counted. Stop all alerts processes and run"
        " `millrace alerts rebuild`"
    )


def _make_changelog(admin: Any, kafka: KafkaConfig, name: str, partitions: int, copies: int) -> None:
    if kafka.embedded:
        admin.list_topics(topic=name, timeout=REQUEST_TIMEOUT_S)
        return
    topic = NewTopic(
        name, partitions, copies, config={**CHANGELOG_SETTINGS, "min.insync.replicas": str(max(1, copies - 1))}
    )
    try:
        admin.create_topics([topic], request_timeout=REQUEST_TIMEOUT_S)[name].result(timeout=2 * REQUEST_TIMEOUT_S)
    except confluent_kafka.KafkaException as error:
        # Another process made it between our look and our request.
        if error.args[0].code() != confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS:
            raise
