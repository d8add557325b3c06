"""The line that predicts a batch's time is found, never goes below nothing, and is not ruled by one stall."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.scoring.cost import OUTLIER, CostModel


def test_the_cost_model_finds_the_line() -> None:
    cost = CostModel()
    for tokens in random.Random(1).choices(range(10, 4000), k=400):
        cost.observe(tokens, 0.004 + 2e-5 * tokens)
    assert cost.a_s == pytest.approx(0.004, rel=0.02)
    assert cost.b_s == pytest.approx(2e-5, rel=0.02)
    assert cost.tokens_within(0.024) == pytest.approx(1000, rel=0.05)
    assert cost.tokens_worth == pytest.approx(200, rel=0.05)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 10)), max_size=50))
def test_the_cost_model_never_predicts_less_than_nothing(batches: list[tuple[int, float]]) -> None:
    cost = CostModel()
    for tokens, seconds in batches:
        cost.observe(tokens, seconds)
        assert cost.a_s >= 0
        assert cost.b_s >= 0
        assert cost.seconds(100) <= cost.seconds(200)


def test_one_stall_does_not_rule_but_a_slower_device_is_learnt() -> None:
    cost = CostModel()
    for tokens in random.Random(2).choices(range(10, 4000), k=200):
        cost.observe(tokens, 0.004 + 2e-5 * tokens)
    before = cost.seconds(1000)
    cost.observe(1000, 30.0)
    assert cost.seconds(1000) < before * (1 + OUTLIER / 10)
    for tokens in random.Random(3).choices(range(10, 4000), k=150):
        cost.observe(tokens, 50 * (0.004 + 2e-5 * tokens))
    assert cost.seconds(1000) == pytest.approx(50 * before, rel=0.2)
