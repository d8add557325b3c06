"""Whose record it is, of records that could not be decoded: by key and by what their bytes say in plain words. Pure."""

from __future__ import annotations

import json
import re
from typing import Final

_USER: Final = re.compile(rb'"user_id"\s*:\s*"((?:[^"\\]|\\.){1,1600})"')
_TIME: Final = re.compile(rb'"event_time_ms"\s*:\s*(\d{1,16})\b')


def people_of(key: bytes | None, value: bytes | None) -> set[str]:
    """Ids that a record may be about: its key, and every ``user_id`` that its bytes name, be they JSON or not."""
    found = {_unescaped(match[1]) for match in _USER.finditer(value or b"")}
    if key:
        found.add(key.decode(errors="replace"))
    return found


def time_of(value: bytes | None) -> int | None:
    """The event time that the bytes name, in milliseconds; None where they name none."""
    match = _TIME.search(value or b"")
    return None if match is None else int(match[1])


def _unescaped(text: bytes) -> str:
    try:
        return str(json.loads(b'"' + text + b'"'))
    except ValueError:
        return text.decode(errors="replace")
