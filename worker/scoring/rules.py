"""Rules of a mapping, ``field=source``: what of a row fills a field of the event. Pure.

A source is one of

    title                   the row's value as it is; review.text is nested
    ts*1000                 a number times a factor
    str:user_id             the value as text; also int:, float: and bool:
    time:created            an ISO 8601 time; time:created@+08:00 or @Asia/Shanghai where the row names no zone
    fit:topics              the value where it has the field's shape
    map:type(view=impression, buy=purchase, *=click)
                            what the row's value stands for; * is any other and none, an answer null sets nothing,
                            and - passes the row over
    value:chat              the same in every event; what stands here and in cases is YAML: '007' is a text, 007 none
    {order}-{line}          a template of the row's values
    @now                    what the caller knows of the row's place: its time, offset, file, ...; {n} in templates, too

and its target a field of the event or ``context.NAME``. A source that the row lacks, or holds as null or blank, sets
nothing; only text, title and query may be blank, and there a slot of a template without value is empty. Numbers are
rounded where the field is an integer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
import yaml

from worker.errors import InputError

Row = Mapping[str, Any]
Read = Callable[[Row, Row], Any]
"""The value out of the row and its place (file, n, @now)."""

ABSENT: Final = object()
PASSED_OVER: Final = object()
"""What a rule reads from a row that is no event of ours."""
WHEN: Final = "@when"
"""The target of a rule that alone says which rows are events: those of which it is true."""
OF_FILE: Final = frozenset({"file", "n", "@now"})
"""What is known of a row's place in a file: its stem, the line number (from 1), and the time that the caller gives."""

_TEXTS: Final = frozenset({"text", "title", "query"})
_WHOLE: Final = frozenset({"event_time_ms", "impression_time_ms"})
_PATH: Final = r"[\w-]+(?:\.[\w-]+)*"
_RULE = re.compile(r"(?P<field>\w+(?:\.[^=]+)?)=(?P<source>.+)", re.DOTALL)
_PLAIN = re.compile(_PATH)
_SCALED = re.compile(rf"(?P<name>{_PATH})\*(?P<factor>\d+(\.\d+)?)")
_CAST = re.compile(rf"(?P<cast>str|int|float|bool|fit):(?P<name>{_PATH})")
_TIME = re.compile(rf"time:(?P<name>{_PATH})(?:@(?P<zone>.+))?")
_CASES = re.compile(rf"map:(?P<name>{_PATH})\((?P<cases>.+)\)", re.DOTALL)
_CONSTANT = re.compile(r"value:(?P<value>.+)", re.DOTALL)
_WHOLE_FLOAT = re.compile(r"^(-?\d+)\.0+$")
_ODD = re.compile("[\uff0c\uff08\uff09\uff1d\u201c\u201d]|^\\s*['\"]")
"""What Chinese input methods write for commas, brackets and quotes, and quotes around what is its."""
_CUT: Final = 80
_NULLS: Final = frozenset({"null", "~", "Null", "NULL"})
_SLOT = re.compile(rf"\{{(@?{_PATH})\}}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TRUE, _FALSE = frozenset({"1", "true", "yes", "y"}), frozenset({"0", "false", "no", "n"})


class Rule(NamedTuple):
    """One rule: ``names`` are the row's fields that it reads, ``read`` gives None where it sets nothing.

    ``passes``: whether it may pass a row over.
    """

    text: str
    field: str
    names: tuple[str, ...]
    read: Read
    passes: bool = False


def parse(text: str, where: str, kind: type[msgspec.Struct]) -> Rule:
    """The rule that ``field=source`` says, for rows of a file. Raises `InputError`, beginning with ``where``."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise InputError(f"{where} {text}: expected field=source, e.g. --map event_time_ms=ts*1000")
    return rule(match["field"], match["source"], where, kind, OF_FILE)


def rule(field: str, source: str, where: str, kind: type[msgspec.Struct], place: Collection[str]) -> Rule:
    """The rule that fills ``field`` of events of type ``kind`` from ``source``.

    ``place``: what the caller knows of a row's place; the names in what `Rule.read` is given beside the row. Raises
    `InputError`, beginning with ``where``.
    """
    text = f"{field}={source}"
    types = {each.name: each.type for each in msgspec.structs.fields(kind)} | {WHEN: bool}
    type_ = float | str if field.startswith("context.") else types.get(field)
    names, read, passes = _source(source, field, type_, f"{where} {text}", place)

    def fitting(row: Row, place: Row) -> Any:
        value = read(row, place)
        if isinstance(value, str):
            return value if field in _TEXTS or value.strip() else None
        return round(value) if field in _WHOLE and isinstance(value, float) else value

    return Rule(text, field, names, fitting, passes)


def check_field(field: str, topic: str, kind: type[msgspec.Struct]) -> None:
    """Raises `InputError` where a rule or constant sets what events of type ``kind``, of ``topic``, do not have."""
    root, dot, _ = field.partition(".")
    if root not in kind.__struct_fields__ or (dot and root != "context"):
        raise InputError(f"{topic} has no field {field!r}; it has {', '.join(sorted(kind.__struct_fields__))}")


def put(event: dict[str, Any], field: str, value: Any) -> None:
    """Set a field of an event, or one of its context. Raises ValueError where that is no object."""
    root, dot, name = field.partition(".")
    if not dot:
        event[field] = value
        return
    context = event.get(root) or {}
    if not isinstance(context, dict):
        raise ValueError(f"{root} is not an object")  # noqa: TRY004 all that a row can have wrong is a ValueError
    event[root] = {**context, name: value}  # never the row's own


def find(row: Row, path: str, default: Any = None) -> Any:
    """The row's value at a path: a key of its own, even one with dots, goes before nested objects."""
    if path in row:
        return row[path]
    head, _, rest = path.partition(".")
    inner = row.get(head) if rest else None
    return find(inner, rest, default) if isinstance(inner, dict) else default


def _source(
    text: str, field: str, type_: Any, where: str, place: Collection[str]
) -> tuple[tuple[str, ...], Read, bool]:
    if constant := _CONSTANT.fullmatch(text):
        value = _answer(constant["value"], type_, where)
        return (), lambda _, __: value, False
    if cases := _CASES.fullmatch(text):
        table = _table(cases["cases"], type_, where)
        return (cases["name"],), _mapped(cases["name"], table), PASSED_OVER in table.values()
    return *_plain_source(text, field, type_, where, place), False


def _plain_source(
    text: str, field: str, type_: Any, where: str, place: Collection[str]
) -> tuple[tuple[str, ...], Read]:
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
        return _template(text, field, where, place)
    if text.startswith("@") and text in place:
        return (), lambda _, known: known[text]
    if _PLAIN.fullmatch(text):
        return (text,), lambda row, _: find(row, text)
    known = ", ".join(sorted(name for name in place if name.startswith("@")))
    raise InputError(
        f"{where}: a source is a field, a nested.field, field*number, str:field, time:field@+08:00,"
        f" map:field(its=ours, *=-), value:constant, a {{template}} or {known}"
    )


def _converted(name: str, convert: Callable[[Any, str], Any]) -> tuple[tuple[str, ...], Read]:
    def read(row: Row, _: Row) -> Any:
        value = find(row, name)
        blank = value is None or (isinstance(value, str) and not value.strip())
        return None if blank else convert(value, name)

    return (name,), read


def _table(cases: str, type_: Any, where: str) -> dict[str, Any]:
    """``its=ours, its=ours, *=ours``, by what is its."""
    table: dict[str, Any] = {}
    for case in cases.split(","):
        its, equals, ours = (part.strip() for part in case.partition("="))
        its = _WHOLE_FLOAT.sub(r"\1", its.lower() if its in ("True", "False") else its)
        if not equals or not its or not ours or its in table or _ODD.search(case):
            raise InputError(
                f"{where}: cases are its=ours, each once, with commas between and without quotes: map:type(a=click)"
            )
        table[its] = PASSED_OVER if ours == "-" else _answer(ours, type_, where)
    return table


def _mapped(name: str, table: Mapping[str, Any]) -> Read:
    listed = {its: ours for its, ours in table.items() if its != "*"}
    other = table.get("*", ABSENT)

    def read(row: Row, _: Row) -> Any:
        value = find(row, name)
        word = "" if value is None else _word(value, name)
        found = listed.get(word, other)
        if found is ABSENT and word:
            raise ValueError(f"{name} is none of {', '.join(listed)}")
        return None if found is ABSENT else found

    return read


def _answer(text: str, type_: Any, where: str) -> Any:
    """What stands for a value, as YAML has it, where the field can be it; None, for null, sets nothing."""
    if text in _NULLS:
        return None
    try:
        value = yaml.safe_load(text)
        if value is not None:
            return msgspec.convert(value, type_)
        why = "it is nothing"
    except msgspec.ValidationError as error:
        why = str(error)
    except (yaml.YAMLError, ValueError, RecursionError):
        why = "no YAML value"
    raise InputError(f"{where}: {text[:_CUT]!r} cannot stand there ({why}); a text may need quotes")


def _template(text: str, field: str, where: str, place: Collection[str]) -> tuple[tuple[str, ...], Read]:
    parts = _SLOT.split(text)  # words and names of slots by turns
    if any(brace in word for word in parts[::2] for brace in "{}"):
        raise InputError(f"{where}: braces hold the name of a field, {{n}} or {{file}}")
    names = parts[1::2]
    if strange := [name for name in names if name.startswith("@") and name not in place]:
        raise InputError(f"{where}: {strange[0]} is not known here; {', '.join(sorted(place))} are")
    enough = any if field in _TEXTS else all  # half an id is another's id

    def read(row: Row, known: Row) -> Any:
        values = [known[name] if name in place else find(row, name) for name in names]
        words = ["" if value is None else _text(value, name) for value, name in zip(values, names, strict=True)]
        if not enough(word.strip() for word in words):
            return None
        return "".join(each for pair in zip(parts[::2], [*words, ""], strict=True) for each in pair)

    return tuple(name for name in names if name not in place), read


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


def _word(value: Any, name: str) -> str:
    return str(value).lower() if isinstance(value, bool) else _text(value, name).strip()


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
