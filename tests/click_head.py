"""A click head fitted once for all tests, and the made-up logs that it is fitted on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from model.clicks.fields import Line
from model.clicks.fit import fit
from model.clicks.head import SCALES_S
from model.clicks.rows import click_log, purchase_log
from model.clicks.settings import ClickSettings
from model.null import NullScorer
from model.state import States


class Loaded(NullScorer):
    """A scorer whose artifact holds a click head."""

    def __init__(self, tensors):
        super().__init__()
        self._click_tensors = tensors

    def tensor(self, name):
        return self._click_tensors[name]


def folded(n, events):
    states = States.empty(n, SCALES_S)
    for key, time_ms, weights, counts, vector in events:
        states.fold([key], [time_ms], [weights], [counts], [vector])
    return states


def click_rows(n=3000, seed=0, span_s=400_000):
    """Users who like one of two kinds of title; a third of them click much, the others little."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        user, item = int(rng.integers(60)), int(rng.integers(40))
        p = 0.15 + 0.35 * (user % 3 == 0) + 0.35 * (user % 2 == item % 2)
        title = f"{('red', 'blue')[item % 2]} thing {item}"
        clicked = int(rng.random() < p)
        rows.append(
            {"user_id": user, "item_id": item, "title": title, "ts": int(rng.integers(span_s)), "clicked": clicked}
        )
    return sorted(rows, key=lambda row: row["ts"])


def action_rows(n=2000, seed=0):
    """Users of whom some buy what they click, over three months."""
    rng = np.random.default_rng(seed)
    days = [month * 100 + day for month in (4, 5, 6) for day in range(1, 31)]
    rows = []
    for _ in range(n):
        user, item, day = int(rng.integers(50)), int(rng.integers(30)), days[rng.integers(len(days))]
        rows.append({"user_id": user, "item_id": item, "day": day, "action": "click"})
        if rng.random() < 0.3 * (user % 2):
            rows.append({"user_id": user, "item_id": item, "day": day, "action": "buy"})
    return rows


def lines(rows):
    """Rows as if they had been read from a file."""
    return [Line(Path("log.jsonl"), number, row) for number, row in enumerate(rows, 1)]


def fitted(clicks, actions=(), **settings):
    """A head fitted on rows as a recipe's click section says."""
    own = ClickSettings(file="log.jsonl", actions="actions.jsonl" if actions else "", **settings)
    log = click_log(lines(clicks), own.window_s, own.purchase_window_s).encoded(NullScorer())
    told = log if not np.isnan(log.bought).all() else None
    return fit(log, purchase_log(lines(actions)) if actions else told, own)


@cache
def small_head():
    """Tensors of a head fitted once for all tests."""
    return fitted(click_rows(), action_rows()).tensors
