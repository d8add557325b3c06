"""Temperature, threshold and vector space, each against what it must recover."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.artifact import Artifact
from model.calibrate import (
    Calibration,
    ScopeCost,
    blend,
    calibrate,
    decision_weights,
    expected_f1,
    log_loss,
    scope_threshold,
    softmax,
    temperature,
)
from model.metrics import macro_f1
from model.space import fit_space
from model.training.card import render
from model.training.recipe import load_recipe

rng = np.random.default_rng(5)


def drawn(logits: np.ndarray) -> np.ndarray:
    """Labels drawn from the softmax of logits."""
    return (softmax(logits, 1.0).cumsum(1) > rng.random((len(logits), 1))).argmax(1)


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_recovers_the_true_one(true: float) -> None:
    logits = rng.normal(size=(20_000, 5)) * 2
    labels = drawn(logits)
    assert temperature(logits * true, labels, np.ones_like(logits, bool)) == pytest.approx(true, rel=0.05)


def test_temperature_of_two_class_rows_is_conditional() -> None:
    logits = rng.normal(size=(20_000, 3)) * 2
    allowed = np.array([[True, False, True]]).repeat(len(logits), 0)
    labels = drawn(np.where(allowed, logits, -1e9))
    assert temperature(logits * 2, labels, allowed) == pytest.approx(2, rel=0.05)


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=10))
def test_a_few_rows_that_are_all_right_do_not_make_every_answer_certain(margins: list[float]) -> None:
    logits = np.array([[margin, 0.0] for margin in margins])
    found = temperature(logits, np.zeros(len(margins), np.int64), np.ones_like(logits, bool))
    assert 0.45 < found <= 1.0  # 0.05, the bound, without a prior


@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(-2, 2))
def test_no_temperature_is_better_than_the_one_found(seed: int, rows: int, heat: float) -> None:
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(rows, 3)) * np.exp(heat)
    labels, everything = draw.integers(3, size=rows), np.ones((rows, 3), bool)

    def loss(log_t: float) -> float:
        return rows * log_loss(logits / np.exp(log_t), labels, everything) + 2.0 * log_t**2

    found = loss(float(np.log(temperature(logits, labels, everything))))
    assert all(found <= loss(log_t) + 1e-4 for log_t in np.linspace(-3, 3, 61))


def test_the_card_names_heads_that_were_calibrated_on_few_rows() -> None:
    root = Path(__file__).parents[3] / "model"
    recipe, manifest = load_recipe(root / "training" / "starter.yaml"), Artifact.load(root / "starter").manifest
    assert "fewer than 50 rows" not in render(recipe, manifest)
    manifest["heads"]["stars"]["calibration_rows"] = 12
    assert "Calibrated on fewer than 50 rows, so how sure it is says little: `stars` (12)." in render(recipe, manifest)


def test_few_outside_rows_threshold_loses_the_stated_share_of_right_answers() -> None:
    inside, right = rng.random(5000), rng.random(5000) < 0.9
    threshold = scope_threshold(inside, right, rng.random(5), ScopeCost(lost_max=0.02))
    assert ((inside < threshold) & right).mean() == pytest.approx(0.02, abs=1e-3)
    assert scope_threshold(inside, right, rng.random(5), ScopeCost(lost_max=0.0)) <= inside[right].min()


def test_threshold_weighs_the_two_errors() -> None:
    inside, right = rng.beta(8, 2, 4000), np.ones(4000, bool)
    outside = rng.beta(2, 8, 4000)
    dear, cheap = (scope_threshold(inside, right, outside, ScopeCost(answered=a, share=0.5)) for a in (10.0, 0.1))
    assert cheap < scope_threshold(inside, right, outside, ScopeCost(share=0.5)) < dear

    def cost(mark: float) -> float:
        return 0.5 * float((inside < mark).mean()) + 0.5 * float((outside >= mark).mean())

    best = cost(scope_threshold(inside, right, outside, ScopeCost(share=0.5)))
    assert all(best <= cost(mark) + 1e-9 for mark in np.linspace(0, 1, 200))


def test_rows_answered_wrongly_cost_nothing_to_turn_away() -> None:
    inside, outside = np.full(100, 0.4), np.full(100, 0.5)
    assert scope_threshold(inside, np.zeros(100, bool), outside, ScopeCost()) >= 0.4
    assert scope_threshold(inside, np.ones(100, bool), outside, ScopeCost(share=0.1)) <= 0.4


def test_space_is_centred_and_keeps_the_main_directions() -> None:
    rows = (rng.normal(size=(4000, 90)) * np.linspace(5, 0.1, 90) + 7).astype(np.float32)
    mean, projection = fit_space(rows, body=80)
    assert mean.shape == (90,)
    assert projection.shape == (90, 64)
    projected = (rows - mean) @ projection
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-3)
    covariance = np.cov(projected.T)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 0.02 * covariance.max()
    near = rows[0] + rng.normal(size=90).astype(np.float32) * 0.1
    ours = (np.stack([rows[0], near, rows[1]]) - mean) @ projection
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    assert ours[0] @ ours[1] > 0.9 > ours[0] @ ours[2]


def test_space_of_few_rows_is_padded_with_zeros() -> None:
    rows = rng.normal(size=(10, 20)).astype(np.float32)
    _, projection = fit_space(rows, body=20)
    assert np.isfinite(projection).all()
    assert (projection[:, 20:] == 0).all()


def test_blend_trusts_what_tells_the_truth() -> None:
    logits = rng.normal(size=(20_000, 4)) * 1.5
    labels, everything = drawn(logits), np.ones((20_000, 4), bool)
    noise = rng.normal(size=logits.shape)
    weights = blend([noise, logits / 2], labels, everything, prior=(1.0, 1.0))
    np.testing.assert_allclose(weights, [0, 2], atol=0.1)
    few = blend([noise[:1], logits[:1]], labels[:1], everything[:1], prior=(1.0, 1.0))
    assert np.abs(few - 1).max() < 2  # one row cannot pull far


def test_blend_of_two_class_rows_is_conditional() -> None:
    logits = rng.normal(size=(5000, 3)) * 2
    allowed = np.array([[True, False, True]]).repeat(len(logits), 0)
    labels = drawn(np.where(allowed, logits, -1e9))
    shouting = logits + np.array([0.0, 50.0, 0.0])  # the class that is not in question must not matter
    np.testing.assert_allclose(blend([shouting], labels, allowed, prior=(1.0,)), [1], atol=0.1)


SHARES = np.array([0.8, 0.15, 0.05])


def skewed(rows: int, balance: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a common, a less common and a rare class that look alike, and the logits of a head that learned them
    with class weights of frequency^-balance."""
    labels = rng.choice(3, rows, p=SHARES)
    seen = 1.5 * np.eye(3)[labels] + rng.normal(size=(rows, 3))
    return 1.5 * seen + (1 - balance) * np.log(SHARES), labels


def gain(weights: np.ndarray, balance: float = 0.0) -> float:
    """In macro-F1 on 20,000 other rows."""
    logits, labels = skewed(20_000, balance)
    p = softmax(logits, 1.0)
    return macro_f1(labels, (p * weights).argmax(1), 3) - macro_f1(labels, p.argmax(1), 3)


def test_decision_weights_find_more_of_what_is_rare_than_the_likeliest_label_does() -> None:
    logits, labels = skewed(1_000)
    weights = decision_weights(logits, labels, SHARES)
    assert weights[0] == 1.0 < weights[1] < weights[2]
    assert gain(weights) > 0.01
    others, truth = skewed(20_000)
    p = softmax(others, 1.0)
    assert expected_f1(p, (p * weights).argmax(1)) == pytest.approx(
        macro_f1(truth, (p * weights).argmax(1), 3), abs=0.02
    )


def test_a_head_that_says_rare_labels_too_often_is_not_made_to_say_them_more() -> None:
    weights = decision_weights(*skewed(1_000, balance=1.0), SHARES)
    assert weights[0] == 1.0 > weights[1] > weights[2]
    assert gain(weights, balance=1.0) > 0.05


@given(st.integers(0, 10_000), st.integers(50, 100))
def test_a_few_rows_do_little_harm(seed: int, rows: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.choice(3, rows, p=SHARES)
    logits = 9.0 * np.eye(3)[labels] + draw.normal(size=(rows, 3)) + np.log(SHARES)  # nothing to gain: all are clear
    assert decision_weights(logits, labels, SHARES).tolist() == [1.0, 1.0, 1.0]


def test_decision_weights_are_there_where_they_are_asked_for_and_can_be_had() -> None:
    (logits, labels), everything = skewed(400), np.ones((400, 3), bool)
    first = np.arange(400) % 2 == 0

    def found(rows: int = 400, allowed: np.ndarray = everything, shares: np.ndarray | None = SHARES) -> Calibration:
        return calibrate(logits[:rows], labels[:rows], allowed[:rows], first[:rows], shares=shares)

    heat = found().temperature
    assert found().decision_weights == decision_weights(logits / heat, labels, SHARES).tolist()
    assert found(shares=None) == Calibration(heat, None)
    assert found(shares=np.array([0.9, 0.1, 0.0])) == Calibration(heat, None)  # a label that nobody has seen
    assert found(rows=49).decision_weights is None
    partial = np.ones((400, 3), bool)
    partial[40:, 1] = False  # of a data set that knows two of the labels, all but forty
    assert found(allowed=partial).decision_weights is None
    partial[:300] = True
    assert found(allowed=partial).decision_weights is not None
