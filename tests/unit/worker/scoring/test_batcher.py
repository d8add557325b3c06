"""Batches keep to their budget, deadlines are honoured when that is feasible, nobody starves, backfill yields."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from schemas.events import ServiceEvent
from worker.config import Lane
from worker.kafka.ledger import Ticket
from worker.kafka.records import Record
from worker.scoring.batcher import (
    BACKFILL_EVERY,
    MIN_BUDGET_TOKENS,
    RECOVER_BATCHES,
    ROWS_PER_UNIT,
    Batch,
    Batcher,
    Unit,
)
from worker.scoring.cache import Slot
from worker.scoring.cost import CostModel
from worker.scoring.decode import BACKFILL

OBJECTIVES: dict[Lane, float] = {"service": 0.25, "click": 0.15, "review": 1.0}
EVENT = ServiceEvent(event_id="e", event_time_ms=0, text="t")
LEAD_S = 0.005


def unit(
    lane: Lane, tokens: int, arrived_s: float = 0.0, partition: int = 0, offset: int = 0, where: str | None = None
) -> Unit:
    """A unit with one text of its own. ``where``: the lane that it waits in, if that is not its kind."""
    topic = f"{where or ''}{lane}"
    record = Record(topic, partition, offset, 0, None, b"")
    ticket: Ticket[None] = Ticket((topic, partition), 1, offset, where or lane, arrived_s, load=1 + tokens)
    return Unit(lane, EVENT, record, ticket, [Slot("", due=tokens)], tokens, arrived_s)


def backfill(tokens: int, arrived_s: float = 0.0, offset: int = 0) -> Unit:
    return unit("review", tokens, arrived_s, 0, offset, BACKFILL)


def batcher(max_tokens: int = 1000, max_units: int = 50, cost: CostModel | None = None) -> Batcher:
    return Batcher(OBJECTIVES, max_tokens, max_units, cost or CostModel(0.001, 1e-6))


def fill(queue: Batcher, units: Sequence[Unit]) -> None:
    for one in units:
        queue.add(one)


def taken(batch: Batch | None) -> Batch:
    assert batch is not None
    return batch


def deadline(one: Unit) -> float:
    return one.arrived_s + OBJECTIVES[one.lane]


def test_an_idle_device_gets_what_there_is() -> None:
    queue = batcher()
    assert queue.take(0.0, 0.0) is None
    queue.add(unit("review", 5))
    batch = taken(queue.take(0.0, 0.0))
    assert (batch.reason, len(batch.units), batch.tokens, len(queue)) == ("idle", 1, 5, 0)


def test_waiting_pays_while_the_device_is_busy() -> None:
    queue = batcher()
    queue.add(unit("review", 5))
    assert queue.take(0.0, free_at_s=0.5) is None
    assert taken(queue.take(0.496, free_at_s=0.5, lead_s=LEAD_S)).reason == "idle"


def test_what_is_due_leaves_a_little_before_the_device_is_free() -> None:
    queue = batcher(cost=CostModel(0.04, 0.0))
    queue.add(unit("click", 5))
    assert queue.take(0.13, free_at_s=9.0) is None, "the device cannot use it, and what is more urgent may come"
    assert taken(queue.take(0.13, free_at_s=0.14)).reason == "deadline"


@pytest.mark.parametrize("units", [[unit("click", 600), unit("click", 600)], [unit("click", 1)] * 50])
def test_full_by_tokens_or_units_leaves_a_quarter_of_its_time_early(units: list[Unit]) -> None:
    queue = batcher(cost=CostModel(0.04, 0.0))
    fill(queue, units)
    assert queue.take(0.0, free_at_s=0.011) is None
    assert taken(queue.take(0.0, free_at_s=0.009)).reason == "full"


def test_drain_takes_all_without_waiting() -> None:
    queue = batcher(max_units=2)
    fill(queue, [unit("review", 5), unit("click", 5), unit("click", 5), backfill(3)])
    reasons = [taken(queue.take(0.0, free_at_s=9.0, drain=True)).reason for _ in range(3)]
    assert (reasons, len(queue)) == (["full", "drain", "backfill"], 0)


def test_earliest_deadline_first_over_lanes() -> None:
    queue = batcher(max_units=2)
    fill(queue, [unit("review", 1, 0.0), unit("service", 1, 0.0), unit("click", 1, 0.05), unit("click", 1, 0.15)])
    first, second = taken(queue.take(0.15, 0.0)), taken(queue.take(0.15, 0.0))
    assert [one.lane for one in first.units] == ["click", "service"]
    assert [one.arrived_s for one in second.units] == [0.15, 0.0]  # the review's deadline is the last


def test_a_late_lane_gets_its_tenth_and_then_stands_behind_the_tightest() -> None:
    queue = batcher(max_tokens=1000)
    fill(queue, [unit("review", 40, 0.0, 0, n) for n in range(30)])
    fill(queue, [unit("click", 40, 5.0, 0, n) for n in range(30)])
    batch = taken(queue.take(5.0, 5.0))
    lanes = [one.lane for one in batch.units]
    assert (lanes.count("review"), lanes.count("click")) == (3, 22)
    assert lanes[0] == "review", "what is latest of all is never left behind"


def test_a_single_unit_larger_than_the_budget_goes_alone() -> None:
    queue = batcher(max_tokens=100)
    fill(queue, [unit("click", 500), unit("click", 10, partition=1)])
    assert [one.tokens for one in taken(queue.take(0.0, 0.0)).units] == [500]


@pytest.mark.parametrize("where", [None, BACKFILL])
def test_lists_of_candidates_whose_titles_are_known_are_bounded_by_rows(where: str | None) -> None:
    queue = batcher(max_units=256)
    for offset in range(10):
        ranked = unit("click", 0, 0.0, 0, offset, where)
        ranked.texts = [None, None, *([Slot("")] * 256)]
        queue.add(ranked)
    batches = []
    while len(queue):
        batches.append([one.ticket.offset for one in taken(queue.take(0.0, 0.0)).units])
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]], "257 rows each, of 1,024"
    narrow = batcher(max_units=2)
    fill(narrow, [ranked, unit("click", 1, where=where)])
    assert taken(narrow.take(0.0, 0.0)).units == [ranked], "of more rows than a batch may have, it goes alone"


def test_neighbours_in_length_are_preferred_after_every_partitions_oldest() -> None:
    queue = batcher(max_tokens=100, max_units=100, cost=CostModel(0.0, 0.0))
    long_oldest = unit("review", 40, 0.0, partition=7)
    queue.add(long_oldest)
    for offset in range(20):
        queue.add(unit("review", 40 if offset % 2 else 4, 0.0, partition=7, offset=1 + offset))
    batch = taken(queue.take(0.0, 0.0))
    assert batch.units[0] is long_oldest
    assert [one.tokens for one in batch.units[:2]] == [40, 40]


def test_a_text_that_two_events_share_counts_where_it_goes_first() -> None:
    """The click brings nothing by its own count, but goes before the review that does."""
    queue = batcher(max_tokens=100)
    review, click, other = unit("review", 80), unit("click", 0), unit("click", 30, partition=1)
    click.texts = [*review.texts]
    fill(queue, [review, click, other])
    first, second = taken(queue.take(0.0, 0.0)), taken(queue.take(0.0, 0.0))
    assert ([one.lane for one in first.units], first.tokens) == (["click", "review"], 80)
    assert ([one.lane for one in second.units], second.tokens) == (["click"], 30)


def test_units_of_moved_partitions_leave() -> None:
    queue = batcher()
    fill(queue, [unit("click", 3, partition=0), unit("click", 5, partition=1), unit("review", 7, partition=1)])
    dropped = queue.drop({("click", 1), ("review", 1)})
    assert sorted(one.tokens for one in dropped) == [5, 7]
    assert (len(queue), dict(queue.tokens)) == (1, {"service": 0, "click": 3, "review": 0, BACKFILL: 0})
    assert sum(queue.loads.values()) == 4


def test_a_slow_device_gets_small_batches() -> None:
    queue = batcher(max_tokens=10_000, cost=CostModel(0.0, 1e-3))
    assert queue.budget_tokens == pytest.approx(75, abs=1)  # half of 150 ms at 1 ms a token
    assert batcher(cost=CostModel(0.0, 1.0)).budget_tokens == MIN_BUDGET_TOKENS


def test_objectives_out_of_reach_do_not_make_batches_of_nothing_but_overhead() -> None:
    queue = batcher(max_tokens=10_000, cost=CostModel(0.4, 1e-3))  # a batch alone takes longer than half of 150 ms
    assert queue.budget_tokens == 400


def test_a_batch_that_did_not_fit_halves_the_budget_and_full_ones_win_it_back() -> None:
    queue = batcher(max_tokens=4000, cost=CostModel(0.0, 0.0))
    queue.learn(4000, 0.1, out_of_memory=True)
    assert queue.budget_tokens == 2000
    queue.learn(1500, 0.1, out_of_memory=True)
    assert queue.budget_tokens == 750
    for _ in range(10 * RECOVER_BATCHES):
        queue.learn(10, 0.0, out_of_memory=False)
    assert queue.budget_tokens == 750, "small batches prove nothing"
    batches = 0
    while queue.budget_tokens < 4000:
        queue.learn(queue.budget_tokens, 0.0, out_of_memory=False)
        batches += 1
    assert batches <= 10 * RECOVER_BATCHES
    for _ in range(100):
        queue.learn(4000, 0.0, out_of_memory=True)
    assert queue.budget_tokens == MIN_BUDGET_TOKENS


def test_backfill_waits_for_all_that_is_live_and_goes_in_half_batches_of_its_own() -> None:
    queue = batcher(max_tokens=200)
    fill(queue, [backfill(40, offset=n) for n in range(5)] + [unit("review", 10, 5.0)])
    first, second = taken(queue.take(5.0, 5.0)), taken(queue.take(5.0, 5.0))
    assert ([one.lane for one in first.units], first.reason) == (["review"], "idle")
    assert ([one.ticket.offset for one in second.units], second.reason, second.tokens) == ([0, 1], "backfill", 80)
    assert queue.take(5.0, free_at_s=5.1) is None, "never ahead of the device: something live may come"


def test_where_live_traffic_leaves_no_gap_one_batch_in_ten_is_backfills() -> None:
    queue = batcher(max_units=10)
    fill(queue, [backfill(1, offset=n) for n in range(200)])
    reasons = []
    for step in range(40):
        fill(queue, [unit("click", 1, step * 0.01, offset=step * 10 + n) for n in range(10)])
        reasons.append(taken(queue.take(step * 0.01, step * 0.01)).reason)
    assert [n for n, reason in enumerate(reasons) if reason == "backfill"] == [9, 19, 29, 39]
    assert BACKFILL_EVERY == 10


kinds = st.sampled_from([*OBJECTIVES, BACKFILL])
arrivals = st.lists(
    st.tuples(kinds, st.integers(0, 300), st.integers(0, 3), st.floats(0, 0.01), st.booleans(), st.integers(0, 60)),
    min_size=1,
    max_size=120,
)


@settings(max_examples=200)
@given(arrivals, st.integers(80, 400), st.integers(1, 40))
def test_nothing_is_lost_nothing_exceeds_the_budget_and_the_most_urgent_and_oldest_go_first(
    plan: list[tuple[str, int, int, float, bool, int]], max_tokens: int, max_units: int
) -> None:
    queue = batcher(max_tokens, max_units)
    now, waiting = 0.0, list[Unit]()
    for offset, (kind, tokens, partition, pause, shares, candidates) in enumerate(plan):
        now += pause
        one = backfill(tokens, now, offset) if kind == BACKFILL else unit(kind, tokens, now, partition, offset)  # type: ignore[arg-type]
        if shares and waiting:
            one.texts, one.tokens = [waiting[-1].texts[0], waiting[0].texts[0]], 0
        one.texts += [Slot("")] * candidates
        waiting.append(one)
        queue.add(one)
    while len(queue):
        budget = queue.budget_tokens
        dues = {id(slot): slot.due for one in waiting for slot in one.texts if slot is not None}
        batch = taken(queue.take(now, now))
        # What reaches the encoder is what is in the batch's texts, each once, whoever brought them.
        carried = {id(slot): dues[id(slot)] for one in batch.units for slot in one.texts if slot is not None}
        assert batch.tokens == sum(carried.values())
        assert len(batch.units) <= max_units
        assert sum(one.rows for one in batch.units) <= ROWS_PER_UNIT * max_units or len(batch.units) == 1
        assert batch.tokens <= budget or len(batch.units) == 1
        live = [one for one in waiting if one.ticket.lane != BACKFILL]
        if batch.reason == "backfill":
            assert all(one.ticket.lane == BACKFILL for one in batch.units)
        else:
            assert all(one.ticket.lane != BACKFILL for one in batch.units)
            # The most urgent of all is never left behind.
            assert min(map(deadline, live)) in set(map(deadline, batch.units))
            chosen = set(map(id, batch.units))
            oldest = {one.partition: one for one in reversed(live)}
            urgent_until = now + 2 * queue.cost.seconds(budget)
            firsts = {id(one) for one in live if oldest[one.partition] is one or deadline(one) <= urgent_until}
            if any(deadline(one) < now + 1.25 * queue.cost.seconds(budget) for one in live if one.lane != "click"):
                firsts = set(map(id, live))  # with a lane late there is no preference for length
            left_out = [one for one in oldest.values() if id(one) not in chosen and id(one) in firsts]
            preferred = [one for one in batch.units if id(one) not in firsts]
            if left_out and preferred:
                # Only those beyond the window that was looked at may wait while the length is chosen.
                last = max(map(deadline, preferred))
                assert all(deadline(one) >= last for one in left_out)
        for one in batch.units:
            waiting.remove(one)
        assert sum(queue.tokens.values()) == sum(one.tokens for one in waiting)
        assert sum(queue.loads.values()) == sum(one.ticket.load for one in waiting)
    assert waiting == []


def run_device(queue: Batcher, cost: CostModel, units: list[Unit], until_s: float = 60.0) -> dict[int, float]:
    """Two places on a device that takes exactly what ``cost`` says; when each unit was done, by id."""
    done: dict[int, float] = {}
    coming, flying = sorted(units, key=lambda one: one.arrived_s), list[float]()
    now, free_at, arrived = 0.0, 0.0, 0
    while (arrived < len(coming) or len(queue) or flying) and now < until_s:
        flying = [end for end in flying if end > now]
        while arrived < len(coming) and coming[arrived].arrived_s <= now:
            queue.add(coming[arrived])
            arrived += 1
        while len(flying) < 2 and (batch := queue.take(now, free_at, LEAD_S)) is not None:
            free_at = max(free_at, now) + cost.seconds(batch.tokens)
            queue.learn(batch.tokens, cost.seconds(batch.tokens), out_of_memory=False)
            flying.append(free_at)
            done |= dict.fromkeys(map(id, batch.units), free_at)
        now += 0.001
    return done


def late(units: list[Unit], done: dict[int, float]) -> list[Unit]:
    return [one for one in units if done[id(one)] > deadline(one)]


def test_in_a_burst_the_tight_objectives_are_met_first() -> None:
    """0.5 s of work arrives at once, reviews first; the clicks in it take 0.1 s and have 0.15 s."""
    cost = CostModel(0.001, 2e-5)
    units = [unit("review", 50, 0.0, n % 4, n) for n in range(400)]
    units += [unit("click", 50, 0.0, n % 4, n) for n in range(80)]
    assert late(units, run_device(batcher(2000, 64, cost), cost, units)) == []


def stream(rng: random.Random, cost: CostModel, utilisation: float, count: int = 400) -> list[Unit]:
    """Arrivals such that the device, at full batches, needs only this share of the time."""
    units, now = list[Unit](), 0.0
    for offset in range(count):
        tokens = rng.randrange(1, 100)
        now += cost.b_s * tokens / utilisation * rng.uniform(0.5, 1.5)
        units.append(unit(rng.choice(list(OBJECTIVES)), tokens, now, rng.randrange(4), offset))
    return units


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 0.6), st.booleans())
def test_deadlines_are_honoured_when_the_load_is_feasible_backfill_or_not(
    seed: int, utilisation: float, backfilled: bool
) -> None:
    rng = random.Random(seed)
    cost = CostModel(0.002, 2e-5)
    units = stream(rng, cost, utilisation)
    # More than the device could do in all the time that it has.
    old = [backfill(rng.randrange(1, 100), 0.0, n) for n in range(2000 * backfilled)]
    done = run_device(batcher(4000, 256, cost), cost, [*units, *old], until_s=units[-1].arrived_s + 1.5)
    assert late(units, done) == []


def test_backfill_gets_the_time_that_live_traffic_leaves() -> None:
    cost = CostModel(0.002, 2e-5)
    units = stream(random.Random(1), cost, 0.5, 1000)
    old = [backfill(50, 0.0, n) for n in range(4000)]
    done = run_device(batcher(4000, 256, cost), cost, [*units, *old], until_s=units[-1].arrived_s)
    share = sum(id(one) in done for one in old) * 50 * cost.b_s / units[-1].arrived_s
    assert share > 0.25  # half is free; the rest of it is what starting a batch costs


def flood(rng: random.Random, cost: CostModel, texts: str, end: float) -> list[Unit]:
    """1.5 times the device's time in clicks, as much again in the other two; four partitions.

    texts    ``new``, ``known`` (no tokens at all), ``shared`` (half of them are another unit's) or ``oversized`` (one
             in ten of the services and reviews is larger than a batch of 2,000 tokens)
    """
    units, now = list[Unit](), 0.0
    while now < end:
        lane: Lane = rng.choice(["click", "click", "service", "review"])
        tokens = 0 if texts == "known" else rng.randrange(1, 100)
        if texts == "oversized" and lane != "click" and rng.random() < 0.1:
            tokens = 3000
        units.append(unit(lane, tokens, now, rng.randrange(4), len(units)))
        if texts == "shared" and rng.random() < 0.5:
            units[-1].texts, units[-1].tokens = rng.choice(units[-50:]).texts, 0
        now += (tokens * cost.b_s + cost.a_s / 16) / 3
    return units


@settings(max_examples=40, phases=[Phase.generate])
@given(st.integers(0, 10_000), st.sampled_from(["new", "known", "shared"]), st.sampled_from([0.1, 1.0, 10.0]))
def test_no_lane_starves_where_clicks_alone_are_more_than_can_be_done(seed: int, texts: str, misfit: float) -> None:
    """Of the units that are scored once all lanes are late, whatever the batcher believes of the device at first."""
    cost = CostModel(0.02, 0.0) if texts == "known" else CostModel(0.001, 1e-4)
    queue = batcher(8192, 16 if texts == "known" else 64, CostModel(misfit * cost.a_s, misfit * cost.b_s))
    units = flood(random.Random(seed), cost, texts, end=5.0)
    done = run_device(queue, cost, units, until_s=5.0)
    scored = [one.lane for one in units if 2.0 < done.get(id(one), 5.0) < 5.0]
    for lane, least, most in (("click", 0.55, 0.85), ("service", 0.08, 0.25), ("review", 0.08, 0.25)):
        assert least < scored.count(lane) / len(scored) < most, lane


@settings(max_examples=20, phases=[Phase.generate])
@given(st.integers(0, 10_000))
def test_texts_larger_than_a_batch_bring_no_lane_to_a_stand(seed: int) -> None:
    cost = CostModel(0.001, 1e-4)
    units = flood(random.Random(seed), cost, "oversized", end=9.0)
    done = run_device(batcher(2000, 64, cost), cost, units, until_s=9.0)
    for second in (1, 5):  # each of those texts takes 0.3 s, and many may be due before all else
        scored = {one.lane for one in units if second < done.get(id(one), 0.0) <= second + 4}
        assert scored == set(OBJECTIVES), second
