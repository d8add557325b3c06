"""Which rows are folded: every source position once, in whatever blocks, repeats and restarts it comes."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.folds import MAX_BLOCK_FOLDS, FoldBlock, FormatError, encode_block
from schemas.states import Fence, encode_fence
from worker.privacy.erasures import NOBODY, Erasures
from worker.profiles.folding import chunks, fold, read_block, select

SCALES_S = (3600.0, 604800.0)
FENCE = Fence(incarnation=3, fold_offset=0, marks={})
# (key, topic, partition, source offset, time, amount)
Row = tuple[str, str, int, int, int, float]


def block_of(rows: list[Row], kind="user", shard=2, space="s") -> FoldBlock:
    topics = sorted({row[1] for row in rows} | {"unused"})
    n = len(rows)
    vectors = np.zeros((n, 64), np.float16)
    for i, row in enumerate(rows):
        vectors[i, row[3] % 64] = 1.0
    return FoldBlock(
        kind=kind,
        space=space,
        shard=shard,
        topic_ids=topics,
        keys=[row[0] for row in rows],
        topic_index=np.array([topics.index(row[1]) for row in rows], np.int32),
        partition=np.array([row[2] for row in rows], np.int32),
        offset=np.array([row[3] for row in rows], np.int64),
        time_ms=np.array([row[4] for row in rows], np.int64),
        weights=np.array([[row[5], 0.0] for row in rows], np.float32).reshape(n, 2),
        counts=np.array([[1.0, 0.0, row[5]] for row in rows], np.float32).reshape(n, 3),
        vectors=vectors,
    )


def run_folds(blocks, fence, states, rows_max=MAX_BLOCK_FOLDS, erasures=NOBODY):
    """Fold (offset, block) pairs on from a fence; states is {key: State} and is changed."""
    folded = repeats = 0
    for chunk in chunks([pair for pair in blocks if pair[0] >= fence.fold_offset], rows_max):
        selection = select(fence, chunk, erasures)
        new, rows = fold(selection, [states.get(key) for key in selection.keys], "user", SCALES_S)
        states.update({state.key: state for state in new})
        fence, folded, repeats = selection.fence, folded + rows, repeats + selection.repeats
    return fence, folded, repeats


def plain(rows: list[Row]):
    """Amount at the latest time by key, over distinct source positions: {key: (time, W of each scale)}."""
    distinct = {row[1:4]: row for row in rows}
    result = {}
    for key in {row[0] for row in distinct.values()}:
        own = [row for row in distinct.values() if row[0] == key]
        latest = max(row[4] for row in own)
        result[key] = (
            latest,
            [sum(row[5] * np.exp(-(latest - row[4]) / 1000 / tau) for row in own) for tau in SCALES_S],
        )
    return result


def assert_same(states, rows):
    expected = plain(rows)
    assert set(states) == set(expected)
    for key, (latest, weights) in expected.items():
        assert states[key].time_ms == latest
        np.testing.assert_allclose(states[key].weights[0], weights, rtol=1e-5, atol=1e-5)


@st.composite
def histories(draw):
    """Rows in source order per partition, cut into blocks, some runs of which are written again later."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 60))
    next_offset: dict[tuple[str, int], int] = {}
    rows: list[Row] = []
    for _ in range(n):
        source = (f"t{rng.integers(2)}", int(rng.integers(3)))
        offset = next_offset.get(source, 0) + int(rng.integers(0, 3))
        next_offset[source] = offset + 1
        key = f"k{rng.integers(8)}"
        rows.append((key, *source, offset, int(rng.integers(0, 10_000_000)), float(rng.integers(0, 5))))
    cut = sorted({0, n, *rng.integers(0, n + 1, 6).tolist()})
    pieces = [rows[a:b] for a, b in itertools.pairwise(cut)]
    if draw(st.booleans()):
        # A killed worker goes back to an earlier commit and writes everything after it again, cut otherwise.
        back = int(rng.integers(0, n))
        crash = int(rng.integers(back, n + 1))
        again = rows[back:]
        middle = len(again) // 2
        pieces = [rows[:back], rows[back:crash], again[:middle], again[middle:]]
    offsets = np.cumsum(rng.integers(1, 4, len(pieces))).tolist()
    blocks = [(at, block_of(piece)) for at, piece in zip(offsets, pieces, strict=True) if piece]
    return rows, blocks


@settings(max_examples=150)
@given(histories(), st.integers(1, 80))
def test_every_source_position_is_folded_once(history, rows_max):
    rows, blocks = history
    states = {}
    fence, folded, repeats = run_folds(blocks, FENCE, states, rows_max)
    assert_same(states, rows)
    assert folded == len(rows)
    assert repeats == sum(len(block) for _, block in blocks) - len(rows)
    assert fence.fold_offset == blocks[-1][0] + 1
    assert fence.incarnation == FENCE.incarnation
    assert run_folds(blocks, fence, states)[1:] == (0, 0)
    marks = {}
    for row in rows:
        marks.setdefault(row[1], {})[row[2]] = max(row[3], marks.get(row[1], {}).get(row[2], -1))
    assert fence.marks == marks


@settings(max_examples=100)
@given(histories(), st.data())
def test_a_restored_shard_may_hold_states_newer_than_its_fence(history, data):
    """Features hold some states of a later publication than the last fence record: folded on, nothing twice."""
    rows, blocks = history
    stop = data.draw(st.integers(0, len(blocks)))
    later = data.draw(st.integers(stop, len(blocks)))
    states = {}
    fence, *_ = run_folds(blocks[:stop], FENCE, states)
    newer = dict(states)
    run_folds(blocks[stop:later], fence, newer)
    published = data.draw(st.sets(st.sampled_from(sorted(newer)))) if newer else set()
    restored = {**states, **{key: newer[key] for key in published}}
    run_folds(blocks, fence, restored)
    assert_same(restored, rows)


@settings(max_examples=50)
@given(histories(), st.integers(0, 10_000_000))
def test_a_forgotten_person_is_folded_only_from_the_cut_off_on(history, cutoff_ms):
    rows, blocks = history
    erasures = Erasures()
    erasures.add(rows[0][0], cutoff_ms, 3)
    states: dict = {}
    fence, _, repeats = run_folds(blocks, FENCE, states, erasures=erasures)
    everyone: dict = {}
    same_fence, _, same_repeats = run_folds(blocks, FENCE, everyone)
    assert_same(states, [row for row in rows if row[0] != rows[0][0] or row[4] > cutoff_ms])
    assert (fence, repeats) == (same_fence, same_repeats), "what is left out counts as folded"


def test_passed_over_blocks_move_the_fence_alone():
    fence, folded, repeats = run_folds([(4, None), (9, None)], FENCE, {})
    assert (fence.fold_offset, fence.marks, folded, repeats) == (10, {}, 0, 0)


def test_the_given_fence_is_left_as_it_was():
    fence = Fence(incarnation=1, fold_offset=0, marks={"t0": {0: 4}})
    before = encode_fence(fence)
    select(fence, [(0, block_of([("a", "t0", 0, 5, 1, 1.0)]))])
    assert encode_fence(fence) == before


def test_chunks_are_whole_blocks_within_the_bound():
    blocks = [(i, block_of([("a", "t", 0, j, 1, 1.0) for j in range(n)])) for i, n in enumerate([3, 3, 9, 1, 0, 2])]
    got = [[at for at, _ in chunk] for chunk in chunks([*blocks, (6, None)], 6)]
    assert got == [[0, 1], [2], [3, 4, 5, 6]]


ROW: Row = ("a", "t", 0, 5, 1, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard": 1}, "user shard 1, found in user shard 2"),
        ({"kind": "item"}, "item shard 2"),
        ({"topic_index": np.array([7], np.int32)}, "source topic"),
        ({"topic_index": np.array([-1], np.int32)}, "source topic"),
        ({"time_ms": np.array([-5])}, "below zero"),
        ({"weights": np.array([[np.nan, 0]], np.float32)}, "not a number"),
        ({"vectors": np.full((1, 64), np.inf, np.float16)}, "not a number"),
    ],
)
def test_a_block_that_cannot_be_folded_here_is_refused(change, message):
    block = msgspec.structs.replace(block_of([ROW]), **change)
    with pytest.raises(FormatError, match=message):
        read_block(encode_block(block), "user", 2)


def test_too_long_and_absent_blocks_are_refused():
    with pytest.raises(FormatError, match="at most"):
        read_block(encode_block(block_of([ROW] * (MAX_BLOCK_FOLDS + 1))), "user", 2)
    for value in (None, b"", b"junk"):
        with pytest.raises(FormatError, match="format version"):
            read_block(value, "user", 2)
    assert len(read_block(encode_block(block_of([ROW])), "user", 2)) == 1
