"""Rules of a mapping, ``field=source``: what of a row fills a field of the event. Pure.

A source is one of

    title                   the row's value as it is; review.text is nested
    ts*1000                 a number times a factor
    str:user_id             the value as text; also int:, float: and bool:
    time:created            an ISO 8601 time; time:created@+08:00 or @Asia/Shanghai where the row names no zone
    fit:topics              the value where it has the field's shape
    {file}-{n}              a template of the row's values, the file's stem and the line number (from 1)
    @now                    the time given by the caller, ms

and its target a field of the event or ``context.NAME``. A source that the row lacks, or holds as null or blank, sets
nothing; only text, title and query may be blank, and there a slot of a template without value is empty. Numbers are
rounded where the field is an integer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from worker.errors import InputError

Row = Mapping[str, Any]
Read = Callable[[Row, Row], Any]
"""The value out of the row and its place (file, n, @now)."""

ABSENT: Final = object()

_TEXTS: Final = frozenset({"text", "title", "query"})
_WHOLE: Final = frozenset({"event_time_ms", "impression_time_ms"})
_PATH: Final = r"[\w-]+(?:\.[\w-]+)*"
_RULE = re.compile(r"(?P<field>\w+(?:\.[^=]+)?)=(?P<source>.+)", re.DOTALL)
_PLAIN = re.compile(_PATH)
_SCALED = re.compile(rf"(?P<name>{_PATH})\*(?P<factor>\d+(\.\d+)?)")
_CAST = re.compile(rf"(?P<cast>str|int|float|bool|fit):(?P<name>{_PATH})")
_TIME = re.compile(rf"time:(?P<name>{_PATH})(?:@(?P<zone>.+))?")
_SLOT = re.compile(rf"\{{({_PATH})\}}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TRUE, _FALSE = frozenset({"1", "true", "yes", "y"}), frozenset({"0", "false", "no", "n"})


class Rule(NamedTuple):
    """One rule: ``names`` are the row's fields that it reads, ``read`` gives None where it sets nothing."""

    text: str
    field: str
    names: tuple[str, ...]
    read: Read


def parse(text: str, where: str, kind: type[msgspec.Struct]) -> Rule:
    """The rule that ``text`` says, for events of type ``kind``. Raises `InputError`, beginning with ``where``."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise InputError(f"{where} {text}: expected field=source, e.g. --map event_time_ms=ts*1000")
    field = match["field"]
    types = {each.name: each.type for each in msgspec.structs.fields(kind)}
    names, read = _source(match["source"], field, types.get(field), f"{where} {text}")

    def fitting(row: Row, place: Row) -> Any:
        value = read(row, place)
        if isinstance(value, str):
            return value if field in _TEXTS or value.strip() else None
        return round(value) if field in _WHOLE and isinstance(value, float) else value

    return Rule(text, field, names, fitting)


def find(row: Row, path: str, default: Any = None) -> Any:
    """The row's value at a path: a key of its own, even one with dots, goes before nested objects."""
    if path in row:
        return row[path]
    head, _, rest = path.partition(".")
    inner = row.get(head) if rest else None
    return find(inner, rest, default) if isinstance(inner, dict) else default


def _source(text: str, field: str, type_: Any, where: str) -> tuple[tuple[str, ...], Read]:
    if scaled := _SCALED.fullmatch(text):
        factor = float(scaled["factor"])
        return _converted(scaled["name"], lambda value, name: _number(_number(value, name) * factor, name))
    if time := _TIME.fullmatch(text):
        zone = None if time["zone"] is None else _zone(time["zone"], where)
        return _converted(time["name"], lambda value, name: _time_ms(value, name, zone))
    if cast := _CAST.fullmatch(text):
        convert = _CASTS.get(cast["cast"]) or (lambda value, _: _fit(value, type_))
        return _converted(cast["name"], convert)
    if "{" in text or "}" in text:
        return _template(text, field, where)
    if text == "@now":
        return (), lambda _, place: place[text]
    if _PLAIN.fullmatch(text):
        return (text,), lambda row, _: find(row, text)
    raise InputError(
        f"{where}: a source is a field, a nested.field, field*number, str:field, time:field@+08:00, a {{template}}"
        " or @now"
    )


def _converted(name: str, convert: Callable[[Any, str], Any]) -> tuple[tuple[str, ...], Read]:
    def read(row: Row, _: Row) -> Any:
        value = find(row, name)
        blank = value is None or (isinstance(value, str) and not value.strip())
        return None if blank else convert(value, name)

    return (name,), read


def _template(text: str, field: str, where: str) -> tuple[tuple[str, ...], Read]:
    parts = _SLOT.split(text)  # words and names of slots by turns
    if any(brace in word for word in parts[::2] for brace in "{}"):
        raise InputError(f"{where}: braces hold the name of a field, {{n}} or {{file}}")
    names = parts[1::2]
    enough = any if field in _TEXTS else all  # half an id is another's id

    def read(row: Row, place: Row) -> Any:
        values = [place[name] if name in place else find(row, name) for name in names]
        words = ["" if value is None else _text(value, name) for value, name in zip(values, names, strict=True)]
        if not enough(word.strip() for word in words):
            return None
        return "".join(each for pair in zip(parts[::2], [*words, ""], strict=True) for each in pair)

    return tuple(name for name in names if name not in {"file", "n"}), read


def _zone(text: str, where: str) -> tzinfo | None:
    try:
        return datetime.strptime(text, "%z").tzinfo
    except ValueError:
        try:
            return ZoneInfo(text)
        except (ValueError, OSError, ZoneInfoNotFoundError) as error:
            raise InputError(f"{where}: {text!r} is no zone, such as +08:00, Z or Asia/Shanghai") from error


def _time_ms(value: Any, name: str, zone: tzinfo | None) -> int:
    try:
        moment = datetime.fromisoformat(value.strip())
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{name} is not an ISO 8601 time") from error
    if moment.tzinfo is None and zone is None:
        raise ValueError(f"{name} is a time without zone; name it: time:{name}@+08:00")
    return ((moment if moment.tzinfo else moment.replace(tzinfo=zone)) - _EPOCH) // timedelta(milliseconds=1)


def _fit(value: Any, type_: Any) -> Any:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError:
        return None


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is not a number") from error
    if not math.isfinite(number):
        raise ValueError(f"{name} is not a finite number")
    return number


def _text(value: Any, name: str) -> str:
    if isinstance(value, dict | list):
        raise ValueError(f"{name} is not text or number")  # noqa: TRY004 all that a row can have wrong is a ValueError
    # pandas writes a column of integers with a gap as floats: 4711.0 is 4711.
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _truth(value: Any, name: str) -> bool:
    word = _text(value, name).strip().lower()
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
