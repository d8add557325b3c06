"""A topic whose records are a shop's own: which of its fields is which field of an event. Pure.

``kafka.fields`` says it, by the topic's name on the cluster, in the rules of `worker.scoring.rules`. Of such a topic
only what the rules read counts. Beside the record's own fields they know where it came from: ``@topic``,
``@partition``, ``@offset``, ``@key`` (as text) and ``@timestamp`` (Kafka's, ms); in templates, too:
``{@topic}-{@partition}-{@offset}``.

``@when`` is no field: its rule alone says which records are events, those of which it is true: ``bool:valid``, or
``map:op(c=true, r=true, *=-)``. Where it stands a record without value, the mark of a deletion, is passed over as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from worker.errors import ConfigError, InputError
from worker.kafka.dead import first_written_ms
from worker.kafka.records import Record
from worker.scoring.rules import PASSED_OVER, WHEN, Rule, check_field, put, rule

PLACE: Final = frozenset({"@topic", "@partition", "@offset", "@key", "@timestamp"})


class Fields:
    """The rules of one topic, for events of type ``kind``. Raises `ConfigError`, naming topic and field."""

    def __init__(self, topic: str, kind: type[msgspec.Struct], sources: Mapping[str, str]) -> None:
        where = f"kafka.fields.{topic}"
        try:
            for field in sources.keys() - {WHEN}:
                check_field(field, where, kind)
            rules = [rule(field, source, where, kind, PLACE) for field, source in sources.items()]
        except InputError as error:
            raise ConfigError(str(error)) from error
        required = [field.name for field in msgspec.structs.fields(kind) if field.required]
        if missing := [name for name in required if name not in sources]:
            raise ConfigError(
                f"{where} fills no {', '.join(missing)}, and every event has them. Where the records have none:"
                " event_id: '{@topic}-{@partition}-{@offset}', event_time_ms: '@timestamp'"
            )
        # First those that may pass a record over: another kind of record may not fit the others.
        self._passing: list[Rule] = sorted(
            (each for each in rules if each.passes or each.field == WHEN), key=lambda each: each.field != WHEN
        )
        # And the context before what goes into it.
        self._filling = sorted((each for each in rules if each.field != WHEN), key=lambda each: each.field != "context")
        self.passes_deletions: Final = WHEN in sources
        self.names: Final = frozenset(name for each in rules for name in each.names)

    def event(self, record: Record, value: bytes) -> bytes | None:
        """The event as JSON, of a record whose value is (or stands for) this JSON; None where a rule passes it over.

        Raises `msgspec.DecodeError` for what is no JSON, and ValueError where a field is not as its rule wants it.
        """
        event = self._read(record, value)
        return None if event is None else msgspec.json.encode(event)

    def told(self, record: Record, value: bytes) -> tuple[str | None, int | None] | None:
        """Whose the record is and when it happened, ms, as far as its rules find it, whatever else is wrong with it;
        None where the value is no JSON object."""
        try:
            row, place = _row(value), _Place(record)
        except (ValueError, RecursionError):
            return None
        user_id = time_ms = None
        for each in self._filling:
            with suppress(ValueError):
                if each.field == "user_id":
                    user_id = each.read(row, place)
                elif each.field == "event_time_ms":
                    time_ms = each.read(row, place)
        if isinstance(user_id, int) or (isinstance(user_id, float) and user_id.is_integer()):
            user_id = str(int(user_id))  # no event takes it so, but it is meant
        return user_id if isinstance(user_id, str) else None, time_ms if isinstance(time_ms, int) else None

    def _read(self, record: Record, value: bytes) -> dict[str, Any] | None:
        row, place = _row(value), _Place(record)
        for each in self._passing:
            found = each.read(row, place)
            if found is PASSED_OVER or (each.field == WHEN and found is not True):
                return None
        event: dict[str, Any] = {}
        for each in self._filling:
            if (found := each.read(row, place)) is not None:
                put(event, each.field, found)
        return event


def _row(value: bytes) -> dict[str, Any]:
    row = msgspec.json.decode(value)
    if not isinstance(row, dict):
        raise msgspec.ValidationError("Expected `object`, got something else")
    return row


class _Place(dict[str, Any]):
    """Where a record came from. Raises UnicodeDecodeError when its key is asked for and is no text: two keys that look
    alike would be one person."""

    def __init__(self, record: Record) -> None:
        super().__init__(
            {
                "@topic": record.topic,
                "@partition": record.partition,
                "@offset": record.offset,
                "@timestamp": first_written_ms(record),
            }
        )
        self._key = record.key

    def __missing__(self, name: str) -> str | None:
        return None if self._key is None else self._key.decode()
