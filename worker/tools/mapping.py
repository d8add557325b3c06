"""Rows that are not events yet, made into events: ``field=source`` rules, and a preset for every input topic.

A rule's source is one of

    title          the row's value as it is
    ts*1000        a number times a factor, rounded to a whole number
    str:user_id    the value as text; also int:, float: and bool:
    {file}-{n}     a template of the row's values, the file's stem and the line number (from 1)
    @now           the time given by the caller, ms

A rule whose source the row lacks (or holds as null) sets nothing, so a later rule for the same field wins where
it can and the earlier one stands where it cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import yaml

from schemas.events import ClickEvent, ReviewEvent, ServiceEvent
from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE
from worker.errors import InputError

Row = Mapping[str, Any]

EVENT_TYPES: Final[dict[str, type[msgspec.Struct]]] = {
    EVENTS_CLICK: ClickEvent,
    EVENTS_REVIEW: ReviewEvent,
    EVENTS_SERVICE: ServiceEvent,
}

_COMMON: Final[tuple[str, ...]] = (
    "event_id={file}-{n}",
    "event_id=str:event_id",
    "event_time_ms=@now",
    "event_time_ms=ts*1000",
    "event_time_ms=event_time_ms",
    "user_id=str:user_id",
    "experiment_id=experiment_id",
)

PRESETS: Final[dict[str, tuple[str, ...]]] = {
    "clicks": (
        *_COMMON,
        *("item_id=str:item_id", "title=title", "query=query", "action=action", "context=context"),
        *("clicked=bool:clicked", "purchased=bool:purchased", "impression_id=str:impression_id"),
    ),
    # A row's category is left out: in labelled files it is the label that the model is to find.
    "reviews": (*_COMMON, "item_id=str:item_id", "title=title", "text=text", "stars=float:stars", "brand=brand"),
    "service": (*_COMMON, "text=text", "conversation_id=str:conversation_id", "channel=channel"),
}
PRESET_OF: Final = {EVENTS_CLICK: "clicks", EVENTS_REVIEW: "reviews", EVENTS_SERVICE: "service"}

_RULE = re.compile(r"(?P<field>\w+)=(?P<source>.+)", re.DOTALL)
_SCALED = re.compile(r"(?P<name>\w+)\*(?P<factor>\d+(\.\d+)?)")
_CAST = re.compile(r"(?P<cast>str|int|float|bool):(?P<name>\w+)")
_SLOT = re.compile(r"\{(\w+)\}")
_TRUE, _FALSE = frozenset({"1", "true", "yes", "y"}), frozenset({"0", "false", "no", "n", ""})


class EventMapping:
    """Rules of one replay. ``event`` turns one row into one event of the topic, or says why it cannot."""

    def __init__(self, topic: str, *, preset: str, rules: Sequence[str] = (), constants: Sequence[str] = ()) -> None:
        """``preset`` is a key of `PRESETS`, or ``none``: a row itself is the event, and ``rules`` change it.

        Raises `InputError` for a rule or constant that cannot be read, or that sets a field the topic does not have.
        """
        self._type = EVENT_TYPES[topic]
        self._decoder = msgspec.json.Decoder(self._type)
        fields = frozenset(self._type.__struct_fields__)
        self._keep_row = preset == "none"
        own = [_rule(text, "--map") for text in rules]
        self._constants = [_constant(text) for text in constants]
        for field in [field for field, _ in (*own, *self._constants)]:
            if field not in fields:
                raise InputError(f"{topic} has no field {field!r}; it has {', '.join(sorted(fields))}")
        # What an event is about: a row that fills none of it belongs elsewhere, however well it fits the type.
        self._content = fields - {"event_id", "event_time_ms", "user_id", "action", "experiment_id", "context"}
        known = [] if self._keep_row else [_rule(text, "preset") for text in PRESETS[preset]]
        self._rules = [*((field, source) for field, source in known if field in fields), *own]

    def event(self, row: Row, *, file: str, n: int, now_ms: int) -> tuple[str, bytes]:
        """Kafka key (user, else event id) and JSON bytes of the row's event. Raises ValueError saying what is wrong."""
        event: dict[str, Any] = dict(row) if self._keep_row else {}
        known = {**row, "file": file, "n": n, "@now": now_ms}
        for field, source in self._rules:
            value = source(known)
            if value is not None:
                event[field] = value
        if not self._content & event.keys():
            raise ValueError(
                f"the row has none of {', '.join(sorted(self._content))} (does it belong to another topic?)"
            )
        event.update(self._constants)
        encoded = msgspec.json.encode(event)
        checked: Any = self._decoder.decode(encoded)  # a ValidationError is a ValueError and names the field
        return checked.user_id or checked.event_id, encoded


def _rule(text: str, where: str) -> tuple[str, Callable[[Row], Any]]:
    match = _RULE.fullmatch(text)
    if match is None:
        raise InputError(f"{where} {text}: expected field=source, e.g. --map event_time_ms=ts*1000")
    return match["field"], _source(match["source"], f"{where} {text}")


def _constant(text: str) -> tuple[str, Any]:
    field, eq, value = text.partition("=")
    if not eq:
        raise InputError(f"--set-field {text}: expected field=value, e.g. --set-field action=impression")
    try:
        return field, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set-field {text}: {value!r} is not a YAML value") from error


def _source(text: str, where: str) -> Callable[[Row], Any]:
    if scaled := _SCALED.fullmatch(text):
        name, factor = scaled["name"], float(scaled["factor"])
        return lambda row: None if row.get(name) is None else round(_number(row[name], name) * factor)
    if cast := _CAST.fullmatch(text):
        name, convert = cast["name"], _CASTS[cast["cast"]]
        return lambda row: None if row.get(name) is None else convert(row[name], name)
    if _SLOT.search(text):
        return lambda row: _SLOT.sub(lambda slot: _text(row.get(slot[1], ""), slot[1]), text)
    if text == "@now" or re.fullmatch(r"\w+", text):
        return lambda row: row.get(text)
    raise InputError(f"{where}: a source is a field, field*number, str:field, a {{template}} or @now")


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a number") from error


def _text(value: Any, name: str) -> str:
    if isinstance(value, dict | list):
        raise ValueError(f"{name} is not text or number")  # noqa: TRY004 all that a row can have wrong is a ValueError
    return str(value)


def _truth(value: Any, name: str) -> bool:
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{name} is neither true nor false")


_CASTS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "str": _text,
    "int": lambda value, name: int(_number(value, name)),
    "float": _number,
    "bool": _truth,
}
