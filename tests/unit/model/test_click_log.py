"""Logs of clicks and purchases: no event sees itself or its second, late outcomes, labels, rows as in the data sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.clicks.features import features
from model.clicks.fit import CONTEXT
from model.clicks.head import SCALES_S, ClickHead
from model.clicks.log import Delay, Log, click_log, evaluate_log, purchase_log, settled
from model.errors import DataError
from model.null import NullScorer
from model.state import States
from tests.click_head import Loaded, click_rows, folded, small_head

HOUR_MS = 3_600_000


def random_log(n, rng):
    return Log(
        users=rng.integers(0, 4, n),
        items=rng.integers(0, 6, n),
        time_ms=rng.integers(0, 8, n) * HOUR_MS,  # many share a moment
        weights=rng.integers(0, 2, (n, 2)).astype(float),
        counts=rng.integers(0, 2, (n, 3)).astype(float),
        vectors=rng.standard_normal((n, 64)).astype(np.float32),
        label=np.zeros(n),
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_event_sees_exactly_what_was_before_its_moment(n, seed):
    rng = np.random.default_rng(seed)
    log = random_log(n, rng)
    wanted = rng.random(n) < 0.7
    if not wanted.any():
        wanted[0] = True
    found = log.features(SCALES_S, wanted)
    for row, i in enumerate(np.flatnonzero(wanted)):
        users, items = (
            folded(1, [(0, log.time_ms[j], log.weights[j], log.counts[j], log.vectors[j]) for j in range(n)
                       if keys[j] == keys[i] and log.time_ms[j] < log.time_ms[i]])
            for keys in (log.users, log.items)
        )  # fmt: skip
        expected = features(users, items, log.vectors[i : i + 1], log.time_ms[i : i + 1])[0]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [True, False])
@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_late_outcomes_are_seen_late(at_once, n, seed):
    rng = np.random.default_rng(seed)
    log = random_log(n, rng)
    delay = Delay(2 * HOUR_MS, at_once)
    found = log.features(SCALES_S, np.ones(n, bool), delay=delay)
    for i in range(n):
        states = []
        for keys in (log.users, log.items):
            events = []
            for j in np.flatnonzero(keys == keys[i]):
                w, c = log.weights[j], log.counts[j]
                if at_once and log.time_ms[j] < log.time_ms[i]:
                    events.append((0, log.time_ms[j], (w[0], 0), (c[0], 0, 0), log.vectors[j]))
                if log.time_ms[j] + delay.ms < log.time_ms[i]:
                    late = ((0, w[1]), (0, *c[1:])) if at_once else (w, c)
                    events.append((0, log.time_ms[j], *late, log.vectors[j]))
            states.append(folded(1, events))
        expected = features(*states, log.vectors[i : i + 1], log.time_ms[i : i + 1])[0]
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("delay", [Delay(), Delay(30_000), Delay(30_000, at_once=False)])
def test_settled_is_what_serving_says_one_event_at_a_time(delay):
    """The head asked about each event in turn, each folded with the probability that it was given."""
    head = ClickHead.from_scorer(Loaded(small_head()))
    n = 250
    log = click_log(NullScorer(), click_rows(n, seed=2, span_s=2000))
    folds = [("all", delay.ms)] if not (delay.ms and delay.at_once) else [("shown", 0), ("rest", delay.ms)]
    agenda = [(int(time), 0, i, "ask") for i, time in enumerate(log.time_ms)]
    agenda += [(int(time) + later, 1, i, what) for i, time in enumerate(log.time_ms) for what, later in folds]
    sides = {"user": log.users, "item": log.items}
    states = {side: States.empty(int(keys.max()) + 1, SCALES_S) for side, keys in sides.items()}
    p = np.full(n, np.nan)
    for _, _, i, what in sorted(agenda):
        if what == "ask":
            users, items = (states[side].take([keys[i]]) for side, keys in sides.items())
            p[i] = head.click(head.features(users, items, log.vectors[i : i + 1], log.time_ms[i : i + 1]))[0]
            continue
        shown, rest = what != "rest", what != "shown"
        weights, counts = [p[i] * shown, log.weights[i, 1] * rest], log.counts[i] * [shown, rest, rest]
        for side, keys in sides.items():
            states[side].fold([keys[i]], [log.time_ms[i]], [weights], [counts], [log.vectors[i]])
    np.testing.assert_allclose(settled(log, head, delay), p, atol=2e-3)


# rows as in the data sets


def test_a_purchase_label_is_the_same_item_within_seven_days():
    def row(user, item, day, action):
        return {"user_id": user, "item_id": item, "day": day, "action": action}

    rows = [
        row(1, 1, 501, "click"),
        row(1, 1, 508, "buy"),  # seven days after
        row(1, 2, 501, "click"),
        row(1, 2, 509, "buy"),  # eight
        row(1, 3, 501, "click"),
        row(2, 3, 501, "buy"),  # somebody else
        row(1, 4, 501, "click"),
        row(1, 4, 501, "buy"),
        row(1, 5, 504, "click"),  # its days are not over
    ]
    label = purchase_log(rows).label
    assert label[[0, 2, 4, 6]].tolist() == [1, 0, 0, 1]
    assert np.isnan(label[[1, 3, 5, 7, 8]]).all()
    # Known before its days are over, were one told of the buys alone: that would be a leak of positives.
    assert np.isnan(purchase_log([row(1, 1, 501, "click"), row(1, 1, 502, "buy")]).label).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"item_id": 1, "title": "x", "ts": 1, "clicked": 1}], "row 1: field 'user_id' is missing"),
        ([{"user_id": 1, "item_id": 1, "title": "x", "ts": "soon", "clicked": 1}], "field 'ts' is 'soon'"),
        ([{"user_id": 1, "item_id": 1, "title": "x", "ts": 1}], "field 'clicked' is None"),
        ([{"user_id": 1, "item_id": 1, "day": 1341, "action": "click"}], "day 1341 is no date"),
        ([{"user_id": 1, "item_id": 1, "day": 501, "action": "stare"}], "action 'stare'"),
        ([{"user_id": 1, "item_id": 1, "day": 501, "action": "buy"}], "no row has a known outcome"),
    ],
)
def test_malformed_rows_are_refused_by_name(rows, message):
    with pytest.raises(DataError, match=message):
        evaluate_log(NullScorer(), rows, [])


def test_a_row_without_title_is_scored_without_text():
    log = click_log(NullScorer(), [{"user_id": 1, "item_id": 1, "ts": 1.5, "clicked": 0, "title": None}])
    assert not log.vectors.any()
    assert log.time_ms.tolist() == [1500]


def test_an_outcome_not_told_is_no_until_the_window_has_passed():
    rows = [
        {"user_id": 1, "item_id": 1, "ts": 0, "clicked": None},
        {"user_id": 1, "item_id": 2, "ts": 10, "clicked": 1},
        {"user_id": 1, "item_id": 3, "ts": 95},
        {"user_id": 1, "item_id": 4, "ts": 100, "clicked": 0},
    ]
    log = click_log(NullScorer(), rows, window_s=60)
    np.testing.assert_array_equal(log.label, [0, 1, np.nan, 0])
    np.testing.assert_array_equal(log.counts[:, 1], [0, 1, 0, 0])


def test_the_year_of_a_title_becomes_context():
    rows = [{"user_id": 1, "item_id": 1, "ts": 1, "clicked": 0, "title": "Casablanca (1942)"} | own for own in
            ({}, {"context": {"year": 1950.0, "price": 2.0}}, {"title": "Casablanca"})]  # fmt: skip
    contexts = click_log(NullScorer(), rows).contexts
    assert contexts == [{"year": 1942.0}, {"year": 1950.0, "price": 2.0}, {}]
    assert [feature.name for feature in CONTEXT] == ["year"]
