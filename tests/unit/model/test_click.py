"""The click head: features by the definition, no event sees itself or its second, base rates, fitting that learns."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.click import BLOCK, GLOBALS, SCALES_S, ClickHead, Perceptrons, features, relative_odds
from model.clickfit import fit, train
from model.clicklog import Log, click_log, evaluate_log, purchase_log
from model.errors import ArtifactError, DataError
from model.null import NullScorer
from model.state import States

HOUR_MS = 3_600_000


class Loaded(NullScorer):
    """A scorer whose artifact holds a click head."""

    def __init__(self, tensors):
        super().__init__()
        self._click_tensors = tensors

    def tensor(self, name):
        return self._click_tensors[name]


def column(name, scale=None):
    if name in GLOBALS:
        return GLOBALS.index(name)
    return len(GLOBALS) + scale * len(BLOCK) + BLOCK.index(name)


def folded(n, events):
    states = States.empty(n, SCALES_S)
    for key, time_ms, weights, counts, vector in events:
        states.fold([key], [time_ms], [weights], [counts], [vector])
    return states


def test_features_by_hand():
    a, b = np.eye(64)[0], np.eye(64)[1]
    users = folded(2, [(0, 0, (1, 1), (1, 1, 0), a), (0, 0, (1, 0), (1, 0, 0), b), (0, 0, (1, 0), (1, 0, 0), b)])
    items = folded(2, [(0, HOUR_MS, (1, 1), (1, 1, 1), a)])
    found = features(users, items, np.stack([a, b]).astype(np.float32), np.array([HOUR_MS, HOUR_MS]))
    assert found.shape == (2, len(GLOBALS) + 3 * len(BLOCK))
    assert found.dtype == np.float32
    at = {name: float(found[0, column(name, 0)]) for name in (*GLOBALS, *BLOCK)}
    d = np.exp(-3600 / SCALES_S[0])  # an hour at the first scale
    expected = {
        "user_known": 1, "item_known": 1, "has_text": 1, "user_age": np.log1p(3600), "item_age": 0,
        "dot_liked": d / (d + 1), "cos_liked": 1, "dot_passed": 0, "cos_passed": 0,
        "contrast": (d - d / 3) / (3 * d + 1), "norm_liked": d / (d + 1),
        "user_shown": 3 * d, "user_clicked": d, "user_purchased": 0,
        "item_shown": 1, "item_clicked": 1, "item_purchased": 1,
    }  # fmt: skip
    assert at == pytest.approx(expected, abs=1e-6)
    assert found[1, : len(GLOBALS)].tolist() == [0, 0, 1, 0, 0]
    assert not found[1, len(GLOBALS) :].any()


def test_features_equal_those_of_states_decayed_first():
    rng = np.random.default_rng(1)
    n = 50
    users = folded(n, [(k, int(rng.integers(10**9)), rng.random(2), rng.random(3), rng.standard_normal(64)) for k in
                       rng.integers(0, n, 120)])  # fmt: skip
    items = folded(n, [(k, int(rng.integers(10**9)), rng.random(2), rng.random(3), rng.standard_normal(64)) for k in
                       rng.integers(0, n, 60)])  # fmt: skip
    vectors, times = rng.standard_normal((n, 64)).astype(np.float32), rng.integers(0, 2 * 10**9, n)
    now = features(users, items, vectors, times)
    decayed = features(users.at(times), items.at(times), vectors, times)
    ages = [column("user_age"), column("item_age")]
    np.testing.assert_allclose(np.delete(now, ages, 1), np.delete(decayed, ages, 1), rtol=1e-5, atol=1e-6)
    liked = users.at(times).embeddings("liked")
    np.testing.assert_allclose(now[:, column("dot_liked", 1)], (liked[:, 1] * vectors).sum(1), rtol=1e-5, atol=1e-6)


def test_odd_states_give_numbers():
    zero = np.zeros((1, 64), np.float32)
    liked_only = folded(1, [(0, 5, (0, 3), (0, 2, 4), np.ones(64))])
    heads = [ClickHead.counts_only(), ClickHead.from_scorer(Loaded(small_head()), 0.001)]
    for users in (States.empty(1, SCALES_S), liked_only):
        for items in (States.empty(1, SCALES_S), liked_only):
            found = features(users, items, zero, np.array([0]))
            assert np.isfinite(found).all()
            for head in heads:
                for p in (head.click(found), head.purchase(found)):
                    assert p.dtype == np.float32
                    assert ((p > 0) & (p < 1)).all()
    assert features(States.empty(0, SCALES_S), States.empty(0, SCALES_S), zero[:0], np.zeros(0, int)).shape[0] == 0


def test_average_is_zero_and_belief_grows_with_evidence():
    assert relative_odds(np.array([2.0]), np.array([100.0]), 0.02, 8.0)[0] == pytest.approx(0.0)
    few, many = relative_odds(np.array([5.0, 50.0]), np.array([10.0, 100.0]), 0.02, 8.0)
    assert 0 < few < many


# counts alone


@pytest.mark.parametrize("base_rate", [None, 0.3])
def test_counts_alone_begin_at_the_base_rate_and_follow_the_counts(base_rate):
    head = ClickHead.from_scorer(NullScorer(), base_rate)
    states = folded(3, [(1, 0, (1, 1), (10, 9, 0), np.ones(64)), (2, 0, (1, 0), (10, 0, 0), np.ones(64))])
    cold = States.empty(3, SCALES_S)
    p = head.click(features(states, cold, np.zeros((3, 64), np.float32), np.zeros(3, int)))
    assert p[0] == pytest.approx(base_rate or 0.02, rel=1e-5)
    assert p[1] > p[0] > p[2]
    q = head.click(features(cold, states, np.zeros((3, 64), np.float32), np.zeros(3, int)))
    np.testing.assert_allclose(p, q)


# the log


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_event_sees_exactly_what_was_before_its_moment(n, seed):
    rng = np.random.default_rng(seed)
    log = Log(
        users=rng.integers(0, 4, n),
        items=rng.integers(0, 6, n),
        time_ms=rng.integers(0, 8, n) * HOUR_MS,  # many share a moment
        weights=rng.integers(0, 2, (n, 2)).astype(float),
        counts=rng.integers(0, 2, (n, 3)).astype(float),
        vectors=rng.standard_normal((n, 64)).astype(np.float32),
        label=np.zeros(n),
    )
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


@cache
def small_head():
    """Tensors of a head fitted once for all tests."""
    return fit(NullScorer(), click_rows(), action_rows(), SCALES_S).tensors


def test_a_fitted_head_beats_counts_alone_and_is_calibrated():
    rows = click_rows(4500, seed=5)
    history, data = rows[:3000], rows[3000:]
    fitted = evaluate_log(Loaded(small_head()), data, history)
    plain = evaluate_log(NullScorer(), data, history)
    assert fitted["task"] == "click"
    assert fitted["n"] == 1500
    assert fitted["auc"] > plain["auc"] - 0.005
    assert fitted["auc"] > 0.62
    assert fitted["ece"] < 0.1
    assert fitted["log_loss"] < plain["log_loss"]
    bought = evaluate_log(Loaded(small_head()), action_rows(seed=3), [])
    assert bought["task"] == "purchase"
    assert bought["auc"] > 0.7


def test_a_shops_base_rate_moves_an_average_pair_to_it():
    tensors = small_head()
    cold = features(States.empty(1, SCALES_S), States.empty(1, SCALES_S), np.zeros((1, 64), np.float32), np.array([0]))
    own = ClickHead.from_scorer(Loaded(tensors)).click(cold)[0]
    rare = ClickHead.from_scorer(Loaded(tensors), 0.02).click(cold)[0]
    b0 = float(tensors["click.rates"][0])

    def odds(p):
        return np.log(p / (1 - p))

    # A cold pair's inputs are the same for every base rate, so only the shift is left.
    assert odds(rare) - odds(own) == pytest.approx(odds(0.02) - odds(b0), abs=1e-3)


def test_a_head_goes_through_an_artifacts_tensors_unchanged():
    tensors = small_head()
    assert all(name.startswith("click.") for name in tensors)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    net = Perceptrons.of(Loaded(tensors), "click.click")
    x = np.random.default_rng(0).standard_normal((5, len(net.mean)))
    hidden = np.maximum(((x - net.mean) / net.scale).clip(-5, 5) @ net.weight1 + net.bias1[:, None], 0)
    expected = [
        np.mean([h[i] @ w + b for h, w, b in zip(hidden, net.weight2, net.bias2, strict=True)]) for i in range(5)
    ]
    np.testing.assert_allclose(net.logits(x), expected, rtol=1e-6)


def test_the_same_rows_give_the_same_head():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((400, 6)), (rng.random(400) < 0.4).astype(float)
    one, two = train(x, y), train(x, y)
    np.testing.assert_array_equal(one.weight1, two.weight1)


def test_other_time_scales_are_refused():
    scorer = Loaded(small_head())
    assert ClickHead.from_scorer(scorer, None, SCALES_S).scales_s == SCALES_S
    with pytest.raises(ArtifactError, match=r"profiles\.scales_s is \[60\.0\]"):
        ClickHead.from_scorer(scorer, None, (60.0,))


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
