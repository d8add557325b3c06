"""The state arithmetic against ten lines of plain numpy, in any order, in any batching, late events included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.state import ABSENT_MS, States
from schemas.folds import FormatError
from schemas.states import decode_state, encode_state

SCALES_S = (3600.0, 7 * 86400.0, 365 * 86400.0)
YEAR_MS = 365 * 86_400_000


def reference(events, scales_s):
    """The definition, event by event: {key: (T, S [2,S,64], W [2,S], C [S,3])}. Uses nothing of the implementation."""
    result = {}
    for key in {e[0] for e in events}:
        own = [e for e in events if e[0] == key]
        latest = max(e[1] for e in own)
        s, w, c = np.zeros((2, len(scales_s), 64)), np.zeros((2, len(scales_s))), np.zeros((len(scales_s), 3))
        for _, t, weight, count, vector in own:
            for i, tau in enumerate(scales_s):
                decay = np.exp(-(latest - t) / 1000.0 / tau)
                s[:, i] += decay * np.outer(weight, vector)
                w[:, i] += decay * np.asarray(weight)
                c[i] += decay * np.asarray(count)
        result[key] = (latest, s, w, c)
    return result


def fold_all(states, events):
    columns = list(zip(*events, strict=True)) if events else [[], np.zeros(0), np.zeros((0, 2)), np.zeros((0, 3)), []]
    states.fold(*(np.array(column) for column in columns))


def assert_equal(states, expected, tolerance=1e-5):
    for key in range(len(states)):
        if key not in expected:
            assert states.time_ms[key] == ABSENT_MS
            assert not states.sums[key].any()
            continue
        latest, s, w, c = expected[key]
        assert states.time_ms[key] == latest
        np.testing.assert_allclose(states.sums[key], s, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(states.weights[key], w, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(states.counts[key], c, rtol=tolerance, atol=tolerance)


@st.composite
def event_lists(draw):
    n = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    span_ms = draw(st.sampled_from([1, 3_600_000, YEAR_MS, 20 * YEAR_MS]))
    events = []
    for _ in range(n):
        vector = rng.standard_normal(64)
        vector /= np.linalg.norm(vector)
        time_ms = int(rng.integers(0, span_ms))
        events.append((int(rng.integers(0, 5)), time_ms, rng.integers(0, 3, 2), rng.integers(0, 2, 3), vector))
    return events


@settings(max_examples=60)
@given(events=event_lists(), order=st.randoms(use_true_random=False), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_any_order_and_any_batching_give_the_definition(events, order, cuts):
    expected = reference(events, SCALES_S)
    shuffled = list(events)
    order.shuffle(shuffled)
    states = States.empty(6, SCALES_S)
    edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    for start, end in itertools.pairwise(edges):
        fold_all(states, shuffled[start:end])
        # At rest between batches: float32, through the bytes that Redis holds.
        records = states.to_records("user", [str(i) for i in range(6)], 1, 0)
        kept = [
            decode_state(encode_state(record)) if seen else None
            for record, seen in zip(records, states.present, strict=True)
        ]
        states = States.from_records(kept, SCALES_S)
    assert_equal(states, expected)


def test_a_late_event_enters_decayed_and_moves_nothing():
    states = States.empty(1, (3600.0,))
    v = np.eye(64)
    states.fold([0], [7_200_000], [[1, 0]], [[1, 0, 0]], v[:1])
    states.fold([0], [3_600_000], [[0, 2]], [[0, 1, 0]], v[1:2])
    assert states.time_ms[0] == 7_200_000
    assert states.sums[0, 0, 0, 0] == 1.0
    assert states.sums[0, 1, 0, 1] == pytest.approx(2 * np.exp(-1))
    assert states.counts[0, 0].tolist() == pytest.approx([1.0, np.exp(-1), 0.0])


def test_event_at_the_epoch_is_not_absent():
    states = States.empty(1, SCALES_S)
    states.fold([0], [0], [[1, 1]], [[1, 1, 0]], np.ones((1, 64)) / 8)
    assert states.present.all()
    assert states.time_ms[0] == 0


@settings(max_examples=30)
@given(events=event_lists(), when=st.integers(0, 30 * YEAR_MS))
def test_at_is_decay_alone_and_leaves_the_original(events, when):
    states = States.empty(6, SCALES_S)
    fold_all(states, events)
    before = states.sums.copy()
    later = states.at(np.full(6, when))
    np.testing.assert_array_equal(states.sums, before)
    assert (later.time_ms == np.where(states.present, np.maximum(states.time_ms, when), ABSENT_MS)).all()
    factor = np.exp(-(later.time_ms - states.time_ms)[:, None] / 1000 / np.array(SCALES_S))
    np.testing.assert_allclose(later.weights, states.weights * factor[:, None, :], rtol=1e-9)
    np.testing.assert_allclose(later.sums, states.sums * factor[:, None, :, None], rtol=1e-9)
    # Folding after decaying is folding without it: `at` loses nothing but time.
    more = (np.arange(6), np.full(6, 31 * YEAR_MS), np.ones((6, 2)), np.ones((6, 3)), np.ones((6, 64)))
    states.fold(*more)
    later.fold(*more)
    np.testing.assert_allclose(later.sums, states.sums, rtol=1e-9, atol=1e-12)


def test_embedding_is_shrunk_by_one():
    states = States.empty(2, (1e9,))
    states.fold([0, 0, 0], [5, 5, 5], [[1, 0]] * 3, [[1, 0, 0]] * 3, np.tile(np.eye(64)[3], (3, 1)))
    assert states.embeddings("shown")[0, 0, 3] == pytest.approx(3 / 4)
    assert not states.embeddings("liked").any()
    assert not states.embeddings("shown")[1].any()


def test_take_copies_rows():
    states = States.empty(2, SCALES_S)
    states.fold([1], [10], [[1, 1]], [[1, 0, 0]], np.ones((1, 64)))
    taken = states.take([1, 1, 0])
    assert taken.present.tolist() == [True, True, False]
    taken.sums[:] = 0
    assert states.sums[1].any()


def test_a_record_of_other_scales_is_refused_by_name():
    record = States.empty(1, (60.0,)).to_records("item", ["i1"], 1, 0)[0]
    with pytest.raises(FormatError, match=r"1 time scales, profiles\.scales_s has 3"):
        States.from_records([record], SCALES_S)


def test_many_rows_into_few_states_stay_exact_over_thousands_of_writes_at_rest():
    rng = np.random.default_rng(7)
    n = 2000
    vectors = rng.standard_normal((n, 64)) / 8
    times = rng.integers(0, YEAR_MS, n)
    rounded = States.empty(1, SCALES_S)
    for i in range(n):
        rounded.fold([0], times[i : i + 1], [[1, 1]], [[1, 1, 0]], vectors[i : i + 1])
        rounded = States.from_records(rounded.to_records("user", ["u"], 1, i), SCALES_S)
    whole = States.empty(1, SCALES_S)
    whole.fold(np.zeros(n, int), times, np.ones((n, 2)), np.tile([1, 1, 0], (n, 1)), vectors)
    np.testing.assert_allclose(rounded.embeddings("liked"), whole.embeddings("liked"), atol=1e-5)
    np.testing.assert_allclose(rounded.weights, whole.weights, rtol=1e-5)
