"""Settings of every Kafka client in one place, and librdkafka's errors turned into ours."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import confluent_kafka
from confluent_kafka import Consumer

from worker.config import GroupProtocol, KafkaConfig
from worker.errors import KafkaError, KafkaRefusedError, OffsetLostError, TopicError

REQUEST_TIMEOUT_S: Final = 10.0
"""How long a metadata or admin request may take before the broker counts as unreachable."""
CLOSE_TIMEOUT_S: Final = 10.0
"""How long a consumer may take to give its partitions back, and then to close, before it is left behind."""
LOG_AGAIN_S: Final = 60.0
"""The client says of a broker that is away that it is away some twenty times a second; logged is once in so long."""
_LOG_LINES: Final = 256

_log = logging.getLogger(__name__)
_client_log = logging.getLogger("worker.kafka")
# Not librdkafka's settings but the Python client's: their names keep the underscore.
_PYTHON_SETTINGS = frozenset({"logger", "error_cb", "stats_cb", "throttle_cb", "oauth_cb", "on_commit", "on_delivery"})

_code = confluent_kafka.KafkaError
_UNREACHABLE = frozenset(
    {_code._TRANSPORT, _code._ALL_BROKERS_DOWN, _code._TIMED_OUT, _code._RESOLVE, _code._MSG_TIMED_OUT}
    | {_code.NETWORK_EXCEPTION, _code.REQUEST_TIMED_OUT, _code.BROKER_NOT_AVAILABLE}
)
_NO_TOPIC = frozenset(
    {_code.UNKNOWN_TOPIC_OR_PART, _code._UNKNOWN_TOPIC, _code._UNKNOWN_PARTITION, _code.TOPIC_EXCEPTION}
)
NO_RIGHT = frozenset(
    {_code.TOPIC_AUTHORIZATION_FAILED, _code.GROUP_AUTHORIZATION_FAILED, _code.CLUSTER_AUTHORIZATION_FAILED}
    | {_code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED}
)
"""The broker knows us and says no: final, also for a role that runs."""
REFUSED = NO_RIGHT | {_code._AUTHENTICATION, _code.SASL_AUTHENTICATION_FAILED, _code._SSL}
"""Password, certificate or rights: final at the start. Later a broken handshake may be a broken connection."""
FENCED = frozenset({_code._FENCED, _code.PRODUCER_FENCED, _code.INVALID_PRODUCER_EPOCH})
"""Another producer has our transactional id now, or the broker ended our transaction: this one is past use."""
_NO_LEADER = frozenset({_code.NOT_LEADER_FOR_PARTITION, _code.LEADER_NOT_AVAILABLE, _code._UNKNOWN_PARTITION})
_OFFSET_LOST = frozenset({_code.OFFSET_OUT_OF_RANGE, _code._AUTO_OFFSET_RESET})


# A killed member's partitions wait this long for another: its readers' stall after kill -9. The client's own thread
# sends the heartbeats, so a long batch on the device does not cost the membership. With the protocol of KIP-848 both,
# and the assignment, are the broker's to set.
_TIMES: Final = {"session.timeout.ms": 8_000, "heartbeat.interval.ms": 2_000}
_GROUP: Final[dict[GroupProtocol, dict[str, Any]]] = {
    "cooperative": {"partition.assignment.strategy": "cooperative-sticky", **_TIMES},
    "eager": {"partition.assignment.strategy": "range", **_TIMES},
    "consumer": {"group.protocol": "consumer"},
}


class OnceInAWhile:
    """Lets a line of the client's log pass once in `LOG_AGAIN_S`, with how often it came meanwhile.

    Lines are alike that differ in client and thread in front and in times behind. Debug and information pass as they
    are: who asks for them wants all. Bounds: the `_LOG_LINES` latest lines.
    """

    def __init__(self) -> None:
        self._lines: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()  # every client logs on the thread that polls it

    def __call__(self, record: logging.LogRecord) -> bool:
        """Whether to log it: a filter of the `logging` module."""
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        line = (text.partition("]: ")[2] or text).partition(" (after ")[0]
        with self._lock:
            shown_s, held_back = self._lines.pop(line, (0.0, 0))
            passes = record.created - shown_s >= LOG_AGAIN_S
            self._lines[line] = (record.created, 0) if passes else (shown_s, held_back + 1)
            if len(self._lines) > _LOG_LINES:
                del self._lines[next(iter(self._lines))]
        if passes and held_back:
            record.msg, record.args = "%s; %d more like it since the last", (text, held_back)
        return passes


_client_log.addFilter(OnceInAWhile())


def client_config(kafka: KafkaConfig, **extra: Any) -> dict[str, Any]:
    """Settings that every client shares. ``kafka.options`` overrides them; ``extra`` overrides both.

    Keys of ``extra`` may be written with underscores: ``linger_ms=5`` sets ``linger.ms``. The client's own log
    lines go to the logger ``worker.kafka``, each once in a while; they are delivered while the client is polled.
    """
    config: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap,
        "client.id": "millrace",
        "log.connection.close": False,
        "logger": _client_log,
        **kafka.options,
    }
    for name, value in extra.items():
        config[name if name in _PYTHON_SETTINGS else name.replace("_", ".")] = value
    return config


def consumer_config(kafka: KafkaConfig, group: str, **extra: Any) -> dict[str, Any]:
    """Settings of a consumer: reads committed records only, stores no offsets by itself, begins at the earliest.

    ``group`` is the whole group id. A role that must stop when its next offset is gone passes
    ``auto_offset_reset="error"`` and seeks to the beginning itself where nothing was committed.
    """
    own: dict[str, Any] = {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "allow.auto.create.topics": False,
        "enable.partition.eof": False,
        **_GROUP[kafka.group_protocol],
    }
    return client_config(kafka, **{**own, **kafka.options, **extra})


def producer_config(kafka: KafkaConfig, **extra: Any) -> dict[str, Any]:
    """Settings of a producer: idempotent, acknowledged by all in-sync replicas, never giving a record up silently.

    ``message.timeout.ms`` 0 keeps a record until it is delivered or refused. Keys are partitioned as the Java
    client does it. The queue is bounded: at the bound ``produce`` raises ``BufferError``, which is back-pressure.
    """
    own: dict[str, Any] = {
        "enable.idempotence": True,
        "acks": "all",
        "message.timeout.ms": 0,
        "compression.type": "lz4",
        "linger.ms": 5,
        "partitioner": "murmur2_random",
        "message.max.bytes": 1024 * 1024 + 64 * 1024,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 256 * 1024,
    }
    return client_config(kafka, **{**own, **kafka.options, **extra})


def transactional_config(kafka: KafkaConfig, transactional_id: str, timeout_ms: int) -> dict[str, Any]:
    """Settings of a transactional producer; the broker ends a transaction open for longer than ``timeout_ms``."""
    limits = {"transaction.timeout.ms": timeout_ms, "message.timeout.ms": timeout_ms}
    return producer_config(kafka, **{"transactional.id": transactional_id, **limits})


def watermarks(
    consumer: confluent_kafka.Consumer, part: confluent_kafka.TopicPartition, patience_s: float = REQUEST_TIMEOUT_S
) -> tuple[int, int]:
    """First and next offset of a partition, asked of the broker. Raises librdkafka's exception.

    A partition that is just being made or moved has no leader for a moment, or one that is away: asked again for
    ``patience_s``.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            low, high = consumer.get_watermark_offsets(part, timeout=REQUEST_TIMEOUT_S)
        except confluent_kafka.KafkaException as error:
            passing = error.args[0].retriable() or error.args[0].code() in _NO_LEADER | _UNREACHABLE
            if not passing or time.monotonic() > deadline:
                raise
            consumer.poll(0.05)  # waits for new metadata rather than asking in a tight loop
        else:
            return low, high


def membership(consumer: Consumer) -> bytes | None:
    """The group's metadata as it is now, for offsets in a transaction; None while the client is no member.

    The broker takes offsets with metadata that names neither member nor generation from anybody, and a client that has
    not joined has such. One that was expelled (asleep for too long) names no member either; Kafka 4.4 refuses it for
    the generation that it still names, which is not relied on. `tests/real/test_worker_moves.py` tries both.
    """
    metadata: bytes = consumer.consumer_group_metadata()
    # Asked second: who is expelled in between has metadata that the broker refuses.
    return metadata if consumer.memberid() else None


def leave(consumer: Consumer) -> None:
    """Give the partitions back, leave the group, close. Takes twice `CLOSE_TIMEOUT_S` and what callbacks take at most.

    A client that closes while it is given partitions may wait for itself for ever (librdkafka#4527, #4884), so they are
    given back first; and where it hangs all the same it is left behind: its process ends, and the partitions move when
    its session is over. Raises what callbacks raise.
    """
    try:
        consumer.unsubscribe()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        while consumer.assignment() and time.monotonic() < deadline:
            consumer.poll(0.1)  # what is read is not committed: the next owner reads it
    except confluent_kafka.KafkaException as error:
        _log.warning("leaving a group: %s", error)
    finally:
        _close(consumer)


def _close(consumer: Consumer) -> None:
    try:
        within(consumer.close, CLOSE_TIMEOUT_S)
    except TimeoutError:
        _log.warning("a client did not close in %.0f s: its partitions move after its session", CLOSE_TIMEOUT_S)


def within(call: Callable[[], object], timeout_s: float) -> None:
    """A call of a client that may never return, on a thread of its own. Raises what it raises, TimeoutError when it has
    not returned in time: it is left to itself then, and does not keep the process from ending."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 raised again on the caller's thread
            raised.append(error)

    running = threading.Thread(target=run, name="client", daemon=True)
    running.start()
    running.join(timeout_s)
    if running.is_alive():
        raise TimeoutError(f"no answer in {timeout_s:g} s")
    if raised:
        raise raised[0]


def translate(error: confluent_kafka.KafkaException | confluent_kafka.KafkaError, doing: str) -> KafkaError:
    """Our error for librdkafka's, to be raised ``from`` it. ``doing`` completes "while ...", e.g. "reading events"."""
    cause = error.args[0] if isinstance(error, confluent_kafka.KafkaException) and error.args else error
    if not isinstance(cause, confluent_kafka.KafkaError):
        return KafkaError(f"Kafka failed while {doing}: {cause}")
    code, text = cause.code(), cause.str()
    if code in _UNREACHABLE:
        return KafkaError(
            f"Kafka does not answer while {doing}: {text}. Check kafka.bootstrap and that the broker runs"
            " (`make kafka` starts one on 127.0.0.1:9092)"
        )
    if code in _NO_TOPIC:
        return TopicError(f"topic missing while {doing}: {text}. Run `millrace topics create`")
    if code in REFUSED:
        return KafkaRefusedError(
            f"Kafka refused us while {doing}: {text}. Check the user, password and CA in kafka.options, and that the"
            " user has the rights that `millrace topics acls` lists"
        )
    if code in _OFFSET_LOST:
        return OffsetLostError(f"the next offset is gone while {doing}: {text}. Retention was shorter than the outage")
    return KafkaError(f"Kafka failed while {doing}: {text} ({cause.name()})")


def raise_if_final(error: confluent_kafka.KafkaError, doing: str) -> None:
    """Raise our error for what a reader was told and cannot outlive. The rest the client mends by itself: it is logged.

    ``doing`` as for `translate`. Raises `TopicError`, `OffsetLostError`, `KafkaError`.
    """
    cause = translate(error, doing)
    if isinstance(cause, TopicError | OffsetLostError) or error.fatal() or error.code() in NO_RIGHT:
        raise cause from confluent_kafka.KafkaException(error)
    _log.warning("%s: %s", doing, error.str())
