"""Logs of clicks and purchases: no event sees itself or its second, late outcomes, labels, rows as in the data sets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.clicks.delay import Delay
from model.clicks.features import features
from model.clicks.head import SCALES_S, ClickHead
from model.clicks.log import Log, settled
from model.clicks.rows import click_log, purchase_log
from model.errors import DataError
from model.null import NullScorer
from model.scoring import load_scorer
from model.state import States
from schemas.events import ClickEvent
from tests.click_head import Loaded, click_rows, folded, lines, small_head
from tests.tiny_artifact import make_tiny_artifact
from worker.kafka.ledger import OffsetLedger
from worker.kafka.records import Record
from worker.scoring.cache import VectorCache
from worker.scoring.emit import click_weights
from worker.scoring.intake import Intake

HOUR_MS = 3_600_000
NOW_MS = 1_700_000_000_000


def random_log(n, rng):
    return Log(
        users=rng.integers(0, 4, n),
        items=rng.integers(0, 6, n),
        time_ms=rng.integers(0, 8, n) * HOUR_MS,  # many share a moment
        weights=rng.integers(0, 2, (n, 2)).astype(float),
        counts=rng.integers(0, 2, (n, 3)).astype(float),
        vectors=rng.standard_normal((n, 64)).astype(np.float32),
        label=np.zeros(n),
        bought=np.full(n, np.nan),
        converted=np.full(n, np.nan),
    )


@settings(max_examples=40)
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


@pytest.mark.parametrize("purchase_ms", [None, HOUR_MS, 3 * HOUR_MS])
@pytest.mark.parametrize("at_once", [True, False])
@settings(max_examples=10)
@given(n=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_late_outcomes_are_seen_late(at_once, purchase_ms, n, seed):
    rng = np.random.default_rng(seed)
    log = random_log(n, rng)
    delay = Delay(2 * HOUR_MS, at_once, purchase_ms)
    found = log.features(SCALES_S, np.ones(n, bool), delay=delay)
    for i in range(n):
        states = []
        for keys in (log.users, log.items):
            events = []
            for j in np.flatnonzero(keys == keys[i]):
                (shown, liked), (_, clicked, bought) = log.weights[j], log.counts[j]
                shown_count, age_ms = log.counts[j, 0], log.time_ms[i] - log.time_ms[j]
                # As the worker folds them: the impression, its click, and the answer that tells its purchase.
                told = [
                    (0 if at_once else delay.ms, (shown, 0), (shown_count, 0, 0)),
                    (delay.ms, (0, liked), (0, clicked, 0)),
                    (delay.ms, (0, 0), (0, 0, bought)) if purchase_ms is None else
                    (purchase_ms, (0, bought), (0, 0, bought)),
                ]  # fmt: skip
                events += [(0, log.time_ms[j], w, c, log.vectors[j]) for after, w, c in told if after < age_ms]
            states.append(folded(1, events))
        expected = features(*states, log.vectors[i : i + 1], log.time_ms[i : i + 1])[0]
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_what_is_told_when_is_what_the_worker_folds():
    shown = {"event_id": "e", "event_time_ms": 5}
    answers = {"impression_id": "i", "impression_time_ms": 5}
    apart = [
        ClickEvent(**shown),
        ClickEvent(**shown, action="click", **answers),
        ClickEvent(**shown, action="purchase", **answers),
    ]
    whole = [ClickEvent(**shown, clicked=True, purchased=True)]
    late_click = [ClickEvent(**shown, clicked=True), apart[2]]
    log = click_log(lines([CLICK | {"purchased": 1}]))
    for delay, events in (
        (Delay(1, purchase_ms=2), apart),
        (Delay(), whole),
        (Delay(1, at_once=False), whole),
        (Delay(1, at_once=False, purchase_ms=2), late_click),
    ):
        folds = [np.concatenate([side[0] for side in log.told(*told)]) for _, told in delay.steps() if any(told)]
        np.testing.assert_array_equal(folds, [click_weights(event)[0] for event in events])


@pytest.mark.parametrize("delay", [Delay(), Delay(30_000), Delay(30_000, at_once=False)])
def test_settled_is_what_serving_says_one_event_at_a_time(delay):
    """The head asked about each event in turn, each folded with the probability that it was given."""
    head = ClickHead.from_scorer(Loaded(small_head()))
    n = 250
    log = click_log(lines(click_rows(n, seed=2, span_s=2000))).encoded(NullScorer())
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
    label = purchase_log(lines(rows)).bought
    assert label[[0, 2, 4, 6]].tolist() == [1, 0, 0, 1]
    assert np.isnan(label[[1, 3, 5, 7, 8]]).all()
    # Known before its days are over, were one told of the buys alone: that would be a leak of positives.
    assert np.isnan(purchase_log(lines([row(1, 1, 501, "click"), row(1, 1, 502, "buy")])).bought).all()


CLICK = {"user_id": 1, "item_id": 1, "title": "x", "ts": 1, "clicked": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": None}, "field 'user_id' is missing"),
        ({"item_id": 1.5}, "field 'item_id' is 1.5, a text or a whole number"),
        ({"ts": "soon"}, "field 'ts' is 'soon', a number of seconds"),
        ({"ts": 1.7e12}, "milliseconds"),
        ({"ts": True}, "field 'ts' is True"),
        ({"clicked": None}, "field 'clicked' is missing.*window_s"),
        ({"clicked": 0.5}, "field 'clicked' is 0.5"),
        ({"purchased": "yes"}, "field 'purchased' is 'yes'"),
        ({"title": 7}, "field 'title' is 7"),
        ({"context": [1]}, r"field 'context' is \[1\]"),
        ({"context": {"price": None}}, "context 'price' is None"),
    ],
)
def test_a_malformed_impression_is_refused_by_file_line_and_field(change, message):
    with pytest.raises(DataError, match=rf"log\.jsonl:2: .*{message}"):
        click_log(lines([CLICK, CLICK | change]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"day": 1341, "action": "click"}, "day 1341 is no date"),
        ({"day": "501", "action": "click"}, "neither 'ts' in seconds nor 'day'"),
        ({"action": "click"}, "neither 'ts' in seconds nor 'day'"),
        ({"day": 501, "action": "stare"}, "action 'stare' is unknown"),
        ({"day": 501, "action": ["buy"]}, "action .* is unknown"),
    ],
)
def test_a_malformed_action_is_refused_by_file_line_and_field(row, message):
    good = {"user_id": 1, "item_id": 1, "day": 501, "action": "click"}
    with pytest.raises(DataError, match=rf"log\.jsonl:2: .*{message}"):
        purchase_log(lines([good, {"user_id": 1, "item_id": 1} | row]))
    with pytest.raises(DataError, match=r"log\.jsonl:2: .*'ts'"):
        purchase_log(lines([good | {"ts": 1}, good]))  # days and seconds do not mix


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_days_and_their_seconds_are_the_same_log(seed):
    rng = np.random.default_rng(seed)
    by_day, by_time = [], []
    for _ in range(30):
        day = int(rng.integers(1, 29))
        row = {
            "user_id": int(rng.integers(3)),
            "item_id": int(rng.integers(3)),
            "action": ("click", "buy")[rng.integers(2)],
        }
        by_day.append(row | {"day": 500 + day})
        by_time.append(row | {"ts": 1_798_000_000 + 86_400 * day})  # across a New Year
    days, seconds = purchase_log(lines(by_day)), purchase_log(lines(by_time))
    np.testing.assert_array_equal(days.bought, seconds.bought)
    every = np.ones(30, bool)
    np.testing.assert_array_equal(days.features(SCALES_S, every), seconds.features(SCALES_S, every))


def test_a_row_without_title_is_scored_without_text():
    rows = [{"user_id": 1, "item_id": 1, "ts": 1.5, "clicked": 0, "title": None}]
    log = click_log(lines(rows)).encoded(NullScorer())
    assert not log.vectors.any()
    assert log.time_ms.tolist() == [1500]


def test_a_title_of_which_nothing_is_left_is_no_text(tmp_path):
    scorer = load_scorer(make_tiny_artifact(tmp_path / "tiny"), device="cpu")
    titles = ["  ", "\u200b", "\u200d", "", "a cat"]
    log = click_log(lines([CLICK | {"title": title} for title in titles])).encoded(scorer)
    events = [{"event_id": "e", "event_time_ms": NOW_MS, "title": title} for title in titles]
    records = [Record("events.click", 0, i, 0, None, json.dumps(event).encode()) for i, event in enumerate(events)]
    ledger = OffsetLedger()
    ledger.assign([("events.click", 0)])
    units, _ = Intake({"events.click": "click"}, scorer, VectorCache(1 << 20)).admit(records, ledger, 0.0, NOW_MS)
    served = [unit.texts[0] is not None for unit in units]
    assert log.vectors.any(axis=1).tolist() == served == [False] * 4 + [True]


def test_an_outcome_not_told_is_no_until_the_window_has_passed():
    rows = [
        {"user_id": 1, "item_id": 1, "ts": 0, "clicked": None},
        {"user_id": 1, "item_id": 2, "ts": 10, "clicked": 1},
        {"user_id": 1, "item_id": 3, "ts": 95},
        {"user_id": 1, "item_id": 4, "ts": 100, "clicked": 0},
    ]
    log = click_log(lines(rows), window_s=60)
    np.testing.assert_array_equal(log.label, [0, 1, np.nan, np.nan])
    np.testing.assert_array_equal(log.counts[:, 1], [0, 1, 0, 0])
    told = click_log(lines([{**row, "clicked": row.get("clicked") or 0} for row in rows]), window_s=60)
    np.testing.assert_array_equal(told.label, [0, 1, 0, 0])  # every row tells: nothing waits for a window


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_a_log_that_waits_with_its_no_has_no_positives_in_the_last_window(seed, rate):
    """Clicks and purchases are told at once, "no" when the window has passed; of what was not clicked no purchase is
    told to be at once."""
    rng, day = np.random.default_rng(seed), 86_400
    rows, window, end = [], 7 * day, 29 * day
    for ts in range(0, end + 1, day // 4):
        clicked, bought, late = int(rng.random() < rate), int(rng.random() < rate), ts > end - window
        waits = {"clicked": clicked or (None if late else 0), "purchased": None if late and clicked else 0}
        waits |= {"purchased": 1} if clicked and bought else {}
        rows.append({"user_id": 1, "item_id": 1, "ts": ts, **waits})
    log = click_log(lines(rows), window_s=window, purchase_window_s=window)
    late = log.time_ms > 1000 * (end - window)
    if any(row["clicked"] is None for row in rows):
        assert np.isnan(log.label[late]).all()
    if any(row["clicked"] == 1 and row["purchased"] is None for row in rows):
        assert np.isnan(log.bought[late]).all()
    assert not np.isnan(log.label[~late]).any()
    known = [row | {"clicked": int(row["clicked"] == 1)} for row in rows]  # clicks are all told, purchases wait
    log = click_log(lines(known), window_s=window, purchase_window_s=window)
    assert not np.isnan(log.label).any()
    if any(row["clicked"] == 1 and row["purchased"] is None for row in rows):
        assert np.isnan(log.bought[late]).all()


@pytest.mark.parametrize(("lost", "known"), [([5], 1000), ([990], 999), (range(900, 990), 802)])
def test_an_answer_that_was_lost_hides_no_other_but_a_log_that_waits_does(lost, known):
    rows = [
        {"user_id": 1, "item_id": 1, "ts": 60 * i, "clicked": None if i in lost else int(i % 10 == 0)}
        for i in range(1000)
    ]
    log = click_log(lines(rows), window_s=60 * 198)
    assert (~np.isnan(log.label)).sum() == known


def test_an_outcome_of_clicks_alone_need_be_told_of_clicks_alone():
    rows = [
        {"user_id": 1, "item_id": i, "ts": i, "clicked": clicked, "purchased": purchased}
        for i, (clicked, purchased) in enumerate([(1, 0), (0, None), (1, 1), (0, None), (1, 0)])
    ]
    np.testing.assert_array_equal(click_log(lines(rows)).bought, [0, np.nan, 1, np.nan, 0])


def test_a_log_of_its_clicks_alone_has_no_positives_before_the_negatives_are_known():
    rows = [
        {"user_id": 1, "item_id": 1, "ts": 0},
        {"user_id": 1, "item_id": 2, "ts": 10, "clicked": True},
        {"user_id": 1, "item_id": 3, "ts": 95, "clicked": True},
        {"user_id": 1, "item_id": 4, "ts": 100},
    ]
    log = click_log(lines(rows), window_s=60)
    np.testing.assert_array_equal(log.label, [0, 1, np.nan, np.nan])
    np.testing.assert_array_equal(log.counts[:, 1], [0, 1, 1, 0])  # the worker has folded that click


def test_an_unclicked_impression_counts_for_those_that_were_not_kept():
    log = click_log(lines([CLICK, CLICK | {"clicked": 0}]))
    whole = log.standing_for(0.1, np.ones(2, bool))
    np.testing.assert_allclose(whole.counts, [[1, 1, 0], [10, 0, 0]])
    np.testing.assert_allclose(whole.weights, [[1, 1], [10, 0]])
    np.testing.assert_array_equal(log.standing_for(0.1, np.zeros(2, bool)).counts, log.counts)


def test_what_was_bought_of_the_impressions():
    week = 7 * 86_400
    told = [(0, 0, None), (0, 1, None), (1, 1, 1), (2, 1, 0), (week, 1, None), (week, 0, 0), (2 * week - 1, 1, 1)]
    rows = [
        {"user_id": 1, "item_id": i, "ts": ts, "clicked": clicked, "purchased": purchased}
        for i, (ts, clicked, purchased) in enumerate(told)
    ]
    log = click_log(lines(rows))
    np.testing.assert_array_equal(log.bought, [np.nan, 0, 1, 0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(log.converted, [0, 0, 1, 0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(log.counts[:, 2], [0, 0, 1, 0, 0, 0, 1])
    silent = click_log(lines([{**row, "purchased": None} for row in rows]))
    assert np.isnan(silent.bought).all()
    assert np.isnan(silent.converted).all()
    full = click_log(lines([{**row, "purchased": row["purchased"] or 0} for row in rows]))
    np.testing.assert_array_equal(full.converted, [0, 0, 1, 0, 0, 0, 1])  # every row tells: nothing waits for a window


def test_the_year_of_a_title_becomes_context():
    rows = [{"user_id": 1, "item_id": 1, "ts": 1, "clicked": 0, "title": "Casablanca (1942)"} | own for own in
            ({}, {"context": {"year": 1950.0, "price": 2.0}}, {"title": "Casablanca"})]  # fmt: skip
    contexts = click_log(lines(rows)).contexts
    assert contexts == [{"year": 1942.0}, {"year": 1950.0, "price": 2.0}, {}]
