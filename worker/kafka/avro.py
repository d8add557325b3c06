"""Avro values as JSON, so that the decoder reads one form and a field means the same in both. Pure.

Times of any resolution become milliseconds since 1970 UTC, as the contract has them (local ones are taken for UTC);
dates and times of day ISO text, decimals numbers (whole ones to the last digit), bytes lists of numbers. A field that
is null is left out, and a number, date or time that is none becomes null: nothing is known. Everything else is what it
is called.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from schemas.dead import Reason

MAX_DECIMAL_BYTES: Final = 64
"""Of 154 digits. The cost of a longer one grows with the square of its bytes."""
MAX_VALUES: Final = 100_000
"""Of one value without its lists and maps: types that hold others twice double with every level."""

_TOP: Final = "MillraceValue"  # in no namespace: names without one are looked for in that of the record
_MIDNIGHT: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNIX_EPOCH: Final = _MIDNIGHT.toordinal()
_DAY_MICROSECONDS: Final = 86_400_000_000
_LEAST_BYTES: Final = {"null": 0, "float": 4, "double": 8} | dict.fromkeys(
    ("boolean", "int", "long", "bytes", "string", "enum", "array", "map"), 1
)
_WRONG: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, MemoryError)
"""What the library raises of bytes and schemas that are not what they should be, beside its own errors."""


class AvroError(ValueError):
    """A schema that cannot be used, or bytes that are not of it: what goes into the dead letter."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class AvroReader:
    """Reads values of one writer's schema.

    ``schema`` as parsed JSON, ``needed`` the schemas that it refers to, each behind those that it needs itself.
    Raises `AvroError` for one that is no Avro, or that lets a few bytes stand for depth or length without end: types
    that contain themselves (the library's reader ends the process on a deep value), lists of what takes no bytes, and
    more than `MAX_VALUES` in one.
    """

    def __init__(self, schema: Any, needed: Sequence[Any] = ()) -> None:
        import fastavro

        fastavro.read.LOGICAL_READERS.update(_READERS)
        known: dict[str, Any] = {}
        try:
            for reference in needed:
                fastavro.parse_schema(_with_ours(reference), named_schemas=known)
            # A record of one field has the bytes of the field; in a record the library finds what is referred to.
            top = {"type": "record", "name": _TOP, "fields": [{"name": "value", "type": _with_ours(schema)}]}
            self._schema = fastavro.parse_schema(top, named_schemas=known)
            _Walk(known).extent(self._schema)
        except AvroError:
            raise
        except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, RecursionError, *_WRONG) as error:
            raise AvroError("not_json", f"its schema is no Avro: {type(error).__name__}") from error
        self._read: Callable[..., Any] = fastavro.schemaless_reader

    def json(self, body: bytes) -> bytes:
        """The value as JSON. Raises `AvroError` for bytes that are not of the schema."""
        stream = io.BytesIO(body)
        try:
            value = self._read(stream, self._schema, None)["value"]
        except UnicodeDecodeError as error:
            raise AvroError("not_utf8", "invalid UTF-8 in a string of the Avro value") from error
        except AvroError:
            raise
        except (EOFError, *_WRONG) as error:
            raise AvroError("not_json", f"no Avro value of its schema: {type(error).__name__}") from error
        if left := len(body) - stream.tell():
            raise AvroError("not_json", f"no Avro value of its schema: {left} bytes are left behind it")
        return msgspec.json.encode(_plain(value))


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {name: _plain(each) for name, each in value.items() if each is not None}
    if kind is list:
        return [_plain(each) for each in value]
    return list(value) if kind is bytes else value


def _with_ours(schema: Any) -> Any:
    """The schema with logical types of ours for the library's: its readers raise of one date too far, take time with
    the square of a decimal's bytes, and make a float of a whole one."""
    if isinstance(schema, list):
        return [_with_ours(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    ours = {key: value if key == "default" else _with_ours(value) for key, value in schema.items()}
    if isinstance(logical := ours.pop("logicalType", None), str):
        ours["logicalType"] = f"millrace-{logical}"
    return ours


def _decimal(data: Any, schema: Any, _: Any = None) -> int | float:
    if len(data) > MAX_DECIMAL_BYTES:
        raise AvroError("too_large", f"a decimal of more than {MAX_DECIMAL_BYTES} bytes")
    digits, scale = int.from_bytes(data, "big", signed=True), int(schema.get("scale", 0))
    return float(Decimal(digits).scaleb(-scale)) if scale else digits


def _date(days: int, *_: Any) -> str | None:
    try:
        return date.fromordinal(_UNIX_EPOCH + days).isoformat()
    except (ValueError, OverflowError):
        return None


def _time(unit: int) -> Callable[..., str | None]:
    """Of so many microseconds."""

    def read(count: int, *_: Any) -> str | None:
        since = timedelta(microseconds=count * unit) if 0 <= count < _DAY_MICROSECONDS // unit else None
        return None if since is None else (_MIDNIGHT + since).time().isoformat()

    return read


_READERS: Final[dict[str, Callable[..., Any]]] = {
    "bytes-millrace-decimal": _decimal,
    "fixed-millrace-decimal": _decimal,
    "int-millrace-date": _date,
    "int-millrace-time-millis": _time(1000),
    "long-millrace-time-micros": _time(1),
    **{
        f"long-millrace-{where}timestamp-{name}": lambda count, *_, unit=unit: count // unit
        for where in ("", "local-")
        for name, unit in (("micros", 1000), ("nanos", 1_000_000))
    },
}
"""By the type and the name that `_with_ours` gives. Milliseconds and UUIDs are told as they are written."""


class _Extent(NamedTuple):
    """How many bytes a value takes at least, and how many values may be in it, of lists and maps but themselves."""

    least_bytes: int
    values: int


class _Walk:
    """Goes through all of a schema. Raises `AvroError`, see `AvroReader`."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = known
        self._records: dict[str, _Extent | None] = {}  # None while inside one

    def extent(self, schema: Any) -> _Extent:
        if isinstance(schema, list):
            branches = [self.extent(branch) for branch in schema]
            least = 1 + min((branch.least_bytes for branch in branches), default=0)
            return _Extent(least, max((branch.values for branch in branches), default=1))
        kind = schema if isinstance(schema, str) else schema["type"]
        if isinstance(kind, dict | list):
            return self.extent(kind)
        if kind in ("record", "error"):
            return self._record(schema)
        if kind == "array" and self.extent(schema["items"]).least_bytes == 0:
            raise AvroError("not_json", "its schema has a list of what takes no bytes: it would have no bound")
        if kind == "map":
            self.extent(schema["values"])
        if kind == "fixed":
            return _Extent(int(schema["size"]), 1)
        return _Extent(_LEAST_BYTES[kind], 1) if kind in _LEAST_BYTES else self.extent(self._known[kind])

    def _record(self, schema: Any) -> _Extent:
        name = schema["name"]
        if name not in self._records:
            self._records[name] = None
            fields = [self.extent(field["type"]) for field in schema["fields"]]
            values = 1 + sum(field.values for field in fields)
            if values > MAX_VALUES:
                raise AvroError("not_json", f"its schema has more than {MAX_VALUES} values in one {name}")
            self._records[name] = _Extent(sum(field.least_bytes for field in fields), values)
        extent = self._records[name]
        if extent is None:
            raise AvroError("not_json", f"its schema has a type that contains itself ({name}): no event does")
        return extent
