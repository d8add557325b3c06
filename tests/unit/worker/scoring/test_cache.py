"""The cache keeps within its bytes, forgets the least recently used, and encodes nothing twice."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.scoring.cache import SLOT_OVERHEAD_BYTES, VectorCache


def fill(cache: VectorCache, text: str) -> None:
    slot, _ = cache.slot(text)
    slot.row, slot.vector = np.ones(8, np.float32), np.ones(4, np.float32)
    cache.fill([slot])


def test_a_text_in_flight_has_one_slot() -> None:
    cache = VectorCache(10_000)
    first, new = cache.slot("a")
    again, known = cache.slot("a")
    assert (new, known) == (True, False)
    assert first is again
    assert (cache.hits, cache.misses, cache.pending) == (1, 1, 1)


def test_an_encoded_text_is_kept() -> None:
    cache = VectorCache(10_000)
    fill(cache, "a")
    slot, new = cache.slot("a")
    assert not new
    assert slot.row is not None
    assert (cache.pending, len(cache)) == (0, 1)


def test_a_discarded_text_is_new_again() -> None:
    cache = VectorCache(10_000)
    slot, _ = cache.slot("a")
    cache.discard([slot])
    assert cache.slot("a")[1]


def test_discard_leaves_encoded_texts_alone() -> None:
    cache = VectorCache(10_000)
    fill(cache, "a")
    slot, _ = cache.slot("a")
    cache.discard([slot])
    assert not cache.slot("a")[1]


def test_the_least_recently_used_leaves_first() -> None:
    each = SLOT_OVERHEAD_BYTES + 2 + 48
    cache = VectorCache(2 * each)
    fill(cache, "a")
    fill(cache, "b")
    cache.slot("a")
    fill(cache, "c")
    assert [cache.slot(text)[1] for text in "abc"] == [False, True, False]


def test_a_text_larger_than_the_cache_is_not_kept() -> None:
    cache = VectorCache(1000)
    fill(cache, "x" * 10_000)
    assert (len(cache), cache.nbytes) == (0, 0)


@given(st.lists(st.text(min_size=1, max_size=30), max_size=60), st.integers(0, 3000))
def test_bytes_stay_within_the_bound_and_add_up(texts: list[str], capacity: int) -> None:
    cache = VectorCache(capacity)
    for text in texts:
        if cache.slot(text)[1]:
            fill(cache, text)
        assert cache.nbytes <= capacity
    assert cache.nbytes == sum(slot.nbytes for slot in cache._full.values())
    assert cache.pending == 0
