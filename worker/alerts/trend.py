"""Sentiment of every subject by minute of event time, for people to look at. Pure.

The keeper counts what one process is fed of one partition, in half-hour buckets; every bucket is published whole, again
and again while it changes, and added to what other processes published of it (`schemas.trends`). A bucket that has left
the keeper and is touched by a late opinion begins again under another part, so nothing published is ever overwritten by
less. A killed process takes with it what it has counted since it last published.

Bound: `MAX_BUCKETS`; the longest untouched leave, to be published with the next `take`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from schemas.scores import Opinion
from schemas.trends import BUCKET_MINUTES, MINUTE_MS, TrendBucket, TrendMinute

MAX_BUCKETS: Final = 20_000
MAX_LEAVING: Final = 2000
"""Buckets that have left and wait to be published, at which `take` gives them without waiting for its time."""
INTERVAL_S: Final = 60.0
"""How often the trend of an active subject is published."""
BUCKET_MS: Final = BUCKET_MINUTES * MINUTE_MS
KEPT_BUCKETS: Final = 4
"""Buckets older than so many are closed: what comes that late is counted in a new part."""

_Bucket = tuple[str, int]


class _Cells(msgspec.Struct):
    """Minute to [opinions, negative, positive]."""

    part: str
    minutes: dict[int, list[float]]


class TrendKeeper:
    """Open buckets of one partition, from the offset ``opened`` on."""

    def __init__(self, opened: int, max_buckets: int = MAX_BUCKETS) -> None:
        self._opened = opened
        self._max_buckets = max_buckets
        self._generation = 0
        self._buckets: OrderedDict[_Bucket, _Cells] = OrderedDict()
        self._changed: set[_Bucket] = set()
        self._leaving: list[TrendBucket] = []
        self._newest_ms = 0
        self._due_s = 0.0

    def __len__(self) -> int:
        return len(self._buckets)

    def add(self, opinion: Opinion) -> None:
        """Count one opinion."""
        start = opinion.event_time_ms - opinion.event_time_ms % BUCKET_MS
        bucket = (opinion.subject, start)
        cells = self._buckets.get(bucket)
        if cells is None:
            self._make_room()
            cells = self._buckets[bucket] = _Cells(f"{self._opened}.{self._generation}", {})
            self._newest_ms = max(self._newest_ms, start)
        else:
            self._buckets.move_to_end(bucket)
        minute = opinion.event_time_ms - opinion.event_time_ms % MINUTE_MS
        sums = cells.minutes.setdefault(minute, [0, 0.0, 0.0])
        sums[0] += 1
        sums[1] += opinion.p_negative
        sums[2] += opinion.p_positive
        self._changed.add(bucket)

    def take(self, now_s: float, *, last: bool = False) -> list[TrendBucket]:
        """Buckets that changed since they were last taken; none before `INTERVAL_S` is over, unless it is the last."""
        if not last and now_s < self._due_s and len(self._leaving) < MAX_LEAVING:
            return []
        self._due_s = now_s + INTERVAL_S
        taken, self._leaving = self._leaving, []
        taken += [_published(bucket, self._buckets[bucket]) for bucket in sorted(self._changed)]
        self._changed.clear()
        oldest_ms = self._newest_ms - KEPT_BUCKETS * BUCKET_MS
        closed = [bucket for bucket in self._buckets if bucket[1] < oldest_ms]
        for bucket in closed:
            del self._buckets[bucket]
        self._generation += bool(closed)
        return taken

    def _make_room(self) -> None:
        while len(self._buckets) >= self._max_buckets:
            bucket, cells = self._buckets.popitem(last=False)
            if bucket in self._changed:
                self._changed.discard(bucket)
                self._leaving.append(_published(bucket, cells))
            self._generation += 1


def added_up(buckets: Iterable[TrendBucket]) -> list[TrendMinute]:
    """Minutes of one subject from the latest record of every key, in order; minutes without opinions are left out."""
    latest = {bucket.key(): bucket for bucket in buckets}
    sums: dict[int, list[float]] = {}
    for bucket in latest.values():
        for minute in bucket.minutes:
            known = sums.setdefault(minute.minute_ms, [0, 0.0, 0.0])
            known[0] += minute.total
            known[1] += minute.negative
            known[2] += minute.positive
    return [_minute(at, sums[at]) for at in sorted(sums)]


class TrendSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of minutes in sum. Shares are None where nobody said anything. ``polarity`` is in [-1, 1]."""

    minutes: int
    total: int
    negative_share: float | None
    positive_share: float | None
    polarity: float | None


def span(minutes: Iterable[TrendMinute], until_ms: int, count: int) -> TrendSpan:
    """The ``count`` minutes before ``until_ms``."""
    inside = [each for each in minutes if until_ms - count * MINUTE_MS <= each.minute_ms < until_ms]
    total = sum(each.total for each in inside)
    negative, positive = sum(each.negative for each in inside), sum(each.positive for each in inside)
    return TrendSpan(
        minutes=count,
        total=total,
        negative_share=round(negative / total, 4) if total else None,
        positive_share=round(positive / total, 4) if total else None,
        polarity=round((positive - negative) / total, 4) if total else None,
    )


def _published(bucket: _Bucket, cells: _Cells) -> TrendBucket:
    minutes = [_minute(at, cells.minutes[at]) for at in sorted(cells.minutes)]
    return TrendBucket(subject=bucket[0], start_ms=bucket[1], part=cells.part, minutes=minutes)


def _minute(at_ms: int, sums: list[float]) -> TrendMinute:
    return TrendMinute(at_ms, int(sums[0]), round(sums[1], 4), round(sums[2], 4))
