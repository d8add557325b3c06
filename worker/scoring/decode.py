"""Records to events. Any bytes at all give an event, a dead letter, or nothing where the topic's own rules say so;
nothing here raises but a registry that is away.

What msgspec says of bad input is sorted into reasons in one place, `_sort`; details name the field and what was
expected there, never what was found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec

from schemas.dead import DeadLetter, Reason
from schemas.events import (
    EARLIEST_MS,
    FUTURE_LIMIT_MS,
    ClickEvent,
    Event,
    ReviewEvent,
    ServiceEvent,
    without_absent,
)
from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE, MAX_EVENT_BYTES
from worker.config import KafkaConfig, Lane
from worker.errors import ConfigError, RegistryError
from worker.kafka.avro import AvroError
from worker.kafka.dead import dead_letter
from worker.kafka.records import Record
from worker.kafka.registry import FRAME_BYTES, SchemaRegistry
from worker.privacy.person import names_somebody, people_of, time_of
from worker.scoring.fields import Fields

LANES: Final[dict[str, Lane]] = {EVENTS_SERVICE: "service", EVENTS_CLICK: "click", EVENTS_REVIEW: "review"}
"""Contract topic to lane."""
BACKFILL: Final = "backfill"
"""The lane in which events of any kind wait that are replayed at low priority; it has topics of its own."""

_TYPES: Final[dict[Lane, Any]] = {"service": ServiceEvent, "click": ClickEvent, "review": ReviewEvent}
_IDS: Final = ("event_id", "user_id", "item_id", "impression_id", "conversation_id")
_TOO_SHORT = re.compile(r"Expected `\w+` of length >=")
_TOO_LONG = re.compile(r"Expected `\w+` of length <=")
_BOUND = re.compile(r"Expected `\w+` [<>]")
_FRAMED: Final = (
    "framed by a schema registry, and what follows its 5 bytes is no JSON (Avro or Protobuf?);"
    " Avro is read where registry.url names the registry"
)


def lanes_of(kafka: KafkaConfig) -> dict[str, Lane]:
    """Topics to read, those that are added to the contract's too, and which kind of event each carries."""
    live = {kafka.topic(contract): lane for contract, lane in LANES.items()}
    return live | {topic: LANES[contract] for topic, contract in kafka.added_topics.items()}


class Told(NamedTuple):
    """What a record without event tells: ids that it may be about, whether that is sure, and when it happened, ms."""

    people: set[str]
    sure: bool
    time_ms: int | None


class Decoder:
    """Decodes the records of the topics in ``lanes`` (cluster's name to lane).

    ``registry`` reads what is framed for one; without, what follows the frame must be JSON. ``fields`` are the sources
    of topics whose fields are a shop's own (``kafka.fields``): raises `ConfigError` where they cannot be used.
    """

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        registry: SchemaRegistry | None = None,
        fields: Mapping[str, Mapping[str, str]] = {},
    ) -> None:
        self._registry = registry
        if strange := sorted(fields.keys() - lanes):
            raise ConfigError(f"kafka.fields.{strange[0]}: events are read from {', '.join(sorted(lanes))}")
        self.fields: Final = {topic: Fields(topic, _TYPES[lanes[topic]], given) for topic, given in fields.items()}
        self._types = {topic: _TYPES[lane] for topic, lane in lanes.items()}
        self._decode: dict[str, Callable[[bytes], Event]] = {
            topic: msgspec.json.Decoder(kind).decode for topic, kind in self._types.items()
        }

    def decode(self, record: Record, now_ms: int) -> Event | DeadLetter | None:
        """The record's event, its dead letter, or None where the topic's own rules pass it over.

        ``now_ms`` is the clock that "the future" is measured against. Raises `RegistryError` when a schema is needed
        and the registry does not answer.
        """
        value = record.value
        if value is None and record.topic in self.fields and self.fields[record.topic].passes_deletions:
            return None
        if value is None:
            return dead_letter(record, "decode", "tombstone", "a record without value")
        if len(value) > MAX_EVENT_BYTES:
            return dead_letter(record, "decode", "too_large", f"more than {MAX_EVENT_BYTES} bytes")
        event: Event | None = None
        if record.topic not in self.fields:
            try:
                event = self._decode[record.topic](value)
            except (ValueError, RecursionError):
                event = None  # looked at again below
        if event is not None and b"\\u0000" not in value:
            return _in_time(record, event, now_ms)
        found = self._second_look(record, value) if event is None else event
        if found is None:
            return None
        if isinstance(found, tuple):
            return dead_letter(record, "decode", *found)
        if field := _nul_in_id(found):
            # Identifiers become keys; keys that begin with NUL are ours.
            return dead_letter(record, "decode", "out_of_range", f"a NUL character - at `$.{field}`")
        return _in_time(record, found, now_ms)

    def told(self, record: Record) -> Told:
        """What the bytes of a record tell that became no event; its key is an id, too."""
        value = record.value or b""
        with suppress(AvroError, RegistryError):  # bytes that nobody can read tell what they tell
            value = self._unframed(value)
        fields = self.fields.get(record.topic)
        told = None if fields is None else fields.told(record, value)
        if told is None:
            return Told(people_of(record.key, value), names_somebody(record.key, value), time_of(value))
        user_id, time_ms = told
        return Told(people_of(record.key, None) if user_id is None else {user_id}, user_id is not None, time_ms)

    def _second_look(self, record: Record, value: bytes) -> Event | tuple[Reason, str] | None:
        """The event in bytes that failed for their frame or for what means absent, or whose fields are a shop's own;
        else reason and detail, or None where the rules pass it over.

        Only what has failed once comes here: good events pay nothing for it.
        """
        framed = _is_framed(value)
        try:
            value = self._unframed(value)
            if (fields := self.fields.get(record.topic)) is not None:
                own = fields.event(record, value)
                if own is None:
                    return None
                value = own
            return self._typed(record.topic, value)
        except (ValueError, ArithmeticError, RecursionError) as error:
            found = _why(error, value, record.topic)
        blind = framed and self._registry is None
        return ("not_json", _FRAMED) if blind and found[0] in {"not_json", "not_utf8"} else found

    def _unframed(self, value: bytes) -> bytes:
        if not _is_framed(value):
            return value
        return value[FRAME_BYTES:] if self._registry is None else self._registry.json_of(value)

    def _typed(self, topic: str, value: bytes) -> Event:
        try:
            return self._decode[topic](value)
        except msgspec.ValidationError:
            if b"null" not in value and b'""' not in value:
                raise
            return self._decode[topic](without_absent(value, self._types[topic]))


def _is_framed(value: bytes) -> bool:
    return value[:1] == b"\x00" and len(value) > FRAME_BYTES


def _in_time(record: Record, event: Event, now_ms: int) -> Event | DeadLetter:
    latest = now_ms + FUTURE_LIMIT_MS
    if not EARLIEST_MS <= event.event_time_ms <= latest:
        return _mistimed(record, event.event_time_ms, "event_time_ms")
    answered = event.impression_time_ms if type(event) is ClickEvent else None
    if answered == 0:  # some serialisers write it for "none"
        event = msgspec.structs.replace(event, impression_time_ms=None)
    elif answered is not None and not EARLIEST_MS <= answered <= latest:
        return _mistimed(record, answered, "impression_time_ms")
    return event


def _mistimed(record: Record, time_ms: int, field: str) -> DeadLetter:
    if time_ms < EARLIEST_MS:
        detail = f"before March 1973 (seconds, not milliseconds?) - at `$.{field}`"
        return dead_letter(record, "decode", "out_of_range", detail)
    detail = f"more than {FUTURE_LIMIT_MS // 1000} s ahead of the clock - at `$.{field}`"
    return dead_letter(record, "decode", "future_time", detail)


def _why(error: Exception, value: bytes, topic: str) -> tuple[Reason, str]:
    """Reason and detail of what went wrong with a value."""
    if isinstance(error, AvroError):
        return error.reason, error.detail
    if isinstance(error, UnicodeDecodeError):
        return "not_utf8", "invalid UTF-8 in a string"
    if isinstance(error, RecursionError):
        return "not_json", "nested too deep"
    if isinstance(error, msgspec.DecodeError):
        return _sort(error, value)
    # Of a rule: it names its field, and never what it found there.
    return "wrong_type", f"{error} (kafka.fields.{topic})"


def _sort(error: msgspec.DecodeError, value: bytes) -> tuple[Reason, str]:
    """Reason and detail of what msgspec said; its text is the only place where it tells these apart."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        try:
            value.decode()
        except UnicodeDecodeError as bad:
            return "not_utf8", f"invalid UTF-8 at byte {bad.start}"
        return "not_json", text
    if text.startswith("Object missing required field"):
        return "missing_field", text
    if _TOO_SHORT.match(text):
        return ("empty_text" if text.endswith("`$.text`") else "out_of_range"), text
    if _TOO_LONG.match(text):
        return "too_large", text
    if _BOUND.match(text) or "out of range" in text:
        return "out_of_range", text
    if text.startswith("Expected "):
        return "wrong_type", text
    # Such as "Invalid enum value 'x'": what was found stays out of the letter's headers.
    return "wrong_type", "not an allowed value" + "".join(text.rpartition(" - at ")[1:])


def _nul_in_id(event: Event) -> str | None:
    for field in _IDS:
        if "\x00" in (getattr(event, field, None) or ""):
            return field
    if type(event) is ClickEvent and any("\x00" in candidate.item_id for candidate in event.candidates):
        return "candidates[...].item_id"
    return None
