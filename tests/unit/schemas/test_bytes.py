"""Bytes that last: what is written is read back, damaged bytes are refused, yesterday's bytes still decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.folds import FoldBlock, FormatError, decode_block, encode_block
from schemas.states import (
    Fence,
    State,
    StateHead,
    decode_fence,
    decode_state,
    encode_fence,
    encode_state,
    read_head,
    restamped,
)

V1 = Path(__file__).parent / "v1"
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
I64 = st.integers(0, 2**62)
# NaN never equals itself; states and folds hold none.
FLOATS = {width: st.floats(-1e4, 1e4, width=width, allow_nan=False) for width in (16, 32)}
SHORT = settings(max_examples=60)


def frozen(name: str) -> bytes:
    """Bytes that the first release wrote."""
    return bytes.fromhex((V1 / f"{name}.hex").read_text().replace("\n", ""))


@st.composite
def blocks(draw: st.DrawFn) -> FoldBlock:
    n = draw(st.integers(0, 5))

    def column(dtype: str, shape: Any, elements: Any) -> Any:
        return draw(hnp.arrays(dtype, shape, elements=elements))

    return FoldBlock(
        kind=draw(st.sampled_from(["user", "item"])),
        space=draw(KEYS),
        shard=draw(st.integers(0, 100)),
        topic_ids=["topic"],
        keys=draw(st.lists(KEYS, min_size=n, max_size=n)),
        topic_index=np.zeros(n, np.int32),
        partition=column("<i4", n, st.integers(0, 2**31 - 1)),
        offset=column("<i8", n, I64),
        time_ms=column("<i8", n, I64),
        weights=column("<f4", (n, 2), FLOATS[32]),
        counts=column("<f4", (n, 3), FLOATS[32]),
        vectors=column("<f2", (n, 64), st.sampled_from([0.0, 1.0, -0.5])),
    )


@st.composite
def states(draw: st.DrawFn) -> State:
    scales = draw(st.integers(1, 4))
    return State(
        kind=draw(st.sampled_from(["user", "item"])),
        key=draw(KEYS),
        incarnation=draw(st.integers(0, 2**64 - 1)),
        fold_offset=draw(I64),
        time_ms=draw(I64),
        sums=draw(hnp.arrays("<f4", (2, scales, 64), elements=FLOATS[32])),
        weights=draw(hnp.arrays("<f4", (2, scales), elements=FLOATS[32])),
        counts=draw(hnp.arrays("<f4", (scales, 3), elements=FLOATS[32])),
    )


FENCES = st.builds(
    Fence,
    incarnation=st.integers(0, 2**64 - 1),
    fold_offset=I64,
    marks=st.dictionaries(KEYS, st.dictionaries(st.integers(0, 1000), I64, max_size=5), max_size=4),
    folds=st.just("") | KEYS,
)


def assert_same(one: Any, other: Any) -> None:
    for name in one.__struct_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


@SHORT
@given(blocks())
def test_fold_blocks_round_trip(block: FoldBlock) -> None:
    assert_same(decode_block(encode_block(block)), block)


@SHORT
@given(states())
def test_states_round_trip(state: State) -> None:
    assert_same(decode_state(encode_state(state)), state)


@SHORT
@given(states(), st.integers(0, 2**64 - 1))
def test_a_states_head_is_read_and_its_incarnation_changed_without_the_rest(state: State, incarnation: int) -> None:
    data = encode_state(state)
    assert read_head(data) == StateHead(state.kind, state.key, state.time_ms)
    assert_same(decode_state(restamped(data, incarnation)), msgspec.structs.replace(state, incarnation=incarnation))


@SHORT
@given(states(), st.data())
def test_a_head_is_refused_where_the_state_is(state: State, data: st.DataObject) -> None:
    damaged = bytearray(encode_state(state))
    del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    for value in (bytes(damaged), b"\x09" + encode_state(state)[1:], encode_state(state) + b"x"):
        with pytest.raises(FormatError):
            decode_state(value)
        with pytest.raises(FormatError):
            read_head(value)


@pytest.mark.parametrize("read", [decode_state, read_head])
def test_a_damaged_key_is_refused_without_being_told(read: Any) -> None:
    with pytest.raises(FormatError, match=r"the key is not UTF-8 from byte 3 on$"):
        read(frozen("state").replace("壶".encode(), b"\xff\xff\xff"))


@given(FENCES)
def test_fences_round_trip_and_equal_fences_give_equal_bytes(fence: Fence) -> None:
    encoded = encode_fence(fence)
    assert decode_fence(encoded) == fence
    marks = {topic: dict(reversed(parts.items())) for topic, parts in reversed(fence.marks.items())}
    assert encode_fence(msgspec.structs.replace(fence, marks=marks)) == encoded


@pytest.mark.parametrize(
    ("decode", "name"), [(decode_block, "fold_block"), (decode_state, "state"), (decode_fence, "fence")]
)
def test_what_cannot_be_read_is_refused_by_name(decode: Any, name: str) -> None:
    good = frozen(name)
    with pytest.raises(FormatError, match="format version 2, this release reads 1"):
        decode(bytes([2]) + good[1:])
    for damaged in (b"", good[:1], good[:-1], good[: len(good) // 2]):
        with pytest.raises(FormatError):
            decode(damaged)


def test_a_fold_block_of_the_first_release_still_decodes() -> None:
    block = decode_block(frozen("fold_block"))
    assert (block.kind, block.space, block.shard, block.topic_ids) == ("user", "s1", 5, ["tid-a"])
    assert block.keys == ["alice", "鲍勃"]
    assert block.partition.tolist() == [3, 3]
    assert block.offset.tolist() == [10, 12]
    assert block.time_ms.tolist() == [1700000000000, 1700000001000]
    assert block.weights.tolist() == [[1, 0], [1, 1]]
    assert block.counts.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert (block.vectors[0, 0], block.vectors[1, 63], np.abs(block.vectors).sum()) == (1, -1, 2)


def test_a_state_of_the_first_release_still_decodes() -> None:
    state = decode_state(frozen("state"))
    assert (state.kind, state.key, state.incarnation) == ("item", "茶壶-1", 2**40 + 7)
    assert (state.fold_offset, state.time_ms) == (99, 1700000000123)
    assert (state.sums[0, 0, 0], state.sums[1, 0, 63], np.abs(state.sums).sum()) == (0.5, -0.25, 0.75)
    assert state.weights.tolist() == [[3.5], [1.25]]
    assert state.counts.tolist() == [[4, 2, 1]]


def test_a_fence_of_the_first_release_still_decodes_and_is_written_the_same() -> None:
    fence = decode_fence(frozen("fence"))
    assert fence == Fence(incarnation=2**40 + 7, fold_offset=100, marks={"tid-a": {0: 7, 3: 12}, "tid-b": {1: 5}})
    assert encode_fence(fence) == frozen("fence")


def test_the_first_release_reads_a_fence_that_names_its_folds_topic() -> None:
    class First(msgspec.Struct, frozen=True, kw_only=True):
        incarnation: int
        fold_offset: int
        marks: dict[str, dict[int, int]]

    data = encode_fence(Fence(incarnation=7, fold_offset=100, marks={"tid-a": {0: 7}}, folds="tid-f"))
    assert data[0] == 1
    assert msgspec.msgpack.decode(data[1:], type=First) == First(
        incarnation=7, fold_offset=100, marks={"tid-a": {0: 7}}
    )
