"""Less important lanes are left in Kafka first, a flood of one does not keep another out, and nothing flutters."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.decode import BACKFILL, Lane
from worker.regulator import BACKFILL_SHARE, SHARES, Regulator

OBJECTIVES: dict[Lane, float] = {"service": 0.25, "click": 0.15, "review": 1.0}
TOPICS = {"s": "service", "c": "click", "r": "review", "r2": "review", "old": BACKFILL}
EVERYTHING = frozenset(TOPICS)


def regulator(high: int = 1000, low: int = 500) -> Regulator:
    return Regulator(TOPICS, OBJECTIVES, high, low)


def waiting(**lanes: int) -> dict[str, int]:
    return {"service": 0, "click": 0, "review": 0, BACKFILL: 0, **lanes}


def test_a_lane_that_holds_its_share_stays_in_kafka_and_comes_back_well_below() -> None:
    rules = regulator()
    assert rules.paused(waiting(review=150), 150, False) == frozenset()
    assert rules.paused(waiting(review=151), 151, False) == {"r", "r2"}
    assert rules.paused(waiting(review=80), 80, False) == {"r", "r2"}, "between the marks it stays as it was"
    assert rules.paused(waiting(review=75), 75, False) == frozenset()


def test_the_same_load_pauses_the_less_important_first() -> None:
    rules = regulator()
    for load, paused in ((101, {"old"}), (151, {"old", "r", "r2"}), (201, {"old", "r", "r2", "s"})):
        each = waiting(service=load, click=load, review=load, backfill=load)
        assert rules.paused(each, load, False) == paused
    assert rules.paused(waiting(service=301, click=301, review=301, backfill=301), 301, False) == EVERYTHING


def test_what_is_unfinished_in_all_is_bounded_too() -> None:
    rules = regulator()
    assert rules.paused(waiting(), 1001, False) == EVERYTHING
    assert rules.paused(waiting(), 500, False) == EVERYTHING
    assert rules.paused(waiting(), 499, False) == frozenset()


def test_output_that_cannot_leave_stops_all_reading_until_the_work_is_done() -> None:
    rules = regulator()
    assert rules.paused(waiting(), 700, True) == EVERYTHING
    assert rules.paused(waiting(), 700, False) == EVERYTHING
    assert rules.paused(waiting(), 10, False) == frozenset()


def test_the_shares_leave_room_for_what_is_on_its_way() -> None:
    assert sum(SHARES) + BACKFILL_SHARE <= 0.8


loads: Any = st.lists(
    st.tuples(
        st.fixed_dictionaries({lane: st.integers(0, 400) for lane in waiting()}), st.integers(0, 1600), st.booleans()
    ),
    max_size=30,
)


@given(loads)
def test_above_a_mark_it_is_paused_below_the_low_ones_it_flows(steps: Any) -> None:
    rules = regulator()
    shares = dict(zip(("click", "service", "review"), SHARES, strict=True)) | {BACKFILL: BACKFILL_SHARE}
    for each, unfinished, blocked in steps:
        paused = rules.paused(each, unfinished, blocked)
        if unfinished > 1000 or blocked:
            assert paused == EVERYTHING
        for topic, lane in TOPICS.items():
            if each[lane] > shares[lane] * 1000:
                assert topic in paused
            if each[lane] <= shares[lane] * 500 and unfinished < 500 and not blocked:
                assert topic not in paused
