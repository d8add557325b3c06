"""Of which topics to read no more for now. Pure.

Kafka is the buffer: what waits here is bounded, by lane and in all. A lane holds no more than the device does in a
fair part of its objective, so that what has been read is scored in time however slow the device is; and no more than
its share of memory, which is largest for the tightest objective and least for backfill. So under overload the less
important lanes stay in Kafka first, and a flood of one never keeps another from being read. Together the shares
leave room for what is on the device and on its way out; should that fill up too, nothing at all is read.

Under overload a lane pauses and resumes many times a second: `Spells` makes of that one beginning and one end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.config import Lane
from worker.scoring.decode import BACKFILL

SHARES: Final = (0.3, 0.2, 0.15)
"""Of the high mark, what each lane may hold, tightest objective first."""
BACKFILL_SHARE: Final = 0.1
BATCHES_MIN: Final = 1.0
"""So many batches may always wait: a lane alone must keep the device busy."""
FREE_S: Final = 60.0
"""A topic that was held back is free again once it has not been paused for so long."""


class Regulator:
    """Remembers what is paused, so that a lane resumes well below the mark at which it was paused.

    ``lanes`` maps topics to lanes, ``high`` and ``low`` are the marks of unfinished work.
    """

    def __init__(self, lanes: Mapping[str, str], objectives_s: Mapping[Lane, float], high: int, low: int) -> None:
        self._high, self._low = high, low
        self._part_s: dict[str, float] = {lane: s / len(objectives_s) for lane, s in objectives_s.items()}
        ranked = sorted(objectives_s, key=lambda lane: objectives_s[lane])
        self._shares: dict[str, float] = {**dict(zip(ranked, SHARES, strict=True)), BACKFILL: BACKFILL_SHARE}
        self._topics: dict[str, frozenset[str]] = {
            lane: frozenset(topic for topic, its in lanes.items() if its == lane) for lane in self._shares
        }
        self._all = False
        self._full: set[str] = set()

    def paused(
        self,
        loads: Mapping[str, int],
        tokens: Mapping[str, int],
        unfinished: int,
        blocked: bool,
        batch_tokens: int,
        batch_s: float,
    ) -> frozenset[str]:
        """Topics not to be read.

        ``loads`` and ``tokens`` wait, by lane; ``unfinished`` is the load in all, ``blocked``: output cannot leave;
        the device takes ``batch_s`` for a full batch of ``batch_tokens``.
        """
        resume = self._low / self._high
        for lane, share in self._shares.items():
            in_time = batch_tokens * max(self._part_s.get(lane, 0.0) / max(batch_s, 1e-9), BATCHES_MIN)
            filled = max(loads[lane] / (share * self._high), tokens[lane] / in_time)
            # Between the marks it stays as it was.
            if filled > 1:
                self._full.add(lane)
            elif filled <= resume:
                self._full.discard(lane)
        self._all = blocked or unfinished > self._high or (self._all and unfinished >= self._low)
        paused = self._topics if self._all else self._full
        return frozenset().union(*(self._topics[lane] for lane in paused))


@dataclass(slots=True)
class Spell:
    """A time in which a topic was paused again and again: ``pauses`` times, from ``began_s`` to ``paused_s``."""

    topic: str
    began_s: float
    paused_s: float
    pauses: int = 0


class Spells:
    """Remembers which topics are held back."""

    def __init__(self) -> None:
        self._spells: dict[str, Spell] = {}
        self._paused: frozenset[str] = frozenset()

    def look(self, paused: frozenset[str], now_s: float) -> tuple[list[str], list[Spell]]:
        """Topics that begin to be held back, and the spells of those that have now been free for `FREE_S`."""
        began = sorted(paused.difference(self._spells))
        self._spells |= {topic: Spell(topic, now_s, now_s) for topic in began}
        for topic in paused - self._paused:
            self._spells[topic].pauses += 1
        for topic in paused:
            self._spells[topic].paused_s = now_s
        self._paused = paused
        over = [spell for spell in self._spells.values() if now_s - spell.paused_s >= FREE_S]
        for spell in over:
            del self._spells[spell.topic]
        return began, over
