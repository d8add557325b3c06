"""From rows to logs: impressions (user_id, item_id, title, ts, clicked, purchased, context) and shop actions (user_id,
item_id, ts or day, action). Whatever is wrong with a row is told before anything is computed. Pure.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.clicks.context import title_context
from model.clicks.fields import Line
from model.clicks.log import Log
from model.errors import DataError
from model.state import F64, I64
from schemas.folds import VECTOR_SIZE

PURCHASE_WINDOW_S: Final = 7 * 86_400.0
_YEAR: Final = 2014  # of logs whose days are month and day: any year does, for only the time between events counts
_COUNTS: Final = {"click": (1, 1, 0), "favourite": (1, 1, 0), "cart": (1, 1, 0), "buy": (1, 1, 1)}


def click_log(
    lines: Sequence[Line], window_s: float | None = None, purchase_window_s: float = PURCHASE_WINDOW_S
) -> Log:
    """Impressions and their outcomes, without vectors. A row's own ``context`` and what its title says become its
    context.

    window_s           attribution window of clicks. An outcome that is not told (no ``clicked``, or null) is "no" where
                       the window has passed before the log's end; where it has not, outcomes count as known only if
                       every row tells. Without a window one that is not told is an error
    purchase_window_s  the same of the purchases of clicked impressions; where no row tells of any, nothing is known

    Raises DataError naming file, line and field.
    """
    time_ms = np.array([line.time_ms() for line in lines], np.int64)
    clicked, purchased = (np.array([line.outcome(field) for line in lines]) for field in ("clicked", "purchased"))
    if window_s is None and np.isnan(clicked).any():
        line = lines[int(np.flatnonzero(np.isnan(clicked))[0])]
        raise DataError(
            f"{line}: field 'clicked' is missing; tell it in every row, or give the recipe the attribution window,"
            " click.window_s"
        )
    label = clicked if window_s is None else _known(clicked, time_ms, window_s, np.ones(len(lines), bool))
    silent = np.isnan(purchased).all()
    bought = purchased if silent else _known(purchased, time_ms, purchase_window_s, clicked == 1)
    titles = [line.text("title") for line in lines]
    ones = np.ones(len(lines))
    # In the state an unknown outcome is not a click yet, as the worker folds it.
    liked = np.nan_to_num(clicked)
    return Log(
        users=_numbered([line.id("user_id") for line in lines]),
        items=_numbered([line.id("item_id") for line in lines]),
        time_ms=time_ms,
        weights=np.stack([ones, liked], axis=1),
        counts=np.stack([ones, liked, np.nan_to_num(purchased)], axis=1),
        vectors=np.zeros((len(lines), VECTOR_SIZE), np.float32),
        label=label,
        bought=np.where(label == 1, bought, np.nan),
        converted=_converted(label, purchased, time_ms, purchase_window_s),
        contexts=[{**title_context(title), **line.context()} for title, line in zip(titles, lines, strict=True)],
        titles=titles,
    )


def purchase_log(lines: Sequence[Line], window_s: float = PURCHASE_WINDOW_S) -> Log:
    """Shop actions without text. A click was bought when its user bought its item at that time or within ``window_s``
    after; unknown while that is not over. Raises DataError naming file, line and field."""
    unknown = next((line for line in lines if str(line.row.get("action")) not in _COUNTS), None)
    if unknown is not None:
        raise DataError(f"{unknown}: action {unknown.row.get('action')!r} is unknown; use {', '.join(_COUNTS)}")
    users = _numbered([line.id("user_id") for line in lines])
    items = _numbered([line.id("item_id") for line in lines])
    in_seconds = any("ts" in line.row for line in lines)
    time_ms = np.array([line.time_ms() if in_seconds else _day_ms(line) for line in lines], np.int64)
    actions = [line.row["action"] for line in lines]
    return Log(
        users=users,
        items=items,
        time_ms=time_ms,
        weights=np.ones((len(lines), 2)),
        counts=np.array([_COUNTS[action] for action in actions], np.float64),
        vectors=np.zeros((len(lines), VECTOR_SIZE), np.float32),
        label=np.full(len(lines), np.nan),
        bought=_bought(users, items, time_ms, np.array(actions), int(1000 * window_s)),
        converted=np.full(len(lines), np.nan),
    )


def _converted(label: F64, purchased: F64, time_ms: I64, window_s: float) -> F64:
    """Whether impressions [n] were clicked and bought, {0, 1, NaN}; all NaN where no row tells of purchases."""
    told = ~np.isnan(purchased)
    found = np.where(label == 0, 0.0, np.where(label == 1, np.nan_to_num(purchased), np.nan))
    if not told.all():
        # What is told before the window has passed is told of some alone: it would tilt the rate either way.
        found[time_ms > time_ms.max() - 1000 * window_s] = np.nan
    return found if told.any() else np.full(len(label), np.nan)


_UNTOLD_SHARE_MAX: Final = 0.01
"""Of a window that has not passed: with more of it untold the log waits with its "no"; fewer are lost answers."""


def _known(told: F64, time_ms: I64, window_s: float, rows: npt.NDArray[np.bool_]) -> F64:
    """Outcomes [n] in {0, 1, NaN}: what is not told is "no" once the window has passed before the log's end. ``rows``
    [n]: those that can have the outcome at all."""
    ripe = time_ms <= time_ms.max() - 1000 * window_s
    label = np.where(np.isnan(told) & ripe, 0.0, told)
    late = told[rows & ~ripe]
    waits = np.isnan(late).sum() > _UNTOLD_SHARE_MAX * len(late)
    silent = np.isnan(told[rows]).any() and not (late == 0).any()  # a few that were all answered, or all that it says
    if waits or silent:
        # A log that waits with its "no" has nothing but "yes" here, also where it says "no" elsewhere: a leak.
        label[~ripe] = np.nan
    return label


def _bought(users: I64, items: I64, time_ms: I64, actions: npt.NDArray[Any], window_ms: int) -> F64:
    label = np.full(len(users), np.nan)
    buys: dict[tuple[int, int], list[int]] = {}
    for i in np.flatnonzero(actions == "buy"):
        buys.setdefault((int(users[i]), int(items[i])), []).append(int(time_ms[i]))
    end = int(time_ms.max())
    for i in np.flatnonzero(actions == "click"):
        first, last = int(time_ms[i]), int(time_ms[i]) + window_ms
        bought = any(first <= t <= last for t in buys.get((int(users[i]), int(items[i])), ()))
        if last <= end:
            label[i] = bought
    return label


def _numbered(ids: Sequence[str]) -> I64:
    return np.unique(np.array(ids, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def _day_ms(line: Line) -> int:
    day = line.row.get("day")
    if isinstance(day, bool) or not isinstance(day, int):
        raise DataError(f"{line}: neither 'ts' in seconds nor 'day' as mmdd; tell when the action was")
    try:
        date = datetime.datetime(_YEAR, day // 100, day % 100, tzinfo=datetime.UTC)
    except ValueError as error:
        raise DataError(f"{line}: day {day} is no date of the form mmdd; give 'ts' in seconds") from error
    return int(date.timestamp() * 1000)
