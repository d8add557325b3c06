"""What waits for one sink, and when it may go. Pure: time and jitter are arguments.

One message is under way at a time, in the order of coming. Between attempts that fail the wait doubles, from
``retry_min_s`` to ``retry_max_s``, with a jitter of half of it; a receiver that names its own wait is heeded. No more
than ``max_per_minute`` attempts fall into any sixty seconds. One that has failed `FRONT_ATTEMPTS` times goes behind
those of other alerts, so that a message its sink never takes holds none of them up.

A message is given up ``give_up_s`` after its own first failure. While a sink takes none of several, all that has
waited for so long since it began to fail is, tried or not; what waits only for the rate is not.

With ``latest_only`` (people, not machines) a newer message of an alert takes the place of one that has not been told
yet, and one that comes late (a dead letter sent again) goes with it.

Bounds: the owner stops feeding at `full`; coming beyond it still fits (one record at most).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from worker.notify.notice import Notice
from worker.notify.webhook import Verdict

RATE_WINDOW_S: Final = 60.0
FRONT_ATTEMPTS: Final = 4
"""Attempts at one message before others have their turn: a short outage does not change the order."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one sink."""

    queue_max: int
    max_per_minute: int
    retry_min_s: float
    retry_max_s: float
    give_up_s: float
    latest_only: bool


class Entry(msgspec.Struct, eq=False):
    """One message. ``handles`` are the owner's, to be settled when it has been delivered or given up."""

    notice: Notice
    handles: list[Any]
    queued_s: float
    attempts: int = 0
    failing_since_s: float = math.inf

    def is_of(self, notice: Notice) -> bool:
        """Whether it is about the same alert."""
        return self.notice.alert.alert_id == notice.alert.alert_id

    def join(self, notice: Notice, handles: list[Any]) -> None:
        """Another message of the alert, to be told as one: what is told is the later state."""
        if notice.alert.window_end_ms >= self.notice.alert.window_end_ms:
            self.notice = notice
        self.handles += handles


class Settled(msgspec.Struct, frozen=True):
    """An entry that is over: delivered, ``withdrawn``, or given up, for which ``failure`` says why."""

    entry: Entry
    failure: str | None = None
    withdrawn: bool = False


class Outbox:
    """The queue of one sink."""

    def __init__(self, limits: Limits, rng: random.Random) -> None:
        self._limits = limits
        self._rng = rng
        self._waiting: deque[Entry] = deque()
        self._under_way: Entry | None = None
        self._attempts_s: deque[float] = deque(maxlen=limits.max_per_minute)
        self._failures = 0
        self._failing_since_s = math.inf
        self._sole: Entry | None = None  # the one message of all failures in a row
        self._not_before_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting) + (self._under_way is not None)

    @property
    def full(self) -> bool:
        """Whether no more should be put in."""
        return len(self) >= self._limits.queue_max

    @property
    def failures(self) -> int:
        """Attempts that failed in a row."""
        return self._failures

    def put(self, notice: Notice, handle: Any, now_s: float) -> None:
        """One more message."""
        if self._limits.latest_only:
            for entry in self._waiting:
                if entry.is_of(notice):
                    entry.join(notice, [handle])
                    return
        self._waiting.append(Entry(notice, [handle], now_s))

    def take(self, now_s: float) -> Entry | None:
        """The message to try now, if any. Every one taken must be answered or withdrawn before the next."""
        if self.wait_s(now_s) != 0:
            return None
        self._under_way = entry = self._waiting.popleft()
        entry.attempts += 1
        self._attempts_s.append(now_s)
        return entry

    def wait_s(self, now_s: float) -> float | None:
        """How long until `take` gives a message; None while there is none, or one is under way."""
        if not self._waiting or self._under_way is not None:
            return None
        due_s = self._not_before_s
        if len(self._attempts_s) == self._limits.max_per_minute:
            due_s = max(due_s, self._attempts_s[0] + RATE_WINDOW_S)
        return max(due_s - now_s, 0.0)

    def answer(self, verdict: Verdict, now_s: float) -> list[Settled]:
        """What the attempt under way came to; the entries that are over."""
        entry, self._under_way = self._under_way, None
        if entry is None:
            raise ValueError("nothing is under way")
        if verdict.outcome != "retry":
            self._failures, self._not_before_s, self._sole = 0, 0.0, None
            return [Settled(entry, verdict.detail if verdict.outcome == "refused" else None)]
        if self._failures == 0:
            self._failing_since_s, self._sole = now_s, entry
        elif self._sole is not entry:
            self._sole = None
        self._failures += 1
        self._not_before_s = now_s + self._backoff_s(verdict.retry_after_s)
        entry.failing_since_s = min(entry.failing_since_s, now_s)
        over = [each for each in (entry, *self._waiting) if self._in_vain(each, now_s)]
        self._waiting = deque(each for each in self._waiting if each not in over)
        if entry not in over:
            self._put_back(entry)
        return [Settled(each, f"{verdict.detail}; given up after {each.attempts} attempts") for each in over]

    def withdraw(self) -> Settled:
        """What is under way was not tried after all: nobody is to be told of it any more."""
        entry, self._under_way = self._under_way, None
        if entry is None:
            raise ValueError("nothing is under way")
        entry.attempts -= 1
        self._attempts_s.pop()
        return Settled(entry, withdrawn=True)

    def forget(self, gone: Callable[[Any], bool]) -> None:
        """Drop handles that are nobody's any more, and waiting messages without any left."""
        for entry in self._waiting:
            entry.handles = [handle for handle in entry.handles if not gone(handle)]
        self._waiting = deque(entry for entry in self._waiting if entry.handles)

    def _backoff_s(self, asked_s: float | None) -> float:
        limits = self._limits
        # The exponent is bounded: a sink may fail for weeks.
        full_s = min(limits.retry_max_s, limits.retry_min_s * 2.0 ** min(self._failures - 1, 30))
        wait_s = full_s * (0.5 + 0.5 * self._rng.random())
        return wait_s if asked_s is None else max(wait_s, min(asked_s, limits.give_up_s))

    def _in_vain(self, entry: Entry, now_s: float) -> bool:
        # The failures of one message say nothing of those that were never tried.
        sink_s = self._failing_since_s if self._sole is None else math.inf
        return max(entry.queued_s, min(entry.failing_since_s, sink_s)) <= now_s - self._limits.give_up_s

    def _put_back(self, entry: Entry) -> None:
        same = [each for each in self._waiting if each.is_of(entry.notice)]
        others = [each for each in self._waiting if not each.is_of(entry.notice)]
        if self._limits.latest_only:
            # Came while this one was under way; apart, a third would take the place of the first of them.
            for each in same:
                entry.join(each.notice, each.handles)
            self._waiting, same = deque(others), []
        if entry.attempts < FRONT_ATTEMPTS:
            self._waiting.appendleft(entry)
        else:
            self._waiting = deque([*others, entry, *same])
