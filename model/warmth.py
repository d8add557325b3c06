"""Who is cold and who is warm: users by how many of their events came before. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.data import Row

Ints = npt.NDArray[np.int64]

EARLIER = "user's earlier events"
NOBODY = -1  # in place of a count, for an event without a user
MISSING = "(missing)"
_BANDS = ((0, "none"), (4, "1–4"), (19, "5–19"))  # the most events of a band, and its name
_MANY = "20 and more"


def earlier_events(users: npt.NDArray[Any], times: npt.NDArray[Any]) -> Ints:
    """How many events of its user came before each event, int64 [n]; users and times [n] of anything that sorts. Events
    of one time do not see each other."""
    if not len(users):
        return np.zeros(0, np.int64)
    order = np.lexsort((times, users))
    user, time = users[order], times[order]
    first = np.concatenate([[True], user[1:] != user[:-1]])
    moment = first | np.concatenate([[True], time[1:] != time[:-1]])
    place = np.arange(len(order))
    before = np.zeros(len(order), np.int64)
    before[order] = np.maximum.accumulate(place * moment) - np.maximum.accumulate(place * first)
    return before


def by_warmth(earlier: Ints) -> tuple[list[str], list[str]]:
    """Each event's band by its count of ``earlier`` events [n], and the bands that occur, from cold to warm."""
    names = [_band(int(count)) for count in earlier]
    there = set(names)
    return names, [name for name in (*(name for _, name in _BANDS), _MANY, MISSING) if name in there]


def user_of(row: Row) -> str | None:
    """The user that a row names: text or a whole number."""
    value = row.get("user_id")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def earlier_rows(rows: Sequence[Row], before: Iterable[str | None] = ()) -> Ints:
    """How many rows of its user came before each of ``rows`` [n], NOBODY where it names none: int64 [n]. ``before``:
    users of rows that all came before. Of the rows themselves those of an earlier time count (``ts`` or
    ``event_time_ms``), or, unless all have one, those that stand before it."""
    users = [user_of(row) for row in rows]
    names = sorted({user for user in users if user is not None})
    place = {name: i for i, name in enumerate(names)}
    known = np.array([NOBODY if user is None else place[user] for user in users], np.int64)
    history = Counter(before)
    more = np.array([*(history[name] for name in names), 0], np.int64)[known]
    return np.where(known == NOBODY, NOBODY, earlier_events(known, _times(rows)) + more)


def _times(rows: Sequence[Row]) -> npt.NDArray[Any]:
    for field in ("ts", "event_time_ms"):
        times = [row.get(field) for row in rows]
        if all(isinstance(time, int | float) and math.isfinite(time) for time in times):
            return np.array(times)
    return np.arange(len(rows))


def _band(count: int) -> str:
    if count == NOBODY:
        return MISSING
    return next((name for most, name in _BANDS if count <= most), _MANY)
