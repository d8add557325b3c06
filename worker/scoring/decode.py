"""Records to events. Any bytes at all give either an event or a dead letter; nothing here raises but a registry that is
away.

What msgspec says of bad input is sorted into reasons in one place, `_sort`; details name the field and what was
expected there, never what was found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

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
from worker.config import Lane
from worker.kafka.avro import AvroError
from worker.kafka.dead import dead_letter
from worker.kafka.records import Record
from worker.kafka.registry import FRAME_BYTES, SchemaRegistry

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


class Decoder:
    """Decodes the records of the topics in ``lanes`` (cluster's name to lane).

    ``registry`` reads what is framed for one; without, what follows the frame must be JSON.
    """

    def __init__(self, lanes: Mapping[str, Lane], registry: SchemaRegistry | None = None) -> None:
        self._registry = registry
        self._types = {topic: _TYPES[lane] for topic, lane in lanes.items()}
        self._decode: dict[str, Callable[[bytes], Event]] = {
            topic: msgspec.json.Decoder(kind).decode for topic, kind in self._types.items()
        }

    def decode(self, record: Record, now_ms: int) -> Event | DeadLetter:
        """The record's event, or its dead letter. ``now_ms`` is the clock that "the future" is measured against.

        Raises `RegistryError` when a schema is needed and the registry does not answer.
        """
        value = record.value
        if value is None:
            return dead_letter(record, "decode", "tombstone", "a record without value")
        if len(value) > MAX_EVENT_BYTES:
            return dead_letter(record, "decode", "too_large", f"more than {MAX_EVENT_BYTES} bytes")
        try:
            event = self._decode[record.topic](value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = self._second_look(record.topic, value)
            if isinstance(found, tuple):
                return dead_letter(record, "decode", *found)
            event = found
        if b"\\u0000" in value and (field := _nul_in_id(event)):
            # Identifiers become keys; keys that begin with NUL are ours.
            return dead_letter(record, "decode", "out_of_range", f"a NUL character - at `$.{field}`")
        latest = now_ms + FUTURE_LIMIT_MS
        if not EARLIEST_MS <= event.event_time_ms <= latest:
            return _mistimed(record, event.event_time_ms, "event_time_ms")
        answered = event.impression_time_ms if type(event) is ClickEvent else None
        if answered == 0:  # some serialisers write it for "none"
            event = msgspec.structs.replace(event, impression_time_ms=None)
        elif answered is not None and not EARLIEST_MS <= answered <= latest:
            return _mistimed(record, answered, "impression_time_ms")
        return event

    def _second_look(self, topic: str, value: bytes) -> Event | tuple[Reason, str]:
        """The event in bytes that failed for their frame or for what means absent; else reason and detail.

        Only what has failed once comes here: good events pay nothing for it.
        """
        framed = value[:1] == b"\x00" and len(value) > FRAME_BYTES
        if framed and self._registry is not None:
            try:
                value = self._registry.json_of(value)
            except AvroError as error:
                return error.reason, error.detail
        elif framed:
            value = value[FRAME_BYTES:]
        decode = self._decode[topic]
        try:
            try:
                return decode(value)
            except msgspec.ValidationError:
                if b"null" not in value and b'""' not in value:
                    raise
                return decode(without_absent(value, self._types[topic]))
        except UnicodeDecodeError:
            found: tuple[Reason, str] = "not_utf8", "invalid UTF-8 in a string"
        except RecursionError:
            found = "not_json", "nested too deep"
        except msgspec.DecodeError as error:
            found = _sort(error, value)
        blind = framed and self._registry is None
        return ("not_json", _FRAMED) if blind and found[0] in {"not_json", "not_utf8"} else found


def _mistimed(record: Record, time_ms: int, field: str) -> DeadLetter:
    if time_ms < EARLIEST_MS:
        detail = f"before March 1973 (seconds, not milliseconds?) - at `$.{field}`"
        return dead_letter(record, "decode", "out_of_range", detail)
    detail = f"more than {FUTURE_LIMIT_MS // 1000} s ahead of the clock - at `$.{field}`"
    return dead_letter(record, "decode", "future_time", detail)


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
