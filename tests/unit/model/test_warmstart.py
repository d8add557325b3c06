"""The heads' first weights from few rows, and from rows that say little: finite, and right where rows can tell."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.warmstart import discriminant


def test_one_row_a_class_tells_them_apart() -> None:
    x = np.random.default_rng(0).standard_normal((3, 8))
    weight, bias = discriminant(np.concatenate([x, x[:1]]), np.array([0, 1, 2, 0]), 3)
    assert ((x @ weight.T + bias).argmax(1) == [0, 1, 2]).all()


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_that_are_all_alike_prefer_nothing(rows: int) -> None:
    weight, bias = discriminant(np.full((rows, 8), 0.3), np.arange(rows) % 2, 4)
    assert np.abs(np.full((1, 8), 0.3) @ weight.T + bias - bias[0]).max() < 1e-9


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_any_rows_give_finite_weights(rows: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 5)).round(rng.integers(0, 3))  # so that some are alike
    weight, bias = discriminant(x, rng.integers(0, count, rows), count)
    assert weight.shape == (count, 5)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()
