"""Logs of clicks and purchases, with the state that serving would have had before each of their events.

Rows come as in the data sets: clicks (user_id, item_id, title, ts in seconds, clicked) or shop actions (user_id,
item_id, day as mmdd, action). Users' and items' states depend on their own earlier events alone, so all of them are
walked side by side: the k-th moment of every key in one fold.

An impression weighs in the state what the head said of it (`model.clicks.features`), so what the head says depends on
what it said before. `settled` finds that by iteration instead of one event at a time: start from a guess, walk, ask the
head about all events, walk again. What an event sees lies before it, so every round settles at least one more moment
of every key, and in practice all of them within some rounds.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.clicks.context import Context, ContextSpec, title_context
from model.clicks.features import features
from model.clicks.figures import figures
from model.clicks.head import ClickHead, Row
from model.errors import DataError
from model.scoring import Floats, Scorer
from model.state import F64, I64, States
from schemas.folds import VECTOR_SIZE

DAY_MS: Final = 86_400_000
PURCHASE_WINDOW_MS: Final = 7 * DAY_MS
_TEXTS_MAX: Final = 1024  # texts encoded, and rows featurised, at a time
_ROWS_MAX: Final = 4096
ROUNDS_MAX: Final = 40
TOLERANCE: Final = 1e-4
"""A probability that moves less than this from round to round has settled."""
_YEAR: Final = 2014  # of tmall_actions, whose days are month and day
_COUNTS: Final = {"click": (1, 1, 0), "favourite": (1, 1, 0), "cart": (1, 1, 0), "buy": (1, 1, 1)}


@dataclass(frozen=True, slots=True)
class Delay:
    """How late outcomes are known.

    at_once  whether the worker folds that something was shown when it is shown, and the click that answers it later;
             else one event says both when the outcome is known
    """

    ms: int = 0
    at_once: bool = True


NO_DELAY: Final = Delay()


@dataclass(frozen=True, slots=True)
class Log:
    """``n`` events as the worker would fold them, and what became of them.

    users, items  int64 [n] numbers of user and item; time_ms [n]; weights [n, 2], counts [n, 3], vectors [n, 64]
    label         float64 [n] 1 clicked or bought, 0 not, NaN unknown or nothing to predict
    contexts      [n] what each event says besides; empty: nothing of any
    """

    users: I64
    items: I64
    time_ms: I64
    weights: F64
    counts: F64
    vectors: Floats
    label: F64
    contexts: Sequence[Context] = field(default_factory=tuple)

    def expecting(self, p: F64) -> Log:
        """The log with each event's part in shown weighted by its probability ``p`` [n], as the worker folds it."""
        return replace(self, weights=np.stack([self.weights[:, 0] * p, self.weights[:, 1]], axis=1))

    def features(
        self,
        scales_s: Sequence[float],
        rows: npt.NDArray[np.bool_],
        *,
        spec: ContextSpec = (),
        delay: Delay = NO_DELAY,
        fitting: bool = False,
    ) -> Floats:
        """Features of the chosen rows, each from the states before its moment, float32 [k, F]."""
        chosen = np.flatnonzero(rows)
        parts = []
        users = self._before(self.users, scales_s, rows, delay)
        items = self._before(self.items, scales_s, rows, delay)
        for start in range(0, len(chosen), _ROWS_MAX):
            at = np.arange(start, min(start + _ROWS_MAX, len(chosen)))
            row = chosen[at]
            contexts = [self.contexts[i] for i in row] if len(self.contexts) else None
            known = users.take(at), items.take(at), self.vectors[row], self.time_ms[row]
            parts.append(features(*known, contexts, spec, fitting=fitting))
        return np.concatenate(parts)

    def _before(
        self, keys: I64, scales_s: Sequence[float], wanted: npt.NDArray[np.bool_], delay: Delay = NO_DELAY
    ) -> States:
        """State of each wanted row's key before that row's moment; [number of wanted rows]."""
        n = len(keys)
        row, arrival, weights, counts = np.arange(n), self.time_ms, self.weights, self.counts
        asks, adds = wanted, np.ones(n, bool)
        if delay.ms:
            # Two entries a row, both of the event's time: when it happens, and when its outcome is known.
            now, later = (np.array([1.0, 0, 0]), np.array([0, 1.0, 1])) if delay.at_once else (np.zeros(3), np.ones(3))
            row, arrival = np.tile(row, 2), np.concatenate([arrival, arrival + delay.ms])
            weights = np.concatenate([weights * now[:2], weights * later[:2]])
            counts = np.concatenate([counts * now, counts * later])
            asks, adds = np.concatenate([wanted, np.zeros(n, bool)]), np.repeat([delay.at_once, True], n)
        order = np.lexsort((arrival, keys[row]))
        key, time = keys[row][order], arrival[order]
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
            fold, state = order[some], state_of[some]
            keep = asks[fold]
            to, source = place[row[fold[keep]]], state[keep]
            before.time_ms[to], before.sums[to] = states.time_ms[source], states.sums[source]
            before.weights[to], before.counts[to] = states.weights[source], states.counts[source]
            state, fold = state[adds[fold]], fold[adds[fold]]
            event = row[fold]
            states.fold(state, self.time_ms[event], weights[fold], counts[fold], self.vectors[event])
        return before


def settled(log: Log, head: ClickHead, delay: Delay = NO_DELAY) -> F64:
    """p(click) of every event as serving would have said it, each with the states of its moment; [n]."""
    every = np.ones(len(log.label), bool)
    p = np.full(len(log.label), 0.5)
    for _ in range(ROUNDS_MAX):
        found = log.expecting(p).features(head.scales_s, every, spec=head.context, delay=delay)
        before, p = p, head.click(found).astype(np.float64)
        if np.abs(p - before).max() < TOLERANCE:
            break
    return p


def click_log(scorer: Scorer, rows: Sequence[Row], window_s: float | None = None) -> Log:
    """Impressions and their outcome. A row's own ``context`` and what its title says become its context.

    window_s: attribution window. An outcome that is not told (no ``clicked``, or None) is unknown until so long before
    the log's end, and "no" from then on; without a window it is an error. Raises DataError naming the row and field.
    """
    if not rows:
        raise DataError("no rows: nothing to evaluate")
    time_ms = np.array([int(_number(row, i, "ts") * 1000) for i, row in enumerate(rows)], np.int64)
    told = np.array([window_s is None or row.get("clicked") is not None for row in rows])
    label = np.array([_number(row, i, "clicked") if told[i] else np.nan for i, row in enumerate(rows)])
    if window_s is not None:
        label[~told & (time_ms <= time_ms.max() - 1000 * window_s)] = 0.0
    clicked = np.nan_to_num(label)  # in the state an unknown outcome is not a click yet, as the worker folds it
    titles = [str(row.get("title") or "") for row in rows]
    ones = np.ones(len(rows))
    return Log(
        users=_numbered([_id(row, i, "user_id") for i, row in enumerate(rows)]),
        items=_numbered([_id(row, i, "item_id") for i, row in enumerate(rows)]),
        time_ms=time_ms,
        weights=np.stack([ones, clicked], axis=1),
        counts=np.stack([ones, clicked, np.zeros(len(rows))], axis=1),
        vectors=_vectors(scorer, titles),
        label=label,
        contexts=[title_context(title) | (row.get("context") or {}) for title, row in zip(titles, rows, strict=True)],
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


def evaluate_log(
    scorer: Scorer, data_rows: Sequence[Row], history_rows: Sequence[Row], delay: Delay = NO_DELAY
) -> dict[str, Any]:
    """See `model.clicks.head.evaluate`."""
    head = ClickHead.from_scorer(scorer)
    rows = [*history_rows, *data_rows]
    purchase = bool(rows) and "action" in rows[0]
    log = purchase_log(rows) if purchase else click_log(scorer, rows)
    judged = ~np.isnan(log.label)
    judged[: len(history_rows)] = False
    if not judged.any():
        raise DataError("no row has a known outcome: nothing to evaluate")
    if purchase:
        p = head.purchase(log.features(head.scales_s, judged)).astype(np.float64)
    else:
        p = settled(log, head, delay)[judged]
    return {"task": "purchase" if purchase else "click", **figures(p, log.label[judged], log.users[judged])}


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
