"""The arithmetic of lag."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.tools.status import FenceStatus, PartitionLag


def lag(committed: int | None, low: int, high: int) -> PartitionLag:
    return PartitionLag(topic="t", partition=0, committed=committed, low=low, high=high)


def test_before_the_first_commit_everything_kept_is_lag() -> None:
    assert lag(None, 5, 12).lag == 7
    assert lag(None, 5, 12).next_offset == 5


def test_what_retention_took_is_not_lag() -> None:
    assert lag(2, 5, 12).lag == 7
    assert lag(12, 5, 12).lag == 0


@given(st.none() | st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_lag_is_what_is_left_to_read(committed: int | None, low: int, kept: int) -> None:
    part = lag(committed, low, low + kept)
    assert 0 <= part.lag <= kept
    assert part.next_offset >= low


def test_a_shard_without_a_fence_is_behind_by_all_its_folds() -> None:
    assert FenceStatus(kind="user", shard=0, fence=None, end=9).behind == 9
    assert FenceStatus(kind="user", shard=0, fence=7, end=9).behind == 2
