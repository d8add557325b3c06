"""Avro values as JSON, so that the decoder reads one form and a field means the same in both. Pure.

Times of any resolution become milliseconds since 1970 UTC, as the contract has them (local ones are taken for UTC);
dates and times of day ISO text, decimals numbers, UUIDs text, bytes lists of numbers. A field that is null is left out,
and a number that is none becomes null: nothing is known. Everything else is what it is called.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from schemas.dead import Reason

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_LEAST_BYTES: Final = {"null": 0, "float": 4, "double": 8} | dict.fromkeys(
    ("boolean", "int", "long", "bytes", "string", "enum", "array", "map"), 1
)


class AvroError(ValueError):
    """A schema that cannot be used, or bytes that are not of it: what goes into the dead letter."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class AvroReader:
    """Reads values of one writer's schema.

    ``schema`` as parsed JSON, ``needed`` the schemas that it refers to, each behind those that it needs itself.
    Raises `AvroError` for one that is no Avro, or that lets a few bytes stand for depth or length without end: types
    that contain themselves (the library's reader ends the process on a deep value) and lists of what takes no bytes.
    """

    def __init__(self, schema: Any, needed: Sequence[Any] = ()) -> None:
        import fastavro

        known: dict[str, Any] = {}
        try:
            for reference in needed:
                fastavro.parse_schema(reference, named_schemas=known)
            self._schema = fastavro.parse_schema(schema, named_schemas=known)
        except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, *_WRONG) as error:
            raise AvroError("not_json", f"its schema is no Avro: {type(error).__name__}") from error
        _Walk(known).least_bytes(self._schema)
        self._read: Callable[..., Any] = fastavro.schemaless_reader

    def json(self, body: bytes) -> bytes:
        """The value as JSON. Raises `AvroError` for bytes that are not of the schema."""
        stream = io.BytesIO(body)
        try:
            value = self._read(stream, self._schema, None)
        except UnicodeDecodeError as error:
            raise AvroError("not_utf8", "invalid UTF-8 in a string of the Avro value") from error
        except (EOFError, *_WRONG) as error:
            raise AvroError("not_json", f"no Avro value of its schema: {type(error).__name__}") from error
        if left := len(body) - stream.tell():
            raise AvroError("not_json", f"no Avro value of its schema: {left} bytes are left behind it")
        return msgspec.json.encode(_plain(value))


_WRONG: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, MemoryError)
"""What the library raises of bytes and schemas that are not what they should be, beside its own errors."""


def _plain(value: Any) -> Any:
    plain = _PLAIN.get(type(value))
    return value if plain is None else plain(value)


def _time_ms(value: datetime) -> int:
    since = (value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH
    return since // _MILLISECOND


_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    dict: lambda value: {name: _plain(each) for name, each in value.items() if each is not None},
    list: lambda value: [_plain(each) for each in value],
    datetime: _time_ms,
    date: date.isoformat,
    time: time.isoformat,
    Decimal: float,
    uuid.UUID: str,
    bytes: list,
}


class _Walk:
    """How many bytes a value takes at least, walking all of a schema. Raises `AvroError`, see `AvroReader`."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = known
        self._least: dict[str, int | None] = {}  # of the records; None while inside one

    def least_bytes(self, schema: Any) -> int:
        if isinstance(schema, list):
            return 1 + min(map(self.least_bytes, schema), default=0)
        kind = schema if isinstance(schema, str) else schema["type"]
        if isinstance(kind, dict | list):
            return self.least_bytes(kind)
        if kind in ("record", "error"):
            return self._record(schema)
        if kind == "array" and self.least_bytes(schema["items"]) == 0:
            raise AvroError("not_json", "its schema has a list of what takes no bytes: it would have no bound")
        if kind == "map":
            self.least_bytes(schema["values"])
        if kind == "fixed":
            return int(schema["size"])
        return _LEAST_BYTES[kind] if kind in _LEAST_BYTES else self.least_bytes(self._known[kind])

    def _record(self, schema: Any) -> int:
        name = schema["name"]
        if name not in self._least:
            self._least[name] = None
            self._least[name] = sum(self.least_bytes(field["type"]) for field in schema["fields"])
        least = self._least[name]
        if least is None:
            raise AvroError("not_json", f"its schema has a type that contains itself ({name}): no event does")
        return least
