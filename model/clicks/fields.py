"""Fields of a log's rows, each refused with file, line and what was expected. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from model.clicks.context import Context
from model.data import read_rows
from model.errors import DataError

SECONDS_MAX: Final = 1e11
"""Times beyond this, the year 5138, are milliseconds that somebody took for seconds."""


class Line(NamedTuple):
    """A row of a log and where it stands."""

    path: Path
    number: int
    row: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.path}:{self.number}"

    def id(self, field: str) -> str:
        """An identifier: text or a whole number. Raises DataError."""
        value = self.row.get(field)
        if value in (None, ""):
            raise DataError(f"{self}: field {field!r} is missing; every row needs one")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(f"{self}: field {field!r} is {value!r}, a text or a whole number is expected")
        return str(value)

    def time_ms(self) -> int:
        """``ts``, seconds since 1970, as milliseconds. Raises DataError."""
        value = self.row.get("ts")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{self}: field 'ts' is {value!r}, a number of seconds since 1970 is expected")
        if not 0 <= value <= SECONDS_MAX:
            hint = "milliseconds? divide by 1000" if value > 0 else "a time since 1970 is expected"
            raise DataError(f"{self}: field 'ts' is {value!r}, seconds are expected ({hint})")
        return int(value * 1000)

    def outcome(self, field: str) -> float:
        """1.0 yes, 0.0 no, NaN where the row does not tell. Raises DataError."""
        value = self.row.get(field)
        if value is None:
            return math.nan
        if value not in (0, 1):
            raise DataError(f"{self}: field {field!r} is {value!r}; use 1 or true, 0 or false, null for not known yet")
        return float(value)

    def text(self, field: str) -> str:
        """A text, empty where there is none. Raises DataError."""
        value = self.row.get(field)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{self}: field {field!r} is {value!r}, text is expected")
        return value or ""

    def context(self) -> Context:
        """What the row says besides: names with numbers or texts. Raises DataError."""
        found = self.row.get("context")
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise DataError(f"{self}: field 'context' is {found!r}, an object is expected")
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise DataError(f"{self}: context {name!r} is {value!r}, a number or a text is expected")
        return found


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """All rows of the files, in their order. Raises DataError naming file and line, or a file without rows."""
    lines: list[Line] = []
    for path in paths:
        own = [Line(path, number, row) for number, row in read_rows(path)]
        if not own:
            raise DataError(f"{path}: no rows; give a file that is not empty")
        lines += own
    return lines
