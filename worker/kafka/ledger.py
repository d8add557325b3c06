"""Which offsets are finished: results leave in source order, offsets move only over contiguous finished work.

Pure. Every assignment of a partition has an epoch; a result whose ticket is of an older epoch is dropped, since
the partition's events belong to whoever reads them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

import msgspec

from worker.kafka.records import Offsets, Partition

T = TypeVar("T")

MAX_WRITTEN: Final = 20_000
"""Tickets per partition kept from release to commit, to tell latency; while commits fail the oldest go unmeasured."""


class Ticket(msgspec.Struct, Generic[T], eq=False, gc=False):
    """One record on its way. ``load`` is what it counts for in the bound of unfinished work."""

    partition: Partition
    epoch: int
    offset: int
    lane: str
    arrived_s: float
    load: int = 0
    outcome: T | None = None


class _Held(Generic[T]):
    """One assigned partition: how far it is along the way, as next offsets. Each is at most the one before it."""

    __slots__ = ("acknowledged", "begun", "committed", "epoch", "first", "released", "sealed", "waiting", "written")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.first = -1  # the first offset begun in this epoch
        self.begun = self.released = self.sealed = self.acknowledged = self.committed = -1
        self.waiting: deque[Ticket[T]] = deque()
        self.written: deque[Ticket[T]] = deque(maxlen=MAX_WRITTEN)


class OffsetLedger(Generic[T]):
    """Tickets of all assigned partitions.

    Bounded by its user, who stops reading while ``load`` (of all tickets begun and not released) is above a mark.
    """

    def __init__(self) -> None:
        self._held: dict[Partition, _Held[T]] = {}
        self._ready: set[Partition] = set()
        self._epoch = 0
        self.load = 0

    def assign(self, partitions: Iterable[Partition]) -> None:
        """A new epoch for each. Raises ValueError for one that is held: its tickets would be lost from sight."""
        for partition in partitions:
            if partition in self._held:
                raise ValueError(f"{partition} is assigned already")
            self._epoch += 1
            self._held[partition] = _Held(self._epoch)

    def revoke(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions; what is unfinished or unreleased of them is dropped, now and when it comes in late."""
        for partition in partitions:
            held = self._held.pop(partition, None)
            self._ready.discard(partition)
            if held is not None:
                self.load -= sum(ticket.load for ticket in held.waiting)

    def begin(self, partition: Partition, offset: int, lane: str, now_s: float) -> Ticket[T] | None:
        """A ticket; None for a record of a partition not held, or at an offset that has begun already."""
        held = self._held.get(partition)
        if held is None or offset < held.begun:
            return None
        if held.first < 0:
            held.first = offset
        held.begun = offset + 1
        ticket: Ticket[T] = Ticket(partition, held.epoch, offset, lane, now_s)
        held.waiting.append(ticket)
        return ticket

    def charge(self, ticket: Ticket[T], load: int) -> None:
        """Count a ticket's load until it is released or revoked."""
        ticket.load += load
        self.load += load

    def finish(self, ticket: Ticket[T], outcome: T) -> bool:
        """Note a result. False, and nothing noted, when the ticket's epoch is over."""
        held = self._held.get(ticket.partition)
        if held is None or held.epoch != ticket.epoch:
            return False
        ticket.outcome = outcome
        if held.waiting[0] is ticket:
            self._ready.add(ticket.partition)
        return True

    def release(self) -> list[Ticket[T]]:
        """Finished tickets with nothing unfinished before them in their partition, in source order per partition."""
        released: list[Ticket[T]] = []
        for partition in sorted(self._ready):
            held = self._held[partition]
            waiting = held.waiting
            while waiting and waiting[0].outcome is not None:
                ticket = waiting.popleft()
                held.released = ticket.offset + 1
                held.written.append(ticket)
                released.append(ticket)
        self._ready.clear()
        self.load -= sum(ticket.load for ticket in released)
        return released

    def seal(self) -> Offsets:
        """Next offsets of what was released since the last seal: to be committed when its output is acknowledged."""
        offsets: Offsets = {}
        for partition, held in self._held.items():
            if held.released > held.sealed:
                held.sealed = offsets[partition] = held.released
        return offsets

    def acknowledge(self, offsets: Offsets) -> None:
        """The output below these sealed offsets is safe. Those of an older epoch are ignored."""
        for partition, offset in offsets.items():
            held = self._held.get(partition)
            if held is not None and held.first < offset <= held.sealed:
                held.acknowledged = max(held.acknowledged, offset)

    def committed(self, offsets: Offsets) -> list[Ticket[T]]:
        """These offsets are committed; the tickets that this covers. Offsets of an older epoch are ignored."""
        covered: list[Ticket[T]] = []
        for partition, offset in offsets.items():
            held = self._held.get(partition)
            if held is not None and held.first < offset <= held.acknowledged:
                held.committed = max(held.committed, offset)
                while held.written and held.written[0].offset < offset:
                    covered.append(held.written.popleft())
        return covered

    def uncommitted(self) -> Offsets:
        """Offsets that may be committed and are not known to be."""
        return {p: held.acknowledged for p, held in self._held.items() if held.acknowledged > held.committed}

    def unsettled(self, partitions: Iterable[Partition]) -> bool:
        """Whether any of these has output that left and is not known to be committed."""
        held = (self._held.get(partition) for partition in partitions)
        return any(one is not None and one.released > one.committed for one in held)

    @property
    def partitions(self) -> list[Partition]:
        """Partitions held."""
        return list(self._held)

    def oldest_s(self) -> float | None:
        """Arrival of the oldest record not yet committed; None when all are."""
        held = self._held.values()
        return min((queue[0].arrived_s for h in held for queue in (h.waiting, h.written) if queue), default=None)
