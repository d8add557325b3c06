"""The alerts role: reads ``opinions``, publishes ``alerts.opinion`` when negative opinion on a subject surges.

Faust runs the consumer group and recovers the table; `worker.alerts.watch` counts and writes, in the order of each
partition. Bounds: `MAX_POLL_RECORDS` a fetch, and no fetch before the last one is counted;
`worker.alerts.watch.MAX_UNWRITTEN` changed subjects, one write at a time, `STOP_TIMEOUT_S` for the last one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from threading import Event
from typing import Any, Final

import aiokafka.errors
import confluent_kafka
import structlog
from faust.exceptions import ProducerSendError
from prometheus_client import CollectorRegistry

from schemas.topics import ALERTS_OPINION, OPINIONS, TRENDS_OPINION
from worker.alerts.faust_app import (
    KeptApp,
    KeptTable,
    broker_urls,
    credentials,
    ensure_changelog,
    made_anew,
    other_partitions,
)
from worker.alerts.watch import TABLE, OpinionWatch, changelog_name
from worker.config import Config
from worker.errors import ConfigError, KafkaError, TopicError
from worker.kafka.admin import partition_counts, topic_ids
from worker.kafka.clients import NO_RIGHT
from worker.metrics import AlertsMetrics
from worker.observe import Observer

LINGER_S: Final = 0.1
"""How long an opinion waits for company before its state and alert are written."""
SESSION_TIMEOUT_S: Final = 10.0
"""How long a killed process holds its partitions."""
STOP_TIMEOUT_S: Final = 10.0
PARTITIONS_INTERVAL_S: Final = 30.0
"""How often the role looks whether ``opinions`` is what it was. Faust would go on: without its new partitions, or with
another topic of its name."""
MAX_POLL_RECORDS: Final = 500
"""Counted in one go of the event loop, some 50 ms; heartbeats have a thread of their own."""

_log = structlog.get_logger(__name__)


def run(config: Config, stop: Event) -> None:
    """Watch opinions until ``stop`` is set. Runs an event loop in the calling thread.

    Raises `TopicError` when a topic is missing, made anew, or has other partitions than before, `KafkaError` when
    the broker is away at the start or refuses.
    """
    for name in ("faust", "mode", "aiokafka", "worker.alerts.faust_app"):
        # They tell every step of every rebalance.
        logging.getLogger(name).setLevel(logging.WARNING)
    partition_counts(config.kafka, [config.kafka.topic(ALERTS_OPINION)])
    partitions = ensure_changelog(config.kafka, config.kafka.topic(OPINIONS), changelog_name(config))
    asyncio.run(_serve(config, stop, partitions))


async def _serve(config: Config, stop: Event, partitions: int) -> None:
    registry = CollectorRegistry()
    watch = OpinionWatch(config, AlertsMetrics(registry))
    watch.topic_id = topic_ids(config.kafka, [config.kafka.topic(OPINIONS)])[config.kafka.topic(OPINIONS)]
    watch.trend_partitions = _trend_partitions(config)
    app = watch.app = _make_app(config, watch, partitions)
    with Observer(config.observe, registry, watch.health) as observer:
        starting = asyncio.ensure_future(app.start())
        writing = asyncio.ensure_future(asyncio.sleep(0))
        checking = asyncio.ensure_future(_refuse_another_topic(config, partitions, watch))
        try:
            while not stop.is_set() and watch.failure is None and not app.crashed:
                await asyncio.sleep(LINGER_S)
                observer.turned()
                watch.reload_rules()
                if checking.done():
                    checking.result()
                if starting.done():
                    starting.result()
                    # Beside this loop: while Kafka is away a write waits for it, and a stop must not wait for that.
                    if writing.done():
                        writing.result()
                        writing = asyncio.ensure_future(watch.write_and_commit())
        except Exception as error:  # noqa: BLE001 raised again when Faust has been stopped
            watch.failure = watch.failure or error
        except asyncio.CancelledError:
            # Faust cancels what waits for it when it crashes; its reason is raised below.
            if watch.failure is None and not app.crashed:
                raise
        finally:
            checking.cancel()
            await _shut(watch, app, starting, writing)
    failure = watch.failure or app.crash_reason
    if failure is not None:
        raise _ours(failure) from failure.__cause__


async def _refuse_another_topic(config: Config, partitions: int, watch: OpinionWatch) -> None:
    """Tells ``watch`` whether Kafka answers. Raises `TopicError` once ``opinions`` has other partitions than these, is
    gone or made anew, `KafkaRefusedError` when the right to it is."""
    source = config.kafka.topic(OPINIONS)
    while True:
        await asyncio.sleep(PARTITIONS_INTERVAL_S)
        try:
            found = (await asyncio.to_thread(partition_counts, config.kafka, [source]))[source]
            topic_id = (await asyncio.to_thread(topic_ids, config.kafka, [source]))[source]
        except KafkaError as error:
            if _is_final(error):
                raise
            # Brokers that are away are the business of those who read and write.
            _log.warning("partitions could not be looked up", error=str(error))
            watch.kafka_answers = False
            continue
        watch.kafka_answers = True
        if found != partitions:
            raise other_partitions(source, found, changelog_name(config), partitions)
        if topic_id != watch.topic_id:
            raise made_anew(source)


def _is_final(error: KafkaError) -> bool:
    """Whether waiting does not help: the topic is gone, or our right to it. A broken handshake may be a broken line."""
    cause = error.__cause__
    refused = isinstance(cause, confluent_kafka.KafkaException) and cause.args[0].code() in NO_RIGHT
    return isinstance(error, TopicError) or refused


def _trend_partitions(config: Config) -> int:
    topic = config.kafka.topic(TRENDS_OPINION)
    try:
        return partition_counts(config.kafka, [topic])[topic]
    except TopicError:
        # Made by an earlier release: alerts matter more than pictures.
        _log.warning("no trends are written: the topic is missing; run `millrace topics create`", topic=topic)
        return 0


async def _shut(watch: OpinionWatch, app: Any, starting: asyncio.Future[Any], writing: asyncio.Future[Any]) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    try:
        if watch.failure is None and not app.crashed and starting.done():
            await asyncio.wait_for(watch.write_and_commit(force=True), STOP_TIMEOUT_S)
    except TimeoutError:
        _log.warning("not all written before the end; the next process counts it again", seconds=STOP_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 raised again when Faust has been stopped
        watch.failure = watch.failure or error
    writing.cancel()
    starting.cancel()
    try:
        await asyncio.wait_for(app.stop(), max(deadline - time.monotonic(), 1.0))
    except TimeoutError:
        _log.warning("Faust did not stop in time", seconds=STOP_TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 raised again by the caller, as ours
        watch.failure = watch.failure or error


def _ours(failure: BaseException) -> BaseException:
    if isinstance(failure, (aiokafka.errors.KafkaError, ProducerSendError, ConnectionError)):
        return KafkaError(f"Kafka failed while watching opinions: {failure}. Check kafka.bootstrap and the broker")
    return failure


def _make_app(config: Config, watch: OpinionWatch, partitions: int) -> Any:
    kafka = config.kafka
    data_dir = Path(config.alerts.data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)  # Faust makes only the last folder of a path
    except OSError as error:
        raise ConfigError(f"alerts.data_dir {data_dir}: {error.strerror}") from error
    app = KeptApp(
        f"{kafka.group_prefix}.alerts",
        keeper=watch,
        topic=kafka.topic(OPINIONS),
        broker=broker_urls(kafka),
        broker_credentials=credentials(kafka),
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=SESSION_TIMEOUT_S / 3,
        broker_max_poll_records=MAX_POLL_RECORDS,
        consumer_auto_offset_reset="earliest",
        datadir=data_dir,
        store="memory://",
        Table=KeptTable,
        # Our own topics are made before Faust starts; the leader topic is only for Faust's own leader election.
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        web_enabled=False,
        autodiscover=False,
    )
    app.Table(TABLE, key_type=bytes, value_type=bytes, partitions=partitions)
    # Subscribed to without a stream: the fetches feed the watch.
    app.topics.add(app.topic(kafka.topic(OPINIONS), acks=False))
    return app
