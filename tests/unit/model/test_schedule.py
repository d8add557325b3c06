"""What is trained when."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.training.schedule import draws_by_dataset, schedule


def test_draws_follow_size_to_a_power_and_stop_at_the_bound() -> None:
    draws = draws_by_dataset([10000, 100], [20, 20], [1, 1], temperature=0.5, passes_max=4, tokens=60_000)
    assert draws[1] / draws[0] == pytest.approx(0.1, rel=0.01)
    assert sum(draws) * 20 == pytest.approx(60_000, rel=0.01)
    bounded = draws_by_dataset([10000, 100], [20, 20], [1, 1], temperature=0.5, passes_max=4, tokens=600_000)
    assert bounded[1] == 400
    assert sum(bounded) * 20 == pytest.approx(600_000, rel=0.01)
    assert draws_by_dataset([10, 5], [2, 2], [1, 1], temperature=1, passes_max=3, tokens=1e9) == [30, 15]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.integers(20, 400),
    st.sampled_from([1, 48]),
    st.integers(0, 5),
)
def test_batches_hold_every_draw_within_bounds(sizes: list[int], batch_tokens: int, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 100, sum(sizes))
    ends = np.cumsum(sizes)
    rows = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    draws = [2 * size + 1 for size in sizes]
    batches = schedule(rows, draws, lengths, batch_tokens=batch_tokens, window_batches=window, seed=seed)
    counts = np.bincount(np.concatenate(batches), minlength=sum(sizes))
    assert all(set(counts[own]) <= {2, 3} for own in rows)  # two passes and one draw of a third
    assert [int(counts[own].sum()) for own in rows] == draws
    assert all(len(b) == 1 or lengths[b].sum() <= batch_tokens for b in batches)
    again = schedule(rows, draws, lengths, batch_tokens=batch_tokens, window_batches=window, seed=seed)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
