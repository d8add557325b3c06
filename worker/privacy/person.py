"""Whose record it is, of records that could not be decoded: by key and by what their bytes say in plain words. Pure."""

from __future__ import annotations

import json
import re
from typing import Final

# A string, or a bare whole number (a sender's float of one, 4711.0, too). One cut off might be another's: it is none.
_ID: Final = rb'\s*:\s*(?:"((?:[^"\\]|\\.){1,1600})"|(-?\d{1,256})(?:\.0+)?(?=\s*[,}]))'
_USER: Final = re.compile(rb'"user_id"' + _ID)
_EVENT: Final = re.compile(rb'"event_id"' + _ID)
_TIME: Final = re.compile(rb'"event_time_ms"\s*:\s*(\d{1,16})\b')


def people_of(key: bytes | None, value: bytes | None) -> set[str]:
    """Ids that a record may be about: its key, and every ``user_id`` that its bytes name, be they JSON or not."""
    found = _named(_USER, value)
    if key:
        found.add(key.decode(errors="replace"))
    return found


def names_somebody(key: bytes | None, value: bytes | None) -> bool:
    """Whether it is sure whose an event's record is: its bytes name a ``user_id``, or an ``event_id`` that is not its
    key, for then the key is the user. Where they name neither, the key may be the event."""
    if _USER.search(value or b""):
        return True
    events = _named(_EVENT, value)
    return bool(key and events and key.decode(errors="replace") not in events)


def time_of(value: bytes | None) -> int | None:
    """The event time that the bytes name, in milliseconds; None where they name none."""
    match = _TIME.search(value or b"")
    return None if match is None else int(match[1])


def _named(field: re.Pattern[bytes], value: bytes | None) -> set[str]:
    return {_unescaped(match[1] or match[2]) for match in field.finditer(value or b"")}


def _unescaped(text: bytes) -> str:
    try:
        return str(json.loads(b'"' + text + b'"'))
    except ValueError:
        return text.decode(errors="replace")
