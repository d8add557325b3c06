"""The circuit breaker, by hand-set time."""

from __future__ import annotations

from copy import copy

from hypothesis import given
from hypothesis import strategies as st

from worker.redis.breaker import Breaker


def test_opens_after_failures_in_a_row_and_lets_one_try_after_the_pause():
    breaker = Breaker(3, 1.0)
    for now in (0.0, 0.1, 0.2):
        assert breaker.allows(now)
        breaker.failed(now)
    assert not breaker.allows(0.3)
    assert not breaker.allows(1.19)
    assert breaker.allows(1.2)
    assert not breaker.allows(1.21), "one tries, the others wait for its answer"
    breaker.failed(1.25)
    assert not breaker.allows(2.24)
    assert breaker.allows(2.25)
    breaker.succeeded()
    assert breaker.allows(2.26)


def test_a_success_between_failures_keeps_it_closed():
    breaker = Breaker(2, 1.0)
    for now in range(10):
        breaker.failed(now)
        breaker.succeeded()
        assert breaker.allows(now)


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=60), st.integers(1, 5), st.floats(0.01, 20))
def test_never_open_longer_than_the_pause(steps, failures, open_s):
    breaker, now = Breaker(failures, open_s), 0.0
    for gap, answered in steps:
        now += gap
        if breaker.allows(now):
            breaker.succeeded() if answered else breaker.failed(now)
        assert copy(breaker).allows(now + open_s)


def test_a_try_that_never_comes_back_is_followed_by_another_and_pauses_are_stretched():
    breaker = Breaker(1, 1.0)
    breaker.failed(0.0, jitter=1.25)
    assert not breaker.allows(1.24)
    assert breaker.allows(1.25)
    assert not breaker.allows(2.24)
    assert breaker.allows(2.25)
