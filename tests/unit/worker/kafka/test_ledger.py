"""Results leave in source order; offsets never move over unfinished work; an older epoch changes nothing."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from worker.kafka.ledger import OffsetLedger, Ticket

A, B = ("a", 0), ("b", 1)


def ledger_with(*partitions: tuple[str, int]) -> OffsetLedger[str]:
    ledger: OffsetLedger[str] = OffsetLedger()
    ledger.assign(partitions)
    return ledger


def begin(ledger: OffsetLedger[str], partition: tuple[str, int], offset: int) -> Ticket[str]:
    ticket = ledger.begin(partition, offset, "click", 0.0)
    assert ticket is not None
    return ticket


def test_release_waits_for_the_first_unfinished() -> None:
    ledger = ledger_with(A)
    tickets = [begin(ledger, A, offset) for offset in (5, 6, 9)]
    ledger.finish(tickets[2], "late")
    ledger.finish(tickets[1], "middle")
    assert ledger.release() == []
    assert ledger.seal() == {}
    ledger.finish(tickets[0], "first")
    assert [ticket.outcome for ticket in ledger.release()] == ["first", "middle", "late"]
    assert ledger.seal() == {A: 10}
    assert ledger.seal() == {}


def test_commit_follows_acknowledgement() -> None:
    ledger = ledger_with(A, B)
    for partition in (A, B):
        ledger.finish(begin(ledger, partition, 0), "x")
    ledger.release()
    sealed = ledger.seal()
    assert ledger.uncommitted() == {}
    ledger.acknowledge({A: sealed[A]})
    assert ledger.uncommitted() == {A: 1}
    assert [ticket.partition for ticket in ledger.committed({A: 1})] == [A]
    assert ledger.uncommitted() == {}


def test_what_was_not_sealed_cannot_be_acknowledged() -> None:
    ledger = ledger_with(A)
    ledger.finish(begin(ledger, A, 0), "x")
    ledger.release()
    ledger.acknowledge({A: 1})
    assert ledger.uncommitted() == {}


def test_repeats_and_strangers_do_not_begin() -> None:
    ledger = ledger_with(A)
    begin(ledger, A, 7)
    assert ledger.begin(A, 7, "click", 0.0) is None
    assert ledger.begin(A, 6, "click", 0.0) is None
    assert ledger.begin(B, 0, "click", 0.0) is None


def test_late_results_of_a_revoked_partition_are_dropped() -> None:
    ledger = ledger_with(A)
    old = begin(ledger, A, 0)
    ledger.charge(old, 9)
    ledger.revoke([A])
    assert ledger.load == 0
    ledger.assign([A])
    new = begin(ledger, A, 0)
    assert not ledger.finish(old, "old")
    assert ledger.release() == []
    assert ledger.finish(new, "new")
    assert [ticket.outcome for ticket in ledger.release()] == ["new"]


def test_an_acknowledgement_of_an_older_epoch_does_not_move_offsets_back() -> None:
    ledger = ledger_with(A)
    ledger.finish(begin(ledger, A, 0), "x")
    ledger.release()
    stale = ledger.seal()
    ledger.revoke([A])
    ledger.assign([A])
    ledger.finish(begin(ledger, A, 500), "y")  # another worker went on to 500 meanwhile
    ledger.release()
    ledger.seal()
    ledger.acknowledge(stale)
    assert ledger.uncommitted() == {}


def test_assigning_twice_is_a_defect() -> None:
    with pytest.raises(ValueError, match="assigned already"):
        ledger_with(A).assign([A])


def test_load_and_age() -> None:
    ledger = ledger_with(A)
    assert ledger.oldest_s() is None
    first, second = (ledger.begin(A, offset, "click", 10.0 + offset) for offset in (0, 1))
    assert first is not None
    assert second is not None
    ledger.charge(first, 3)
    ledger.charge(second, 4)
    assert (ledger.load, ledger.oldest_s()) == (7, 10.0)
    ledger.finish(first, "x")
    ledger.release()
    assert (ledger.load, ledger.oldest_s()) == (4, 10.0)  # written, not committed yet
    ledger.acknowledge(ledger.seal())
    ledger.committed(ledger.uncommitted())
    assert ledger.oldest_s() == 11.0


class LedgerMachine(RuleBasedStateMachine):
    """Against a model that only remembers, per partition, what began, finished and left."""

    @initialize()
    def start(self) -> None:
        self.ledger: OffsetLedger[int] = OffsetLedger()
        self.next: dict[tuple[str, int], int] = {A: 0, B: 0}
        self.open: dict[tuple[str, int], list[Ticket[int]]] = {}
        self.stale: list[Ticket[int]] = []
        self.left: dict[tuple[str, int], list[int]] = {}
        self.began: dict[tuple[str, int], list[int]] = {}
        self.load = 0

    @rule(partition=st.sampled_from([A, B]))
    def assign_or_revoke(self, partition: tuple[str, int]) -> None:
        if partition in self.open:
            self.ledger.revoke([partition])
            self.stale += self.open.pop(partition)
        else:
            self.ledger.assign([partition])
            self.open[partition], self.left[partition], self.began[partition] = [], [], []

    @rule(partition=st.sampled_from([A, B]), gap=st.integers(0, 2), load=st.integers(0, 5))
    def begin(self, partition: tuple[str, int], gap: int, load: int) -> None:
        offset = self.next[partition] + gap
        ticket = self.ledger.begin(partition, offset, "click", 0.0)
        assert (ticket is not None) == (partition in self.open)
        if ticket is not None:
            self.next[partition] = offset + 1
            self.ledger.charge(ticket, load)
            self.open[partition].append(ticket)
            self.began[partition].append(offset)

    @rule(partition=st.sampled_from([A, B]), which=st.integers(0, 99))
    def finish(self, partition: tuple[str, int], which: int) -> None:
        waiting = [ticket for ticket in self.open.get(partition, []) if ticket.outcome is None]
        if waiting:
            ticket = waiting[which % len(waiting)]
            assert self.ledger.finish(ticket, ticket.offset)

    @rule(which=st.integers(0, 99))
    def finish_stale(self, which: int) -> None:
        if self.stale:
            assert not self.ledger.finish(self.stale[which % len(self.stale)], -1)

    @rule()
    def release(self) -> None:
        for ticket in self.ledger.release():
            self.left[ticket.partition].append(ticket.offset)
            assert ticket.outcome == ticket.offset

    @rule()
    def commit(self) -> None:
        self.ledger.acknowledge(self.ledger.seal())
        self.ledger.committed(self.ledger.uncommitted())

    @invariant()
    def holds(self) -> None:
        for partition, left in self.left.items():
            assert left == self.began[partition][: len(left)], "left out of order, or left something out"
        for partition, offset in (self.ledger.seal() if self.open else {}).items():
            assert offset == self.left[partition][-1] + 1
        unreleased = [t for p, tickets in self.open.items() for t in tickets if t.offset not in self.left[p]]
        assert self.ledger.load == sum(ticket.load for ticket in unreleased)


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLedger = LedgerMachine.TestCase
