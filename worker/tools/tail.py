"""Follow topics of the contract, one readable line a record. No message text is shown; users are pseudonyms."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

import confluent_kafka
import msgspec

from schemas import dead, topics
from schemas.control import Control
from schemas.erasures import Erasure
from schemas.events import ClickEvent, ReviewEvent, ServiceEvent
from schemas.folds import decode_block
from schemas.scores import Alert, CtrScore, IntentScore, Opinion, SentimentScore
from schemas.states import FENCE_RECORD_KEY, decode_fence, decode_state
from schemas.trends import TrendBucket
from worker.config import Config, KafkaConfig
from worker.errors import InputError, TopicError
from worker.kafka.clients import REQUEST_TIMEOUT_S, consumer_config, translate, watermarks
from worker.kafka.records import Record
from worker.kafka.registry import SchemaRegistry
from worker.logs import pseudonym
from worker.scoring.decode import Decoder, lanes_of

Fields = dict[str, Any]
DEFAULT_TOPICS: Final = (topics.SCORES_CTR, topics.SCORES_SENTIMENT, topics.SCORES_INTENT, topics.ALERTS_OPINION)
_TYPES: Final[dict[str, Any]] = {
    topics.EVENTS_CLICK: ClickEvent,
    topics.EVENTS_REVIEW: ReviewEvent,
    topics.EVENTS_SERVICE: ServiceEvent,
    topics.SCORES_CTR: CtrScore,
    topics.SCORES_SENTIMENT: SentimentScore,
    topics.SCORES_INTENT: IntentScore,
    topics.OPINIONS: Opinion,
    topics.ALERTS_OPINION: Alert,
    topics.ERASURES: Erasure,
    topics.ALERTS_CONTROL: Control,
    topics.TRENDS_OPINION: TrendBucket,
}
# Words of a customer, and what was made of them: shown as their length.
_TEXTS: Final = frozenset({"text", "query", "title", "excerpt"})
# What every record repeats; the line has its own time and place.
_QUIET: Final = frozenset(
    {"v", "output_id", "model_version", "source", "event_time_ms", "process_time_ms"}
    | {"text_hash", "text_print", "author"}
)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One record, decoded and stripped of what people should not see. ``error`` says why it could not be read."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    fields: Fields = {}
    error: str | None = None


def decode(
    topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, Any]] | None, *, show_ids: bool
) -> Fields:
    """Fields of a record of the contract's ``topic``. Raises ValueError when it is not what the topic carries."""
    if topic == topics.EVENTS_DEAD:
        return _dead(value, headers or [])
    if value is None:
        return {"tombstone": True}
    if topic in topics.FOLDS.values():
        return _folds(value)
    if topic in topics.FEATURES.values():
        return _features(key, value, show_ids)
    return _shown(msgspec.json.decode(value, type=_TYPES[topic]), show_ids)


def _shown(decoded: Any, show_ids: bool) -> Fields:
    fields: Fields = msgspec.to_builtins(decoded)
    for name in _TEXTS & fields.keys():
        fields[f"{name}_chars"] = len(fields.pop(name))
    if fields.get("evidence"):
        fields["evidence"]["texts"] = len(fields["evidence"].get("texts", []))
    if fields.get("user_id") is not None and not show_ids:
        fields["user_id"] = pseudonym(fields["user_id"])
    if "candidates" in fields:
        fields["candidates"] = [
            {name: value for name, value in candidate.items() if name != "title"} for candidate in fields["candidates"]
        ]
    return fields


def follow(
    config: Config,
    names: tuple[str, ...],
    *,
    from_beginning: bool = False,
    count: int | None = None,
    show_ids: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Line]:
    """Records of the topics as they come, until ``count`` were seen or ``stop`` says so. Commits nothing.

    ``names`` are names of the contract or of the cluster. Events are read as the worker reads them. Raises
    `InputError`, `TopicError`, `KafkaError`, `RegistryError`, and `ConfigError` for rules that cannot be used.
    """
    kafka = config.kafka
    contracts = dict(_place(kafka, name) for name in names)
    registry = SchemaRegistry(config.registry) if config.registry.url else None
    events = Decoder(lanes_of(kafka), registry, kafka.fields)
    consumer = confluent_kafka.Consumer(consumer_config(kafka, f"{kafka.group_prefix}.tail-{uuid.uuid4().hex[:8]}"))
    try:
        _assign(consumer, list(contracts), from_beginning)
        seen = 0
        while not stop() and (count is None or seen < count):
            for message in consumer.consume(min(500, (count or 500) - seen if count else 500), 0.2):
                yield _line(contracts[message.topic()], events, message, show_ids)
                seen += 1
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="following topics") from error
    finally:
        consumer.close()
        if registry is not None:
            registry.close()


def summary(line: Line) -> str:
    """What one needs to see of a record, as ``name=value`` pairs."""
    if line.error is not None:
        return line.error
    return "  ".join(f"{name}={_short(value)}" for name, value in line.fields.items() if name not in _QUIET)


def clock(line: Line) -> str:
    """When the record was written, local time."""
    return datetime.datetime.fromtimestamp(line.time_ms / 1000).astimezone().strftime("%H:%M:%S")


def as_json(line: Line) -> str:
    """The record as one JSON line."""
    return msgspec.json.encode(line).decode()


def _place(kafka: KafkaConfig, name: str) -> tuple[str, str]:
    """A topic's name on the cluster, and what it carries, from either name. Raises `InputError`."""
    place = kafka.resolved(name)
    if place[1] not in topics.TOPICS:
        known = ", ".join((*topics.TOPICS, *kafka.added_topics))
        raise InputError(f"no topic {name!r} in the contract; it has {known}")
    return place


def _event(events: Decoder, message: Any, show_ids: bool) -> Fields:
    """An event as the worker reads it, or what it says in its letter. Raises ValueError."""
    place = message.topic(), message.partition(), message.offset()
    record = Record(*place, message.timestamp()[1], message.key(), message.value(), message.headers())
    found = events.decode(record, time.time_ns() // 1_000_000)
    if isinstance(found, dead.DeadLetter):
        raise ValueError(f"{found.reason}, {found.detail}")  # noqa: TRY004 as all that cannot be read
    return {"passed_over": True} if found is None else _shown(found, show_ids)


def _assign(consumer: confluent_kafka.Consumer, names: list[str], from_beginning: bool) -> None:
    metadata = consumer.list_topics(timeout=REQUEST_TIMEOUT_S).topics
    missing = [name for name in names if name not in metadata]
    if missing:
        raise TopicError(f"topics missing: {', '.join(missing)}. Run `millrace topics create`")
    parts = [confluent_kafka.TopicPartition(name, each) for name in names for each in metadata[name].partitions]
    for part in parts:
        # The end is asked for now, so that nothing written between now and the first fetch is missed.
        low, high = watermarks(consumer, part)
        part.offset = low if from_beginning else high
    consumer.assign(parts)


def _line(contract: str, events: Decoder, message: Any, show_ids: bool) -> Line:
    if message.error() is not None:
        raise translate(message.error(), doing="following topics")
    fields: Fields = {}
    error = None
    try:
        if contract in topics.INPUTS and message.value() is not None:
            fields = _event(events, message, show_ids)
        else:
            fields = decode(contract, message.key(), message.value(), message.headers(), show_ids=show_ids)
    except ValueError as problem:  # msgspec's errors and FormatError are ValueErrors
        error = f"cannot be read as the contract says: {problem}"
    kind, timestamp_ms = message.timestamp()
    known = kind != confluent_kafka.TIMESTAMP_NOT_AVAILABLE
    return Line(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        time_ms=timestamp_ms if known else time.time_ns() // 1_000_000,
        fields=fields,
        error=error,
    )


def _dead(value: bytes | None, headers: list[tuple[str, Any]]) -> Fields:
    given = {name: bytes(data).decode(errors="replace") for name, data in headers if isinstance(data, bytes)}
    shown = {
        "reason": dead.HEADER_REASON,
        "stage": dead.HEADER_STAGE,
        "detail": dead.HEADER_DETAIL,
        "topic": dead.HEADER_TOPIC,
        "partition": dead.HEADER_PARTITION,
        "offset": dead.HEADER_OFFSET,
    }
    return {name: given.get(header) for name, header in shown.items()} | {"bytes": len(value or b"")}


def _folds(value: bytes) -> Fields:
    block = decode_block(value)
    offsets = f"{block.offset.min()}..{block.offset.max()}" if len(block) else ""
    return {
        "kind": block.kind,
        "shard": block.shard,
        "space": block.space,
        "folds": len(block),
        "keys": len(set(block.keys)),
        "source_offsets": offsets,
        "clicked": float(block.counts[:, 1].sum()),
    }


def _features(key: bytes | None, value: bytes, show_ids: bool) -> Fields:
    if key == FENCE_RECORD_KEY:
        fence = decode_fence(value)
        return {"fence": True, "incarnation": fence.incarnation, "fold_offset": fence.fold_offset}
    state = decode_state(value)
    name = state.key if show_ids or state.kind == "item" else pseudonym(state.key)
    shown, clicked, purchased = state.counts[-1].tolist()
    return {
        "kind": state.kind,
        "key": name,
        "state_time_ms": state.time_ms,
        "fold_offset": state.fold_offset,
        "shown": shown,
        "clicked": clicked,
        "purchased": purchased,
    }


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(_short(each) for each in value[:3])}{', …' if len(value) > 3 else ''}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_short(each)}" for name, each in list(value.items())[:6]) + "}"
    # Control characters in ids must not steer the terminal.
    return "".join(char if char.isprintable() else "�" for char in str(value))
