"""The flat buffer holds every token once, and padding apart."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.flat import BUCKET_TOKENS_MIN, Layout, bucket, lay_out, padded, runs

POSITIONS = 48
LENGTHS = st.lists(st.integers(1, POSITIONS), min_size=1, max_size=60)


def texts(lengths: list[int]) -> list[Any]:
    return [np.arange(4, n + 4, dtype=np.int32) for n in lengths]


@given(st.integers(0, 300_000))
def test_a_bucket_has_room_and_wastes_a_third_at_most(tokens: int) -> None:
    size = bucket(tokens)
    assert size >= max(tokens, BUCKET_TOKENS_MIN)
    assert size % 128 == 0
    assert bucket(size) == size
    if tokens > BUCKET_TOKENS_MIN:
        assert size - tokens < size / 3


def test_buckets_are_few() -> None:
    assert [b for b in range(1, 4097) if bucket(b) == b] == [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


@given(LENGTHS, st.booleans())
def test_a_flat_buffer_holds_every_token_once_and_padding_apart(lengths: list[int], exact: bool) -> None:
    ids = [np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)]
    total = sum(lengths)
    layout = Layout(total, len(lengths)) if exact else padded(len(lengths), total, POSITIONS)
    if layout is None:
        assert len(lengths) > bucket(total) // 8
        return
    buffer = np.full(layout.size, -7, np.int32)
    lay_out(ids, layout, POSITIONS, buffer)
    tokens, positions, rows, cumulative = layout.split(buffer)
    assert (len(tokens), len(positions), len(rows), len(cumulative)) == (*[layout.tokens] * 3, layout.sequences + 1)
    assert tokens.tolist() == np.concatenate(ids).tolist() + [0] * (layout.tokens - total)
    assert cumulative[0] == 0
    assert cumulative[-1] == layout.tokens
    assert np.diff(cumulative)[: len(lengths)].tolist() == lengths
    assert ((np.diff(cumulative) >= 0) & (np.diff(cumulative) <= POSITIONS)).all()
    for row, (start, end) in enumerate(pairwise(cumulative.tolist())):
        assert (rows[start:end] == row).all()
        assert positions[start:end].tolist() == list(range(end - start))


@given(st.integers(1, 20_000), st.integers(1, 64), st.integers(1, 512))
def test_a_padded_layout_has_room_for_the_padding_too(texts: int, mean: int, longest: int) -> None:
    tokens = texts * min(mean, longest)
    layout = padded(texts, tokens, longest)
    if layout is not None:
        assert layout.tokens == bucket(tokens)
        assert texts + -(-(layout.tokens - tokens) // longest) <= layout.sequences


@pytest.mark.parametrize(
    ("lengths", "layout"), [([3, 0], Layout(256, 16)), ([POSITIONS + 1], Layout(256, 16)), ([3, 3], Layout(5, 2))]
)
def test_what_does_not_fit_is_refused(lengths: list[int], layout: Layout) -> None:
    with pytest.raises(ValueError, match=r"fit|must have"):
        lay_out(texts(lengths), layout, POSITIONS, np.zeros(layout.size, np.int32))


@given(st.lists(st.integers(1, 500), max_size=80), st.integers(1, 1000))
def test_runs_keep_the_order_and_their_bounds(lengths: list[int], tokens_max: int) -> None:
    parts = runs(np.array(lengths, np.int64), tokens_max)
    assert [i for first, last in parts for i in range(first, last)] == list(range(len(lengths)))
    for first, last in parts:
        assert last - first == 1 or sum(lengths[first:last]) <= tokens_max
        assert last - first <= max(tokens_max // 4, 1)
