"""Logs of clicks and purchases, with the state that serving would have had before each of their events.

Rows come as in the data sets: clicks (user_id, item_id, title, ts in seconds, clicked) or shop actions (user_id,
item_id, day as mmdd, action). Users' and items' states depend on their own earlier events alone, so all of them are
walked side by side: the k-th moment of every key in one fold.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model import metrics
from model.click import ClickHead, Row, features
from model.errors import DataError
from model.scoring import Floats, Scorer
from model.state import F64, I64, States
from schemas.folds import VECTOR_SIZE

DAY_MS: Final = 86_400_000
PURCHASE_WINDOW_MS: Final = 7 * DAY_MS
_TEXTS_MAX: Final = 1024  # texts encoded, and rows featurised, at a time
_ROWS_MAX: Final = 4096
_YEAR: Final = 2014  # of tmall_actions, whose days are month and day
_COUNTS: Final = {"click": (1, 1, 0), "favourite": (1, 1, 0), "cart": (1, 1, 0), "buy": (1, 1, 1)}


@dataclass(frozen=True, slots=True)
class Log:
    """``n`` events as the worker would fold them, and what became of them.

    users, items  int64 [n] numbers of user and item; time_ms [n]; weights [n, 2], counts [n, 3], vectors [n, 64]
    label         float64 [n] 1 clicked or bought, 0 not, NaN unknown or nothing to predict
    """

    users: I64
    items: I64
    time_ms: I64
    weights: F64
    counts: F64
    vectors: Floats
    label: F64

    def features(self, scales_s: Sequence[float], rows: npt.NDArray[np.bool_]) -> Floats:
        """Features of the chosen rows, each from the states before its moment, float32 [k, F]."""
        chosen = np.flatnonzero(rows)
        parts = []
        users, items = self._before(self.users, scales_s, rows), self._before(self.items, scales_s, rows)
        for start in range(0, len(chosen), _ROWS_MAX):
            at = np.arange(start, min(start + _ROWS_MAX, len(chosen)))
            row = chosen[at]
            parts.append(features(users.take(at), items.take(at), self.vectors[row], self.time_ms[row]))
        return np.concatenate(parts)

    def _before(self, keys: I64, scales_s: Sequence[float], wanted: npt.NDArray[np.bool_]) -> States:
        """State of each wanted row's key before that row's moment; [number of wanted rows]."""
        order = np.lexsort((self.time_ms, keys))
        key, time = keys[order], self.time_ms[order]
        new_key = np.concatenate([[True], key[1:] != key[:-1]])
        new_moment = new_key | np.concatenate([[True], time[1:] != time[:-1]])
        state_of = np.cumsum(new_key) - 1
        moment = np.cumsum(new_moment) - 1
        rank = moment - moment[new_key][state_of]  # which moment of its key a row belongs to
        states = States.empty(int(state_of[-1]) + 1, scales_s)
        place = np.cumsum(wanted) - 1
        before = States.empty(int(wanted.sum()), scales_s)
        by_rank = np.argsort(rank, kind="stable")
        edges = np.searchsorted(rank[by_rank], np.arange(int(rank.max()) + 2))
        for first, last in itertools.pairwise(edges):
            some = by_rank[first:last]
            row, state = order[some], state_of[some]
            keep = wanted[row]
            to, source = place[row[keep]], state[keep]
            before.time_ms[to], before.sums[to] = states.time_ms[source], states.sums[source]
            before.weights[to], before.counts[to] = states.weights[source], states.counts[source]
            states.fold(state, self.time_ms[row], self.weights[row], self.counts[row], self.vectors[row])
        return before


def click_log(scorer: Scorer, rows: Sequence[Row]) -> Log:
    """Impressions with known outcome. Raises DataError naming the row and field."""
    if not rows:
        raise DataError("no rows: nothing to evaluate")
    clicked = np.array([_number(row, i, "clicked") for i, row in enumerate(rows)])
    titles = [str(row.get("title") or "") for row in rows]
    ones = np.ones(len(rows))
    return Log(
        users=_numbered([_id(row, i, "user_id") for i, row in enumerate(rows)]),
        items=_numbered([_id(row, i, "item_id") for i, row in enumerate(rows)]),
        time_ms=np.array([int(_number(row, i, "ts") * 1000) for i, row in enumerate(rows)], np.int64),
        weights=np.stack([ones, clicked], axis=1),
        counts=np.stack([ones, clicked, np.zeros(len(rows))], axis=1),
        vectors=_vectors(scorer, titles),
        label=clicked,
    )


def purchase_log(rows: Sequence[Row]) -> Log:
    """Shop actions without text. A click's label is whether its user bought its item that day or in the seven days
    after; unknown while those days are not over. Raises DataError naming the row and field."""
    if not rows:
        raise DataError("no rows: nothing to evaluate")
    unknown = next((i for i, row in enumerate(rows) if row.get("action") not in _COUNTS), None)
    if unknown is not None:
        raise DataError(f"row {unknown + 1}: action {rows[unknown].get('action')!r}; known: {', '.join(_COUNTS)}")
    users = _numbered([_id(row, i, "user_id") for i, row in enumerate(rows)])
    items = _numbered([_id(row, i, "item_id") for i, row in enumerate(rows)])
    time_ms = np.array([_day_ms(_number(row, i, "day"), i) for i, row in enumerate(rows)], np.int64)
    counts = np.array([_COUNTS[row["action"]] for row in rows], np.float64)
    return Log(
        users=users,
        items=items,
        time_ms=time_ms,
        weights=np.ones((len(rows), 2)),
        counts=counts,
        vectors=np.zeros((len(rows), VECTOR_SIZE), np.float32),
        label=_bought(users, items, time_ms, np.array([row["action"] for row in rows])),
    )


def evaluate_log(scorer: Scorer, data_rows: Sequence[Row], history_rows: Sequence[Row]) -> dict[str, Any]:
    """See `model.click.evaluate`."""
    head = ClickHead.from_scorer(scorer)
    rows = [*history_rows, *data_rows]
    purchase = bool(rows) and "action" in rows[0]
    log = purchase_log(rows) if purchase else click_log(scorer, rows)
    judged = ~np.isnan(log.label)
    judged[: len(history_rows)] = False
    if not judged.any():
        raise DataError("no row has a known outcome: nothing to evaluate")
    found = log.features(head.scales_s, judged)
    p = (head.purchase(found) if purchase else head.click(found)).astype(np.float64)
    return {"task": "purchase" if purchase else "click", **figures(p, log.label[judged])}


def figures(p: F64, truth: F64) -> dict[str, float]:
    """n, auc, log_loss, ece (15 equal-mass bins), predicted over observed, and the base rate."""
    label = truth.astype(np.int64)
    return {
        "n": len(p),
        "auc": round(metrics.auc(p, label), 5),
        "log_loss": round(metrics.log_loss(np.stack([1 - p, p], axis=1), label), 5),
        "ece": round(metrics.ece(p, label), 5),
        "predicted_over_observed": round(float(p.sum() / max(1, label.sum())), 4),
        "base_rate": round(float(label.mean()), 5),
    }


def _bought(users: I64, items: I64, time_ms: I64, actions: npt.NDArray[Any]) -> F64:
    label = np.full(len(users), np.nan)
    buys: dict[tuple[int, int], list[int]] = {}
    for i in np.flatnonzero(actions == "buy"):
        buys.setdefault((int(users[i]), int(items[i])), []).append(int(time_ms[i]))
    end = int(time_ms.max())
    for i in np.flatnonzero(actions == "click"):
        first, last = int(time_ms[i]), int(time_ms[i]) + PURCHASE_WINDOW_MS
        bought = any(first <= t <= last for t in buys.get((int(users[i]), int(items[i])), ()))
        if last <= end:
            label[i] = bought
    return label


def _vectors(scorer: Scorer, titles: Sequence[str]) -> Floats:
    """Vectors of the titles as folds carry them (half precision), zero where there is no text; each encoded once."""
    unique = sorted({title for title in titles if title})
    known = {"": np.zeros(VECTOR_SIZE, np.float32)}
    for start in range(0, len(unique), _TEXTS_MAX):
        part = unique[start : start + _TEXTS_MAX]
        vectors = scorer.vectors(scorer.encode(scorer.prepare(part)))
        known.update(zip(part, vectors.astype(np.float16).astype(np.float32), strict=True))
    return np.stack([known[title] for title in titles])


def _numbered(ids: Sequence[str]) -> I64:
    return np.unique(np.array(ids, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def _id(row: Row, i: int, field: str) -> str:
    if row.get(field) in (None, ""):
        raise DataError(f"row {i + 1}: field {field!r} is missing")
    return str(row[field])


def _number(row: Row, i: int, field: str) -> float:
    value = row.get(field)
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise DataError(f"row {i + 1}: field {field!r} is {value!r}, a number is expected")
    return float(value)


def _day_ms(day: float, i: int) -> int:
    try:
        date = datetime.datetime(_YEAR, int(day) // 100, int(day) % 100, tzinfo=datetime.UTC)
    except ValueError as error:
        raise DataError(f"row {i + 1}: day {day:.0f} is no date of the form mmdd") from error
    return int(date.timestamp() * 1000)
