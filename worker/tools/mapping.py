"""Rows that are not events yet, made into events: `worker.scoring.rules`, and a preset of them for every input topic.

A later rule for the same field wins where it sets something; the earlier one stands where it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import yaml

from schemas.dead import DeadLetter
from schemas.events import EARLIEST_MS, FUTURE_LIMIT_MS, ClickEvent, ReviewEvent, ServiceEvent, without_absent
from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE
from worker.config import KafkaConfig
from worker.errors import InputError
from worker.kafka.records import Record
from worker.scoring.decode import Decoder, lanes_of
from worker.scoring.rules import ABSENT, PASSED_OVER, Row, Rule, check_field, find, parse, put

EVENT_TYPES: Final[dict[str, type[msgspec.Struct]]] = {
    EVENTS_CLICK: ClickEvent,
    EVENTS_REVIEW: ReviewEvent,
    EVENTS_SERVICE: ServiceEvent,
}

_COMMON: Final[tuple[str, ...]] = (
    "event_id={file}-{n}",
    "event_id=str:event_id",
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
    # Other shops' categories and topics are trees and lists of all shapes: those of ours are kept.
    "reviews": (
        *(*_COMMON, "item_id=str:item_id", "title=title", "text=text", "stars=float:stars", "brand=brand"),
        *("category=fit:category", "topics=fit:topics"),
    ),
    "service": (*_COMMON, "text=text", "conversation_id=str:conversation_id", "channel=channel"),
}
PRESET_OF: Final = {EVENTS_CLICK: "clicks", EVENTS_REVIEW: "reviews", EVENTS_SERVICE: "service"}

_UNITS: Final = (
    (1000, "seconds? multiply by 1000"),
    (1e-3, "milliseconds already? then without *1000; microseconds? multiply by 0.001"),
    (1e-6, "nanoseconds? multiply by 0.000001"),
)


class _Names:
    """Fields of rows beside the paths that are ``read`` of them."""

    def __init__(self, read: Iterable[str]) -> None:
        self._used = {name for path in read for name in (path, path.partition(".")[0])}
        self._seen: dict[str, None] = {}  # a set that keeps the order

    def see(self, row: Row) -> None:
        self._seen.update(dict.fromkeys(row))

    @property
    def unused(self) -> list[str]:
        return [name for name in self._seen if name not in self._used]


class EventMapping:
    """Rules of one replay. ``event`` turns one row into one event of the topic, or says why it cannot.

    What it has seen of the rows it knows in the end: ``unmet``, rules of the caller's and the fields that they read
    and no row had, and ``unused``, fields of the rows that nothing reads.
    """

    def __init__(
        self,
        topic: str,
        *,
        preset: str,
        rules: Sequence[str] = (),
        constants: Sequence[str] = (),
        start_time_ms: int | None = None,
    ) -> None:
        """``preset`` is a key of `PRESETS`, or ``none``: a row itself is the event, and ``rules`` change it.

        ``start_time_ms`` is what @now means, else the clock, and the time of rows without one, else refused. Raises
        `InputError` for a rule or constant that cannot be read, or that sets a field the topic does not have.
        """
        self._type = EVENT_TYPES[topic]
        self._decode = msgspec.json.Decoder(self._type).decode
        fields = frozenset(self._type.__struct_fields__)
        self._keep_row, self._start_time_ms = preset == "none", start_time_ms
        own = [parse(text, "--map", self._type) for text in rules]
        self._constants = [_constant(text) for text in constants]
        for field in [*(rule.field for rule in own), *(field for field, _ in self._constants)]:
            check_field(field, topic, self._type)
        # What an event is about: a row that fills none of it belongs elsewhere, however well it fits the type.
        self._content = fields - {"event_id", "event_time_ms", "user_id", "action", "experiment_id", "context"}
        known = [] if self._keep_row else [parse(text, "preset", self._type) for text in PRESETS[preset]]
        self._rules: list[Rule] = [*(rule for rule in known if rule.field in fields), *own]
        read = {name for rule in self._rules for name in rule.names}
        self._names = _Names(read | fields if self._keep_row else read)
        self.unmet: list[tuple[str, str]] = [(rule.text, name) for rule in own for name in rule.names]

    @property
    def unused(self) -> list[str]:
        """Fields of the rows so far that nothing reads, as they came."""
        return self._names.unused

    def event(self, row: Row, *, file: str, n: int, now_ms: int) -> tuple[str, bytes] | None:
        """Kafka key (user, else event id) and JSON bytes of the row's event, None where a rule passes the row over.

        Raises ValueError saying what is wrong.
        """
        self._names.see(row)
        self.unmet = [each for each in self.unmet if find(row, each[1], ABSENT) is ABSENT]
        event: dict[str, Any] = dict(row) if self._keep_row else {}
        start_ms = self._start_time_ms
        place = {"file": file, "n": n, "@now": now_ms if start_ms is None else start_ms}
        # First what may pass the row over: another kind of row may not fit the other rules.
        if any(rule.passes and rule.read(row, place) is PASSED_OVER for rule in self._rules):
            return None
        for rule in self._rules:
            value = rule.read(row, place)
            if value is not None:
                put(event, rule.field, value)
        if not self._content & event.keys():
            raise ValueError(
                f"the row has none of {', '.join(sorted(self._content))} (does it belong to another topic?)"
            )
        for field, value in self._constants:
            put(event, field, value)
        if event.get("event_time_ms") is None:
            if start_ms is None:
                raise ValueError("the row has no event time (--map event_time_ms=…, or --start-time for such rows)")
            event["event_time_ms"] = start_ms
        encoded = msgspec.json.encode(event)
        checked = self._checked(encoded)
        for field in ("event_time_ms", "impression_time_ms"):
            _check_time(field, getattr(checked, field, None), now_ms)
        return checked.user_id or checked.event_id, encoded

    def _checked(self, encoded: bytes) -> Any:
        try:
            return self._decode(encoded)
        except msgspec.ValidationError:  # a ValueError that names the field, unless it is what means absent
            return self._decode(without_absent(encoded, self._type))


class OwnRows:
    """Rows of a topic that the worker reads by rules of its own (``kafka.fields``): those that make an event go as they
    are. Otherwise as `EventMapping`.
    """

    def __init__(self, kafka: KafkaConfig, topic: str) -> None:
        """Raises `ConfigError` for rules that cannot be used, `InputError` for those that no row of a file can feed."""
        if any("@key" in source for source in kafka.fields[topic].values()):
            raise InputError(
                f"--topic {topic}: its rules read @key, and rows of a file have none; send records with their keys by"
                " another tool, or to a topic of kafka.backfill with rules that do without"
            )
        self._topic = topic
        self._decoder = Decoder(lanes_of(kafka), fields=kafka.fields)
        self._names = _Names(self._decoder.fields[topic].names)
        self.unmet: list[tuple[str, str]] = []

    @property
    def unused(self) -> list[str]:
        """Fields of the rows so far that no rule reads, as they came."""
        return self._names.unused

    def event(self, row: Row, *, file: str, n: int, now_ms: int) -> tuple[str, bytes] | None:
        """Kafka key (user, else event id) and the row's JSON bytes, None where the rules pass it over.

        Raises ValueError saying what is wrong.
        """
        self._names.see(row)
        value = msgspec.json.encode(row)
        found = self._decoder.decode(Record(self._topic, 0, n, now_ms, None, value), now_ms)
        if isinstance(found, DeadLetter):
            raise ValueError(found.detail)  # noqa: TRY004 all that a row can have wrong is a ValueError
        return None if found is None else (found.user_id or found.event_id, value)


def _check_time(field: str, time_ms: int | None, now_ms: int) -> None:
    latest = now_ms + FUTURE_LIMIT_MS
    if time_ms is None or EARLIEST_MS <= time_ms <= latest:
        return
    units = [hint for factor, hint in _UNITS if EARLIEST_MS <= time_ms * factor <= latest]
    wrong = "before March 1973" if time_ms < EARLIEST_MS else f"more than {FUTURE_LIMIT_MS // 1000} s in the future"
    raise ValueError(f"{field} is {wrong}" + "".join(f" ({hint})" for hint in units))


def _constant(text: str) -> tuple[str, Any]:
    field, eq, value = text.partition("=")
    if not eq:
        raise InputError(f"--set-field {text}: expected field=value, e.g. --set-field action=impression")
    try:
        return field, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set-field {text}: {value!r} is not a YAML value") from error
