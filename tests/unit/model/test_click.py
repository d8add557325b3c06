"""The click head: features by the definition, base rates, context, fitting that learns."""

from __future__ import annotations

import numpy as np
import pytest

from model.clicks.context import ContextFeature
from model.clicks.evaluate import evaluate_log
from model.clicks.features import BLOCK, GLOBALS, STRENGTHS, click_inputs, features, relative_odds, split
from model.clicks.fit import train
from model.clicks.head import SCALES_S, ClickHead, Perceptrons
from model.errors import ArtifactError
from model.null import NullScorer
from model.state import States
from tests.click_head import Loaded, action_rows, click_rows, fitted, folded, lines, small_head

HOUR_MS = 3_600_000


def column(name, scale=None):
    if name in GLOBALS:
        return GLOBALS.index(name)
    return len(GLOBALS) + scale * len(BLOCK) + BLOCK.index(name)


def test_features_by_hand():
    a, b = np.eye(64)[0], np.eye(64)[1]
    shown = ((0, 0, (0.5, 1), (1, 1, 0), a), (0, 0, (0.25, 0), (1, 0, 0), b), (0, 0, (0.25, 0), (1, 0, 0), b))
    users = folded(2, shown)
    items = folded(2, [(0, HOUR_MS, (0.75, 1), (1, 1, 1), a)])
    found = features(users, items, np.stack([a, b]).astype(np.float32), np.array([HOUR_MS, HOUR_MS]))
    assert found.shape == (2, len(GLOBALS) + 3 * len(BLOCK) + 64)
    assert found.dtype == np.float32
    at = {name: float(found[0, column(name, 1)]) for name in (*GLOBALS, *BLOCK)}
    d = np.exp(-3600 / SCALES_S[1])  # an hour at the second scale
    information = d * (1 - 1 / 3) + 1  # one click expected of three impressions
    expected = {
        "user_known": 1, "item_known": 1, "has_text": 1, "user_age": np.log1p(3600), "item_age": 0,
        "dot_surprise": 0.5 * d / information, "cos_surprise": np.sqrt(0.5),
        "norm_surprise": np.sqrt(0.5) * d / information,
        "user_shown": 3 * d, "user_clicked": d, "user_purchased": 0, "user_expected": d,
        "item_shown": 1, "item_clicked": 1, "item_purchased": 1, "item_expected": 0.75,
        "last_shown": 3, "last_clicked": 1, "last_expected": 1,
    }  # fmt: skip
    assert at == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(found[:, -64:], np.stack([a, b]))
    assert found[1, : len(GLOBALS)].tolist() == [0, 0, 1, 0, 0]
    assert not found[1, len(GLOBALS) : -64].any()


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
    last = [column(name, s) for name in ("last_shown", "last_clicked", "last_expected") for s in range(3)]
    # A sum decayed a million times over is nothing, and so has no direction.
    other = [column("user_age"), column("item_age"), *last, column("cos_surprise", 0), column("cos_surprise", 1)]
    np.testing.assert_allclose(np.delete(now, other, 1), np.delete(decayed, other, 1), rtol=1e-5, atol=1e-6)


def test_clicks_on_what_everybody_clicks_are_no_surprise():
    """Two users of five clicks each, on what was expected and on what was not: same rates, other surprise."""
    cold, vector = States.empty(1, SCALES_S), np.eye(64, dtype=np.float32)[:1]
    rows = []
    for p in (0.9, 0.1):
        users = folded(1, [(0, 0, (p, 1), (1, 1, 0), np.eye(64)[0])] * 5)
        rows.append(split(features(users, cold, vector, np.array([0])), 3))
    sure, rare = (click_inputs(parts, 0.5, np.zeros(1))[0] for parts in rows)
    differs = np.flatnonzero(sure != rare)
    assert (rare[differs] > sure[differs]).all()
    # Dot and length of the surprise at three scales; rate over expectation by strength, at three scales and at two.
    assert len(differs) == 2 * 3 + len(STRENGTHS) * (3 + 2)


def test_odd_states_give_numbers():
    zero = np.zeros((1, 64), np.float32)
    liked_only = folded(1, [(0, 5, (0, 3), (0, 2, 4), np.ones(64))])
    heads = [ClickHead.counts_only(), ClickHead.from_scorer(Loaded(small_head()), 0.001)]
    for users in (States.empty(1, SCALES_S), liked_only):
        for items in (States.empty(1, SCALES_S), liked_only):
            found = features(users, items, zero, np.array([0]), spec=())
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


# fitted


def test_a_fitted_head_beats_counts_alone_and_is_calibrated():
    rows = click_rows(4500, seed=5)
    history, data = lines(rows[:3000]), lines(rows[3000:])
    found = evaluate_log(Loaded(small_head()), "click", data, history)
    plain = evaluate_log(NullScorer(), "click", data, history)
    assert found["task"] == "click"
    assert found["n"] == 1500
    assert found["auc"] > plain["auc"] - 0.005
    assert found["auc"] > 0.62
    assert found["ece"] < 0.1
    assert found["log_loss"] < plain["log_loss"]
    bought = evaluate_log(Loaded(small_head()), "purchase", lines(action_rows(seed=3)))
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


def test_kept_negatives_shift_the_base_rate():
    tensors = dict(small_head())
    cold = features(States.empty(1, SCALES_S), States.empty(1, SCALES_S), np.zeros((1, 64), np.float32), np.array([0]))
    plain = ClickHead.from_scorer(Loaded(tensors)).click(cold)[0]
    b0, bought, _ = tensors["click.rates"]
    tensors["click.rates"] = np.array([b0, bought, 0.1], np.float32)  # nine of ten unclicked impressions left out
    sampled = ClickHead.from_scorer(Loaded(tensors)).click(cold)[0]
    assert sampled / (1 - sampled) == pytest.approx(0.1 * plain / (1 - plain), rel=1e-3)
    # A base rate that is told is the shop's own already.
    told = ClickHead.from_scorer(Loaded(tensors), 0.02).click(cold)[0]
    assert told == ClickHead.from_scorer(Loaded(small_head()), 0.02).click(cold)[0]


def test_an_older_head_is_left_alone():
    tensors = {name: tensor for name, tensor in small_head().items() if name != "click.version"}
    states = States.empty(1, SCALES_S)
    cold = features(states, states, np.zeros((1, 64), np.float32), np.array([0]))
    assert ClickHead.from_scorer(Loaded(tensors)).click(cold) == ClickHead.counts_only().click(cold)


def test_position_is_fitted_and_then_neutral():
    """Clicks that follow the position alone: the head is fitted on it, and scores as if all stood at its reference."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3000):
        position = float(rng.integers(10))
        clicked = int(rng.random() < 0.8 - 0.07 * position)
        context = {"position": position, "device": ("phone", "desk")[i % 2]}
        rows.append({"user_id": i % 50, "item_id": i % 40, "ts": 60 * i, "clicked": clicked, "context": context})
    spec = (ContextFeature("position", neutral=0.0), ContextFeature("device", kind="categorical", buckets=4))
    head = ClickHead.from_scorer(Loaded(fitted(rows, action_rows(), context=spec).tensors))
    cold, zero = States.empty(2, SCALES_S), np.zeros((2, 64), np.float32)
    contexts = [{"position": 0.0}, {"position": 9.0}]
    top, bottom = head.click(head.features(cold, cold, zero, np.zeros(2, int), contexts))
    assert top == bottom
    assert top > 0.55
    asked = features(cold, cold, zero, np.zeros(2, int), contexts, head.context, fitting=True)
    assert head.click(asked)[1] < 0.4
    devices = features(cold, cold, zero, np.zeros(2, int), [{"device": "phone"}, {"device": "desk"}], head.context)
    assert (devices[0] != devices[1]).any()


def test_a_head_goes_through_an_artifacts_tensors_unchanged():
    tensors = small_head()
    assert all(name.startswith("click.") for name in tensors)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())
    net = Perceptrons.of(tensors.__getitem__, "click.click")
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
