"""Of which topics to read no more for now. Pure.

Kafka is the buffer: what waits here is bounded, by lane and in all. The lane with the tightest objective may hold the
most, backfill the least, so that under overload the less important lanes stay in Kafka first, and a flood of one
never keeps another from being read. Together the shares leave room for what is on the device and on its way out;
should that fill up too, nothing at all is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.decode import BACKFILL, Lane

SHARES: Final = (0.3, 0.2, 0.15)
"""Of the high mark, what each lane may hold, tightest objective first."""
BACKFILL_SHARE: Final = 0.1


class Regulator:
    """Remembers what is paused, so that a lane resumes well below the mark at which it was paused.

    ``lanes`` maps topics to lanes, ``high`` and ``low`` are the marks of unfinished work.
    """

    def __init__(self, lanes: Mapping[str, str], objectives_s: Mapping[Lane, float], high: int, low: int) -> None:
        self._high, self._low = high, low
        ranked = sorted(objectives_s, key=lambda lane: objectives_s[lane])
        self._shares: dict[str, float] = {**dict(zip(ranked, SHARES, strict=True)), BACKFILL: BACKFILL_SHARE}
        self._topics: dict[str, frozenset[str]] = {
            lane: frozenset(topic for topic, its in lanes.items() if its == lane) for lane in self._shares
        }
        self._all = False
        self._full: set[str] = set()

    def paused(self, waiting: Mapping[str, int], unfinished: int, blocked: bool) -> frozenset[str]:
        """Topics not to be read. ``waiting`` by lane and ``unfinished`` in all are loads; ``blocked``: output cannot
        leave."""
        for lane, share in self._shares.items():
            # Between the marks it stays as it was.
            if waiting[lane] > share * self._high:
                self._full.add(lane)
            elif waiting[lane] <= share * self._low:
                self._full.discard(lane)
        self._all = blocked or unfinished > self._high or (self._all and unfinished >= self._low)
        paused = self._topics if self._all else self._full
        return frozenset().union(*(self._topics[lane] for lane in paused))
