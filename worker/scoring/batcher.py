"""Which events share the next encoder pass, and when it starts. Pure: time and data come in as arguments.

Earliest deadline first over lanes, filled to a token budget, and to bounds of units and of rows for the heads. While
deadlines can be met an event is overtaken only by those that arrive within the difference of two objectives. Where they
cannot, earliest deadline first would make all lanes equally late; so a lane that is late goes behind the one with the
tightest objective, and is not starved: a tenth of every batch is its own. Where more waits than fits, neighbours in
length are preferred, after what is urgent and after every partition's oldest event, since output is released in order.
A batch leaves no sooner than the device can use it, so that what is urgent may still join; why it left is recorded:
full, deadline, idle, drain or backfill.

Backfill is a lane without objective. It goes where nothing live waits, in batches half as large, and, so that it too
is never starved, in one batch of `BACKFILL_EVERY` where live traffic fills them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping
from typing import Final, Literal

import msgspec

from schemas.events import Event
from worker.config import Lane
from worker.kafka.ledger import Ticket
from worker.kafka.records import Partition, Record
from worker.scoring.cache import Slot
from worker.scoring.cost import CostModel
from worker.scoring.decode import BACKFILL

Reason = Literal["full", "deadline", "idle", "drain", "backfill"]

WINDOW_BATCHES: Final = 2
"""How many batches' worth of the most urgent units is looked at for neighbours in length."""
MIN_BUDGET_TOKENS: Final = 64
"""Neither the cost model nor a full device caps a batch below this: a misfit must not stop the flow."""
EARLY_SHARE: Final = 0.25
"""A full or due batch leaves this share of its own time before the device is free: an estimate that much too long
leaves no gap, and what is urgent waits for one batch and a quarter, not for two."""
LATE_SHARE: Final = 0.1
"""Of every batch, what a lane that is late gets before all others: of tokens, units or rows, whichever is out first."""
ROWS_PER_UNIT: Final = 4
"""A batch asks the heads for at most so many rows for each unit that it may hold. A list of candidates whose titles are
known brings no tokens but 257 rows, each with a state from Redis: by tokens and units alone a batch could be 65,000."""
BACKFILL_EVERY: Final = 10
"""Where live traffic leaves no gap, one batch of so many is backfill's."""
MIN_BATCH_UNITS: Final = 8
MEAN_WEIGHT: Final = 0.01
RECOVER_BATCHES: Final = 50
"""After so many large batches without running out of memory the token budget grows again, by a quarter."""


_NOTHING: Final = float("inf")


class Unit(msgspec.Struct, eq=False, gc=False):
    """One event waiting. ``tokens`` are those that it alone brings to the encoder: texts known elsewhere cost none.

    texts  review, service: [text]; click: [title, query, candidates' titles...], None where there is no text
    """

    lane: Lane
    event: Event
    record: Record
    ticket: Ticket  # type: ignore[type-arg]
    texts: list[Slot | None]
    tokens: int
    arrived_s: float

    @property
    def partition(self) -> Partition:
        return self.ticket.partition

    @property
    def rows(self) -> int:
        """Rows that the heads are asked for: one, and one more for each candidate."""
        return len(self.texts) - 1 or 1

    def due(self) -> int:
        """Tokens to encode if it went now: a text that it shares may have gone with another unit, or not yet."""
        return sum([slot.due for slot in self.texts if slot is not None])

    def charge(self) -> int:
        """The same, once: from now on a batch carries these texts."""
        tokens = 0
        for slot in self.texts:
            if slot is not None and slot.due:
                tokens += slot.due
                slot.due = 0
        return tokens


class Batch(msgspec.Struct, eq=False):
    """Units of one encoder pass, and why they left the queue. ``tokens``: those to encode, each text once."""

    units: list[Unit]
    tokens: int
    reason: Reason


class Batcher:
    """Units by lane. ``objectives_s``: from arrival to the end of the encoder pass, commit time already taken off."""

    def __init__(
        self, objectives_s: Mapping[Lane, float], max_tokens: int, max_units: int, cost: CostModel | None = None
    ) -> None:
        self._objectives = dict(objectives_s)
        self._max_tokens = self._ceiling = max_tokens
        self._max_units, self._max_rows = max_units, ROWS_PER_UNIT * max_units
        self._ranked: list[Lane] = sorted(objectives_s, key=lambda lane: objectives_s[lane])
        self._tightest_s = objectives_s[self._ranked[0]]
        self._lanes: dict[str, deque[Unit]] = {lane: deque() for lane in (*objectives_s, BACKFILL)}
        self._tokens = dict.fromkeys(self._lanes, 0)
        self._loads = dict.fromkeys(self._lanes, 0)
        self._passed_over = self._fitted = 0
        self._mean_tokens = 0.0
        self.cost = cost or CostModel()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    @property
    def tokens(self) -> Mapping[str, int]:
        """Tokens waiting, by lane."""
        return self._tokens

    @property
    def loads(self) -> Mapping[str, int]:
        """What waits, by lane, as it counts in the bound of unfinished work."""
        return self._loads

    @property
    def live(self) -> int:
        """Units waiting that are not backfill."""
        return len(self) - len(self._lanes[BACKFILL])

    @property
    def budget_tokens(self) -> int:
        """Tokens that the next batch may hold: its time stays within half of the tightest objective.

        Where that leaves less than the fixed cost of a batch is worth, objectives cannot be met by smaller batches;
        most of the time would be overhead, and the queue would only grow.
        """
        within = max(self.cost.tokens_within(self._tightest_s / 2), self.cost.tokens_worth, MIN_BUDGET_TOKENS)
        return int(min(self._ceiling, within))

    @property
    def batch_units(self) -> int:
        """How many events like the latest make a batch."""
        return int(min(max(self.budget_tokens / max(self._mean_tokens, 1.0), MIN_BATCH_UNITS), self._max_units))

    def add(self, unit: Unit) -> None:
        """Put a unit behind its lane's others."""
        self._lanes[unit.ticket.lane].append(unit)
        self._mean_tokens += MEAN_WEIGHT * (unit.tokens - self._mean_tokens)
        self._count(unit, 1)

    def take(self, now_s: float, free_at_s: float, lead_s: float = 0.0, drain: bool = False) -> Batch | None:
        """The next batch, or None when waiting still pays.

        ``free_at_s`` is when the device can start it (now or earlier when idle), ``lead_s`` how long before that a
        batch must leave to be ready in time.
        """
        budget, live, waiting = self.budget_tokens, self.live, len(self._lanes[BACKFILL])
        if waiting and (not live or self._passed_over >= BACKFILL_EVERY - 1):
            # Never ahead of the device: something live may come.
            return self._backfill(max(budget // 2, MIN_BUDGET_TOKENS)) if drain or free_at_s - lead_s <= now_s else None
        reason = self._reason(now_s, free_at_s, lead_s, budget, drain) if live else None
        if reason is None:
            return None
        self._passed_over = self._passed_over + 1 if waiting else 0
        units, tokens = self._select(max(now_s, free_at_s), budget)
        return Batch(units, tokens, reason)

    def learn(self, tokens: int, seconds: float, out_of_memory: bool) -> None:
        """What became of a batch. One that did not fit halves the budget; those that fit win it back in time."""
        if out_of_memory:
            self._ceiling = max(min(self._ceiling, tokens) // 2, MIN_BUDGET_TOKENS)
            self._fitted = 0
            return
        self.cost.observe(tokens, seconds)
        # Small batches prove nothing.
        self._fitted += self._ceiling < self._max_tokens and 2 * tokens >= min(self._ceiling, self.budget_tokens)
        if self._fitted >= RECOVER_BATCHES:
            self._ceiling = min(self._ceiling + self._ceiling // 4 + 1, self._max_tokens)
            self._fitted = 0

    def drop(self, partitions: Container[Partition]) -> list[Unit]:
        """Take out the units of partitions that moved on."""
        dropped: list[Unit] = []
        for lane, units in self._lanes.items():
            moved = [unit for unit in units if unit.partition in partitions]
            if moved:
                self._lanes[lane] = deque(unit for unit in units if unit.partition not in partitions)
                for unit in moved:
                    self._count(unit, -1)
                dropped += moved
        return dropped

    def _count(self, unit: Unit, sign: int) -> None:
        ticket = unit.ticket
        self._tokens[ticket.lane] += sign * unit.tokens
        self._loads[ticket.lane] += sign * ticket.load

    def _reason(self, now_s: float, free_at_s: float, lead_s: float, budget: int, drain: bool) -> Reason | None:
        waiting, tokens = self.live, sum(self._tokens[lane] for lane in self._objectives)
        early_s = max(lead_s, EARLY_SHARE * self.cost.seconds(min(tokens, budget)))
        if (waiting >= self._max_units or tokens >= budget) and (drain or free_at_s - early_s <= now_s):
            return "full"
        if drain:
            return "drain"
        latest_start = min(self._deadline(self._lanes[lane][0]) for lane in self._objectives if self._lanes[lane])
        due = latest_start - self.cost.seconds(min(tokens, budget)) - lead_s <= now_s
        if due and now_s < free_at_s <= now_s + early_s:
            return "deadline"
        # Waiting pays as long as the device could not start anyway: the batch grows at no cost.
        return "idle" if free_at_s - lead_s <= now_s else None

    def _deadline(self, unit: Unit) -> float:
        return unit.arrived_s + self._objectives[unit.lane]

    def _backfill(self, budget: int) -> Batch:
        self._passed_over = 0
        waiting, taken = self._lanes[BACKFILL], list[Unit]()
        tokens = rows = 0
        while waiting and len(taken) < self._max_units:
            unit = waiting[0]
            if taken and (tokens + unit.due() > budget or rows + unit.rows > self._max_rows):
                break
            taken.append(self._pop(BACKFILL))
            tokens += unit.charge()
            rows += unit.rows
        return Batch(taken, tokens, "backfill")

    def _select(self, start_s: float, budget: int) -> tuple[list[Unit], int]:
        window, late = self._window(start_s, budget)
        tokens, rows = sum([unit.due() for unit in window]), sum([unit.rows for unit in window])
        fits = tokens <= budget and rows <= self._max_rows
        if fits and len(window) <= self._max_units:
            return window, sum([unit.charge() for unit in window])
        if late or fits:
            return self._fill(window, window, [], budget)
        urgent_until = start_s + 2 * self.cost.seconds(budget)
        first: list[Unit] = []
        rest: list[Unit] = []
        seen: set[Partition] = set()
        for unit in window:
            oldest = unit.partition not in seen
            seen.add(unit.partition)
            (first if oldest or self._deadline(unit) <= urgent_until else rest).append(unit)
        middle = sorted(unit.tokens for unit in first)[len(first) // 2]
        rest.sort(key=lambda unit: abs(unit.tokens - middle))  # stable: equals stay earliest deadline first
        return self._fill(window, first, rest, budget)

    def _window(self, start_s: float, budget: int) -> tuple[list[Unit], bool]:
        """Take the most urgent units out of the lanes, in order of urgency; and whether any lane is late."""
        late_before = start_s + (1 + EARLY_SHARE) * self.cost.seconds(budget)
        window = self._overdue(late_before, budget)
        late, tokens = bool(window), sum([unit.tokens for unit in window])
        tokens_max, units_max = WINDOW_BATCHES * budget, WINDOW_BATCHES * self._max_units
        heads = [(self._urgency(lane, start_s, late_before), n) for n, lane in enumerate(self._ranked)]
        # Beyond one batch only where its tokens do not fit: else there is nothing to choose.
        while len(window) < (units_max if tokens > budget else self._max_units) and tokens < tokens_max:
            urgency, n = min(heads)
            if urgency == _NOTHING:
                break
            window.append(self._pop(self._ranked[n]))
            tokens += window[-1].tokens
            heads[n] = (self._urgency(self._ranked[n], start_s, late_before), n)
        return window, late

    def _overdue(self, late_before: float, budget: int) -> list[Unit]:
        """The part of a batch that is due to lanes that are late, and the first of the tightest lane: latest first, so
        that no lane's large events keep another's out for ever. Nothing where no lane is late."""
        due: list[Unit] = []
        for lane in self._ranked[1:]:
            waiting, used, units, tokens, rows = self._lanes[lane], 0.0, 0, 0, 0
            while waiting and used < LATE_SHARE and self._deadline(waiting[0]) < late_before:
                unit = self._pop(lane)
                due.append(unit)
                units += 1
                tokens += unit.due()
                rows += unit.rows
                used = max(tokens / budget, units / self._max_units, rows / self._max_rows)
        if due and self._lanes[self._ranked[0]]:
            due.append(self._pop(self._ranked[0]))
        return sorted(due, key=self._deadline)

    def _urgency(self, lane: Lane, start_s: float, late_before: float) -> float:
        """The deadline of what a lane has next. Once late, as if it were fresh in the tightest lane."""
        if not self._lanes[lane]:
            return _NOTHING
        deadline = self._deadline(self._lanes[lane][0])
        return deadline if deadline >= late_before or lane == self._ranked[0] else start_s + self._tightest_s

    def _pop(self, lane: str) -> Unit:
        unit = self._lanes[lane].popleft()
        self._count(unit, -1)
        return unit

    def _fill(self, window: list[Unit], first: list[Unit], rest: list[Unit], budget: int) -> tuple[list[Unit], int]:
        """As many as fit, in order of preference; the others go back to the front of their lanes, in order."""
        taken: list[Unit] = []
        tokens = rows = 0
        for units in (first, rest):
            for unit in units:
                if len(taken) == self._max_units:
                    break
                # A single unit larger than the budget, or than all rows, goes alone.
                if not taken or (rows + unit.rows <= self._max_rows and tokens + unit.due() <= budget):
                    tokens += unit.charge()
                    rows += unit.rows
                    taken.append(unit)
            if len(taken) < len(first):  # what is left of the budget is not worth making the left-out wait longer
                break
        if len(taken) < len(window):
            chosen = set(map(id, taken))
            for unit in reversed(window):
                if id(unit) not in chosen:
                    self._lanes[unit.lane].appendleft(unit)
                    self._count(unit, 1)
        return taken, tokens
