"""Batches keep to their budget, deadlines are honoured when that is feasible, nobody starves."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import ServiceEvent
from worker.batcher import MIN_BUDGET_TOKENS, Batcher, CostModel, Unit
from worker.decode import Lane
from worker.ledger import Ticket
from worker.source import Record

OBJECTIVES: dict[Lane, float] = {"service": 0.25, "click": 0.15, "review": 1.0}
EVENT = ServiceEvent(event_id="e", event_time_ms=0, text="t")


def unit(lane: Lane, tokens: int, arrived_s: float = 0.0, partition: int = 0, offset: int = 0) -> Unit:
    record = Record(lane, partition, offset, 0, None, b"")
    ticket: Ticket[None] = Ticket((lane, partition), 1, offset, lane, arrived_s)
    return Unit(lane, EVENT, record, ticket, [], tokens, arrived_s)


def batcher(max_tokens: int = 1000, max_units: int = 50, cost: CostModel | None = None) -> Batcher:
    return Batcher(OBJECTIVES, max_tokens, max_units, cost or CostModel(0.001, 1e-6))


def fill(queue: Batcher, units: Sequence[Unit]) -> None:
    for one in units:
        queue.add(one)


def test_an_idle_device_gets_what_there_is() -> None:
    queue = batcher()
    assert queue.take(0.0, 0.0) is None
    queue.add(unit("review", 5))
    batch = queue.take(0.0, 0.0)
    assert batch is not None
    assert (batch.reason, len(batch.units), batch.tokens, len(queue)) == ("idle", 1, 5, 0)


def test_waiting_pays_while_the_device_is_busy() -> None:
    queue = batcher()
    queue.add(unit("review", 5))
    assert queue.take(0.0, free_at_s=0.5) is None
    batch = queue.take(0.496, free_at_s=0.5, lead_s=0.005)
    assert batch is not None
    assert batch.reason == "idle"


def test_a_deadline_ends_the_wait() -> None:
    queue = batcher()
    queue.add(unit("click", 5))
    assert queue.take(0.1, free_at_s=9.0) is None
    batch = queue.take(0.149, free_at_s=9.0)
    assert batch is not None
    assert batch.reason == "deadline"


@pytest.mark.parametrize("units", [[unit("click", 600), unit("click", 600)], [unit("click", 1)] * 50])
def test_full_by_tokens_or_units(units: list[Unit]) -> None:
    queue = batcher()
    fill(queue, units)
    batch = queue.take(0.0, free_at_s=9.0)
    assert batch is not None
    assert batch.reason == "full"


def test_drain_takes_all_without_waiting() -> None:
    queue = batcher()
    queue.add(unit("review", 5))
    batch = queue.take(0.0, free_at_s=9.0, drain=True)
    assert batch is not None
    assert batch.reason == "drain"


def test_earliest_deadline_first_over_lanes() -> None:
    queue = batcher(max_units=2)
    fill(queue, [unit("review", 1, 0.0), unit("service", 1, 0.0), unit("click", 1, 0.05), unit("click", 1, 0.3)])
    first, second = queue.take(0.3, 0.0), queue.take(0.3, 0.0)
    assert first is not None
    assert second is not None
    assert [one.lane for one in first.units] == ["click", "service"]
    assert [one.arrived_s for one in second.units] == [0.3, 0.0]  # the review's deadline is the last


def test_a_single_unit_larger_than_the_budget_goes_alone() -> None:
    queue = batcher(max_tokens=100)
    fill(queue, [unit("click", 500), unit("click", 10, partition=1)])
    batch = queue.take(0.0, 0.0)
    assert batch is not None
    assert [one.tokens for one in batch.units] == [500]


def test_neighbours_in_length_are_preferred_after_every_partitions_oldest() -> None:
    queue = batcher(max_tokens=100, max_units=100, cost=CostModel(0.0, 0.0))
    long_oldest = unit("review", 40, 0.0, partition=7)
    queue.add(long_oldest)
    for offset in range(20):
        queue.add(unit("review", 40 if offset % 2 else 4, 0.0, partition=7, offset=1 + offset))
    batch = queue.take(0.0, 0.0)
    assert batch is not None
    assert batch.units[0] is long_oldest
    assert [one.tokens for one in batch.units[:2]] == [40, 40]


def test_units_of_moved_partitions_leave() -> None:
    queue = batcher()
    fill(queue, [unit("click", 3, partition=0), unit("click", 5, partition=1), unit("review", 7, partition=1)])
    dropped = queue.drop({("click", 1), ("review", 1)})
    assert sorted(one.tokens for one in dropped) == [5, 7]
    assert (len(queue), dict(queue.tokens)) == (1, {"service": 0, "click": 3, "review": 0})


def test_the_cost_model_finds_the_line() -> None:
    cost = CostModel()
    for tokens in random.Random(1).choices(range(10, 4000), k=400):
        cost.observe(tokens, 0.004 + 2e-5 * tokens)
    assert cost.a_s == pytest.approx(0.004, rel=0.02)
    assert cost.b_s == pytest.approx(2e-5, rel=0.02)
    assert cost.tokens_within(0.024) == pytest.approx(1000, rel=0.05)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 10)), max_size=50))
def test_the_cost_model_never_predicts_less_than_nothing(batches: list[tuple[int, float]]) -> None:
    cost = CostModel()
    for tokens, seconds in batches:
        cost.observe(tokens, seconds)
        assert cost.a_s >= 0
        assert cost.b_s >= 0
        assert cost.seconds(100) <= cost.seconds(200)


def test_a_slow_device_gets_small_batches() -> None:
    queue = batcher(max_tokens=10_000, cost=CostModel(0.0, 1e-3))
    assert queue.budget_tokens == pytest.approx(75, abs=1)  # half of 150 ms at 1 ms a token
    assert batcher(cost=CostModel(0.0, 1.0)).budget_tokens == MIN_BUDGET_TOKENS


lanes = st.sampled_from(list(OBJECTIVES))
arrivals = st.lists(
    st.tuples(lanes, st.integers(0, 300), st.integers(0, 3), st.floats(0, 0.01)), min_size=1, max_size=120
)


@settings(max_examples=150, deadline=None)
@given(arrivals, st.integers(80, 400), st.integers(1, 40))
def test_nothing_is_lost_nothing_exceeds_the_budget_and_oldest_go_first(
    plan: list[tuple[Lane, int, int, float]], max_tokens: int, max_units: int
) -> None:
    queue = batcher(max_tokens, max_units)
    now, waiting = 0.0, []
    for offset, (lane, tokens, partition, pause) in enumerate(plan):
        now += pause
        waiting.append(unit(lane, tokens, now, partition, offset))
        queue.add(waiting[-1])
    while len(queue):
        budget = queue.budget_tokens
        batch = queue.take(now, now)
        assert batch is not None
        assert len(batch.units) <= max_units
        assert batch.tokens <= budget or len(batch.units) == 1
        assert batch.tokens == sum(one.tokens for one in batch.units)
        # The most urgent of all is never left behind.
        assert min(waiting, key=lambda one: one.arrived_s + OBJECTIVES[one.lane]).arrived_s in {
            one.arrived_s for one in batch.units
        }
        for one in batch.units:
            waiting.remove(one)
        assert sum(queue.tokens.values()) == sum(one.tokens for one in waiting)
    assert waiting == []


def run_device(queue: Batcher, cost: CostModel, units: list[Unit]) -> list[tuple[Unit, float]]:
    """A device that takes exactly what ``cost`` says; when each unit was done."""
    done: list[tuple[Unit, float]] = []
    coming = sorted(units, key=lambda one: one.arrived_s)
    now = free_at = 0.0
    while coming or len(queue):
        batch = queue.take(now, free_at) if free_at <= now else None
        if batch is not None:
            free_at = now + cost.seconds(batch.tokens)
            done += [(one, free_at) for one in batch.units]
        now = min([one.arrived_s for one in coming[:1]] + ([free_at] if free_at > now else []), default=now)
        while coming and coming[0].arrived_s <= now:
            queue.add(coming.pop(0))
    return done


def late(done: list[tuple[Unit, float]]) -> list[Unit]:
    return [one for one, at in done if at > one.arrived_s + OBJECTIVES[one.lane]]


def test_in_a_burst_the_tight_objectives_are_met_first() -> None:
    """0.5 s of work arrives at once, reviews first; the clicks in it take 0.1 s and have 0.15 s."""
    cost = CostModel(0.001, 2e-5)
    reviews = [unit("review", 50, 0.0, n % 4, n) for n in range(400)]
    clicks = [unit("click", 50, 0.0, n % 4, n) for n in range(80)]
    assert late(run_device(batcher(2000, 64, cost), cost, reviews + clicks)) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.6))
def test_deadlines_are_honoured_when_the_load_is_feasible(seed: int, utilisation: float) -> None:
    rng = random.Random(seed)
    cost = CostModel(0.002, 2e-5)
    units, now = [], 0.0
    for offset in range(400):
        tokens = rng.randrange(1, 100)
        # Feasible: arrivals are spread so that the device, at full batches, needs only this share of the time.
        now += cost.b_s * tokens / utilisation * rng.uniform(0.5, 1.5)
        units.append(unit(rng.choice(list(OBJECTIVES)), tokens, now, rng.randrange(4), offset))
    done = run_device(batcher(4000, 256, cost), cost, units)
    assert len(done) == len(units)
    assert late(done) == []


def test_no_lane_starves_under_overload() -> None:
    """At twice what the device can do, a review is overtaken only by what arrives within the objectives' difference."""
    cost = CostModel(0.001, 1e-4)
    units = [
        unit("review" if n % 10 == 0 else "click", 40, n * 0.002, n % 4, n) for n in range(1500)
    ]  # 2 ms apart, 4 ms of work each
    done = run_device(batcher(2000, 64, cost), cost, units)
    finished = {id(one): at for one, at in done}
    reviews = [one for one in units if one.lane == "review"]
    for review in reviews:
        cut = review.arrived_s + OBJECTIVES["review"] - OBJECTIVES["click"]
        overtaken_by = [one for one in units if one.arrived_s > cut + 0.2 and finished[id(one)] < finished[id(review)]]
        assert overtaken_by == []
