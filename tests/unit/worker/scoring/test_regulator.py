"""Less important lanes are left in Kafka first, a flood of one does not keep another out, and nothing flutters."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.config import Lane
from worker.scoring.decode import BACKFILL
from worker.scoring.regulator import BACKFILL_SHARE, BATCHES_MIN, FREE_S, SHARES, Regulator, Spell, Spells

OBJECTIVES: dict[Lane, float] = {"service": 0.25, "click": 0.15, "review": 1.0}
TOPICS = {"s": "service", "c": "click", "r": "review", "r2": "review", "old": BACKFILL}
EVERYTHING = frozenset(TOPICS)


class Rules:
    """A regulator in front of a device so fast that only memory counts, unless told."""

    def __init__(self) -> None:
        self.regulator = Regulator(TOPICS, OBJECTIVES, 1000, 500)

    def paused(
        self,
        unfinished: int = 0,
        blocked: bool = False,
        tokens: dict[str, int] | None = None,
        batch: tuple[int, float] = (10**6, 0.0),
        **loads: int,
    ) -> frozenset[str]:
        nothing = {"service": 0, "click": 0, "review": 0, BACKFILL: 0}
        return self.regulator.paused(nothing | loads, nothing | (tokens or {}), unfinished, blocked, *batch)


def test_a_lane_that_holds_its_share_stays_in_kafka_and_comes_back_well_below() -> None:
    rules = Rules()
    assert rules.paused(review=150) == frozenset()
    assert rules.paused(review=151) == {"r", "r2"}
    assert rules.paused(review=80) == {"r", "r2"}, "between the marks it stays as it was"
    assert rules.paused(review=75) == frozenset()


def test_the_same_load_pauses_the_less_important_first() -> None:
    rules = Rules()
    for load, paused in ((101, {"old"}), (151, {"old", "r", "r2"}), (201, {"old", "r", "r2", "s"})):
        assert rules.paused(service=load, click=load, review=load, backfill=load) == paused
    assert rules.paused(service=301, click=301, review=301, backfill=301) == EVERYTHING


def test_a_lane_holds_no_more_than_a_slow_device_does_in_a_third_of_its_objective() -> None:
    rules = Rules()
    batch = (100, 0.1)  # 1,000 tokens a second: 333 in a third of the reviews' second
    assert rules.paused(tokens={"review": 333}, batch=batch) == frozenset()
    assert rules.paused(tokens={"review": 334}, batch=batch) == {"r", "r2"}
    assert rules.paused(tokens={"review": 166}, batch=batch) == frozenset()


def test_a_whole_batch_may_always_wait() -> None:
    most = int(100 * BATCHES_MIN)
    rules = Rules()
    assert rules.paused(tokens={"click": most, "backfill": most}, batch=(100, 9.0)) == frozenset()
    assert rules.paused(tokens={"click": most + 1, "backfill": most + 1}, batch=(100, 9.0)) == {"c", "old"}


def test_what_is_unfinished_in_all_is_bounded_too() -> None:
    rules = Rules()
    assert rules.paused(1001) == EVERYTHING
    assert rules.paused(500) == EVERYTHING
    assert rules.paused(499) == frozenset()


def test_output_that_cannot_leave_stops_all_reading_until_the_work_is_done() -> None:
    rules = Rules()
    assert rules.paused(700, blocked=True) == EVERYTHING
    assert rules.paused(700) == EVERYTHING
    assert rules.paused(10) == frozenset()


def test_the_shares_leave_room_for_what_is_on_its_way() -> None:
    assert sum(SHARES) + BACKFILL_SHARE <= 0.8


lanes: Any = st.fixed_dictionaries({lane: st.integers(0, 400) for lane in (*OBJECTIVES, BACKFILL)})
loads: Any = st.lists(st.tuples(lanes, st.integers(0, 1600), st.booleans()), max_size=30)


@given(loads)
def test_above_a_mark_it_is_paused_below_the_low_ones_it_flows(steps: Any) -> None:
    rules = Rules()
    shares = dict(zip(("click", "service", "review"), SHARES, strict=True)) | {BACKFILL: BACKFILL_SHARE}
    for each, unfinished, blocked in steps:
        paused = rules.paused(unfinished, blocked, **each)
        if unfinished > 1000 or blocked:
            assert paused == EVERYTHING
        for topic, lane in TOPICS.items():
            if each[lane] > shares[lane] * 1000:
                assert topic in paused
            if each[lane] <= shares[lane] * 500 and unfinished < 500 and not blocked:
                assert topic not in paused


def test_a_topic_that_pauses_again_and_again_is_told_once_and_its_end_once() -> None:
    spells, told = Spells(), []
    for turn in range(1000):
        paused = frozenset({"r", "c"} if turn == 0 else {"r"} if turn % 2 == 0 else ())
        told.append(spells.look(paused, turn / 10))
    assert told[0] == (["c", "r"], [])
    over = [(turn / 10, spell) for turn, (began, over) in enumerate(told) for spell in over]
    assert over == [(FREE_S, Spell("c", 0.0, 0.0, 1))], "the other was never free for so long"
    assert not any(began for began, _ in told[1:])
    assert spells.look(frozenset(), 99.8 + FREE_S) == ([], [Spell("r", 0.0, 99.8, 500)])
    assert spells.look(frozenset({"r"}), 999.0) == (["r"], []), "the next time it is told again"
