"""Logs of clicks and purchases, with the state that serving would have had before each of their events.

`model.clicks.rows` makes them of rows. Users' and items' states depend on their own earlier events alone, so all of
them are walked side by side: the k-th moment of every key in one fold.

An impression weighs in the state what the head said of it (`model.clicks.features`), so what the head says depends on
what it said before. `settled` finds that by iteration instead of one event at a time: start from a guess, walk, ask the
head about all events, walk again. What an event sees lies before it, so every round settles at least one more moment
of every key, and in practice all of them within some rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from model.clicks.context import Context, ContextSpec
from model.clicks.delay import NO_DELAY, Delay
from model.clicks.features import features
from model.clicks.head import ClickHead
from model.scoring import Floats, Scorer
from model.state import F64, I64, States
from schemas.folds import VECTOR_SIZE

_TEXTS_MAX: Final = 1024  # texts encoded, and rows featurised, at a time
_ROWS_MAX: Final = 4096
ROUNDS_MAX: Final = 40
TOLERANCE: Final = 1e-4
"""A probability that moves less than this from round to round has settled."""


@dataclass(frozen=True, slots=True)
class Log:
    """``n`` events as the worker would fold them, and what became of them.

    users, items  int64 [n] numbers of user and item; time_ms [n]; weights [n, 2], counts [n, 3], vectors [n, 64]
    label         float64 [n] 1 clicked, 0 not, NaN unknown or nothing to predict
    bought        float64 [n] of what was clicked: 1 bought, 0 not; NaN unknown or not clicked
    converted     float64 [n] of all impressions: 1 clicked and bought, 0 not; NaN unknown or no impression
    contexts      [n] what each event says besides; empty: nothing of any
    titles        [n] what `encoded` makes the vectors of; empty: there is no text
    """

    users: I64
    items: I64
    time_ms: I64
    weights: F64
    counts: F64
    vectors: Floats
    label: F64
    bought: F64
    converted: F64
    contexts: Sequence[Context] = field(default_factory=tuple)
    titles: Sequence[str] = field(default_factory=tuple)

    def encoded(self, scorer: Scorer) -> Log:
        """The log with the vectors of its titles, as the scorer makes them."""
        return replace(self, vectors=_vectors(scorer, self.titles)) if self.titles else self

    def expecting(self, p: F64) -> Log:
        """The log with each event's part in shown weighted by its probability ``p`` [n], as the worker folds it."""
        return replace(self, weights=np.stack([self.weights[:, 0] * p, self.weights[:, 1]], axis=1))

    def standing_for(self, negative_rate: float, rows: npt.NDArray[np.bool_]) -> Log:
        """The log with each unclicked impression of ``rows`` [n] shown as often as it stands for: ``negative_rate`` is
        the share of them that was kept."""
        times = np.where(rows & (self.counts[:, 1] == 0), 1.0 / negative_rate, 1.0)
        ones = np.ones_like(times)
        return replace(
            self,
            weights=self.weights * np.stack([times, ones], axis=1),
            counts=self.counts * np.stack([times, ones, ones], axis=1),
        )

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
        n, steps = len(keys), delay.steps()
        row = np.tile(np.arange(n), len(steps))
        arrival = np.concatenate([self.time_ms + after for after, _ in steps])
        parts = [self.told(*told) for _, told in steps]
        weights, counts = (np.concatenate(side) for side in zip(*parts, strict=True))
        asks = np.concatenate([wanted, np.zeros(n * (len(steps) - 1), bool)])
        adds = np.repeat([any(told) for _, told in steps], n)
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

    def told(self, shown: bool, clicked: bool, purchased: bool) -> tuple[F64, F64]:
        """Weights [n, 2] and counts [n, 3] that a fold adds which tells this much of each event. A purchase told by
        itself is liked once more, as the worker folds it."""
        weights = self.weights * [shown, clicked]
        if purchased and not clicked:
            weights[:, 1] += self.counts[:, 2]
        return weights, self.counts * [shown, clicked, purchased]


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


def _vectors(scorer: Scorer, titles: Sequence[str]) -> Floats:
    """Vectors of the titles as folds carry them (half precision), each encoded once; zero where there is no text, or
    nothing is left of it once it is tokenised, as the worker tells it."""
    nothing = scorer.prepare([""])[0].tokens
    unique = sorted({title for title in titles if title})
    known = {"": np.zeros(VECTOR_SIZE, np.float32)}
    for start in range(0, len(unique), _TEXTS_MAX):
        part = unique[start : start + _TEXTS_MAX]
        prepared = scorer.prepare(part)
        vectors = scorer.vectors(scorer.encode(prepared)).astype(np.float16).astype(np.float32)
        vectors[[text.tokens <= nothing for text in prepared]] = 0
        known.update(zip(part, vectors, strict=True))
    return np.stack([known[title] for title in titles])
