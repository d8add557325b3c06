"""Which events share the next encoder pass, and when it starts. Pure: time and data come in as arguments.

Earliest deadline first over lanes, filled to a token budget. Starvation is bounded by construction: deadlines are
set at arrival, so an event is overtaken only by those that arrive within the difference of two objectives. Where
more waits than fits, neighbours in length are preferred, after what is urgent and after every partition's oldest
event, since output is released in order. Why a batch left is recorded: full, deadline, idle or drain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping
from typing import Final, Literal

import msgspec

from schemas.events import Event
from worker.cache import Slot
from worker.decode import Lane
from worker.ledger import Ticket
from worker.source import Partition, Record

Reason = Literal["full", "deadline", "idle", "drain"]

WINDOW_BATCHES: Final = 2
"""How many batches' worth of the most urgent units is looked at for neighbours in length."""
MIN_BUDGET_TOKENS: Final = 64
"""The cost model never caps a batch below this: a misfit of the model must not stop the flow."""


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


class Batch(msgspec.Struct, eq=False):
    """Units of one encoder pass, and why they left the queue."""

    units: list[Unit]
    tokens: int
    reason: Reason


class CostModel:
    """Seconds of a batch, t = a + b * tokens, fitted by least squares with exponential forgetting; a, b >= 0."""

    def __init__(self, a_s: float = 0.005, b_s: float = 5e-5, forget: float = 0.98) -> None:
        self._forget = forget
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self.a_s, self.b_s = a_s, b_s
        # The first guess weighs as much as two batches, so that one odd measurement does not rule.
        for tokens in (256, 4096):
            self._add(tokens, a_s + b_s * tokens)

    def observe(self, tokens: int, seconds: float) -> None:
        """One batch took this long."""
        self._add(tokens, seconds)
        spread = self._n * self._xx - self._x * self._x
        slope = (self._n * self._xy - self._x * self._y) / spread if spread > 1e-9 * self._n * self._xx else self.b_s
        self.b_s = max(slope, 0.0)
        self.a_s = max((self._y - self.b_s * self._x) / self._n, 0.0)
        if self.a_s == 0.0 and self._x > 0:
            self.b_s = self._y / self._x

    def seconds(self, tokens: int) -> float:
        """Expected time of a batch."""
        return self.a_s + self.b_s * tokens

    def tokens_within(self, seconds: float) -> float:
        """How many tokens fit into a time; infinite where tokens cost nothing."""
        return (seconds - self.a_s) / self.b_s if self.b_s > 0 else float("inf")

    def _add(self, tokens: int, seconds: float) -> None:
        f = self._forget
        self._n = f * self._n + 1.0
        self._x = f * self._x + tokens
        self._y = f * self._y + seconds
        self._xx = f * self._xx + float(tokens) * tokens
        self._xy = f * self._xy + tokens * seconds


class Batcher:
    """Units by lane. ``objectives_s``: from arrival to the end of the encoder pass, commit time already taken off."""

    def __init__(
        self, objectives_s: Mapping[Lane, float], max_tokens: int, max_units: int, cost: CostModel | None = None
    ) -> None:
        self._objectives = dict(objectives_s)
        self._max_tokens = max_tokens
        self._max_units = max_units
        self._half_tightest = min(objectives_s.values()) / 2
        self._lanes: dict[Lane, deque[Unit]] = {lane: deque() for lane in objectives_s}
        self._tokens: dict[Lane, int] = dict.fromkeys(objectives_s, 0)
        self.cost = cost or CostModel()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    @property
    def tokens(self) -> Mapping[Lane, int]:
        """Tokens waiting, by lane."""
        return self._tokens

    @property
    def budget_tokens(self) -> int:
        """Tokens that the next batch may hold: its time stays within half of the tightest objective."""
        within = max(self.cost.tokens_within(self._half_tightest), MIN_BUDGET_TOKENS)
        return int(min(self._max_tokens, within))

    def add(self, unit: Unit) -> None:
        """Put a unit behind its lane's others."""
        self._lanes[unit.lane].append(unit)
        self._tokens[unit.lane] += unit.tokens

    def take(self, now_s: float, free_at_s: float, lead_s: float = 0.0, drain: bool = False) -> Batch | None:
        """The next batch, or None when waiting still pays.

        ``free_at_s`` is when the device can start it (now or earlier when idle), ``lead_s`` how long before that a
        batch must leave to be ready in time.
        """
        budget = self.budget_tokens
        reason = self._reason(now_s, free_at_s, lead_s, budget, drain)
        if reason is None:
            return None
        units = self._select(now_s, budget)
        return Batch(units, sum(unit.tokens for unit in units), reason)

    def drop(self, partitions: Container[Partition]) -> list[Unit]:
        """Take out the units of partitions that moved on."""
        dropped: list[Unit] = []
        for lane, units in self._lanes.items():
            dropped += [unit for unit in units if unit.partition in partitions]
            self._lanes[lane] = kept = deque(unit for unit in units if unit.partition not in partitions)
            self._tokens[lane] = sum(unit.tokens for unit in kept)
        return dropped

    def _reason(self, now_s: float, free_at_s: float, lead_s: float, budget: int, drain: bool) -> Reason | None:
        waiting, tokens = len(self), sum(self._tokens.values())
        if not waiting:
            return None
        if waiting >= self._max_units or tokens >= budget:
            return "full"
        if drain:
            return "drain"
        latest_start = min(self._deadline(units[0]) for units in self._lanes.values() if units)
        if latest_start - self.cost.seconds(tokens) - lead_s <= now_s and free_at_s > now_s:
            return "deadline"
        # Waiting pays as long as the device could not start anyway: the batch grows at no cost.
        return "idle" if free_at_s - lead_s <= now_s else None

    def _deadline(self, unit: Unit) -> float:
        return unit.arrived_s + self._objectives[unit.lane]

    def _select(self, now_s: float, budget: int) -> list[Unit]:
        window = self._window(WINDOW_BATCHES * budget)
        if len(window) <= self._max_units and sum(unit.tokens for unit in window) <= budget:
            return window
        urgent_until = now_s + 2 * self.cost.seconds(budget)
        first: list[Unit] = []
        rest: list[Unit] = []
        seen: set[Partition] = set()
        for unit in window:
            oldest = unit.partition not in seen
            seen.add(unit.partition)
            (first if oldest or self._deadline(unit) <= urgent_until else rest).append(unit)
        if rest:
            middle = sorted(unit.tokens for unit in first)[len(first) // 2]
            rest.sort(key=lambda unit: abs(unit.tokens - middle))  # stable: equals stay earliest deadline first
        return self._fill(window, first + rest, budget)

    def _window(self, tokens_max: int) -> list[Unit]:
        """Take the most urgent units out of the lanes, earliest deadline first."""
        window: list[Unit] = []
        tokens, units_max = 0, WINDOW_BATCHES * self._max_units
        heads = [(self._deadline(units[0]), lane) for lane, units in self._lanes.items() if units]
        while heads and len(window) < units_max and tokens < tokens_max:
            _, lane = head = min(heads)
            units = self._lanes[lane]
            unit = units.popleft()
            self._tokens[lane] -= unit.tokens
            window.append(unit)
            tokens += unit.tokens
            heads.remove(head)
            if units:
                heads.append((self._deadline(units[0]), lane))
        return window

    def _fill(self, window: list[Unit], preferred: list[Unit], budget: int) -> list[Unit]:
        """As many as fit, in order of preference; the others go back to the front of their lanes, in order."""
        taken: list[Unit] = []
        tokens = 0
        for unit in preferred:
            if len(taken) == self._max_units:
                break
            if tokens + unit.tokens <= budget or not taken:  # a single unit larger than the budget goes alone
                taken.append(unit)
                tokens += unit.tokens
        chosen = set(map(id, taken))
        for unit in reversed(window):
            if id(unit) not in chosen:
                self._lanes[unit.lane].appendleft(unit)
                self._tokens[unit.lane] += unit.tokens
        return taken
