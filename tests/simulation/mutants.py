"""Safeguards broken on purpose, one at a time. The simulation must notice each, or it proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from confluent_kafka import KafkaException

from tests.simulation import profiles_mutants
from tests.simulation.clients import Membership
from worker.kafka.ledger import OffsetLedger
from worker.kafka.session import Session
from worker.kafka.sink import Answer
from worker.kafka.source import KafkaSource
from worker.kafka.transaction import TransactionalSink
from worker.scoring.emit import FoldBuffer
from worker.scoring.engine import Engine


def _offset_off_by_one(original: Any) -> Any:
    return lambda self: {partition: offset + 1 for partition, offset in original(self).items()}


def _offset_one_behind(original: Any) -> Any:
    return lambda self: {partition: max(offset - 1, 0) for partition, offset in original(self).items()}


def _stale_generation(original: Any) -> Any:
    def membership(self: Any) -> Membership | None:
        first = getattr(self, "first", None)
        self.first = original(self) if first is None else first
        return self.first  # type: ignore[no-any-return]

    return membership


def _whoever_we_are(original: Any) -> Any:
    return lambda self: self._consumer.consumer_group_metadata()


def _rewind_to_where_we_are(original: Any) -> Any:
    return lambda self, partitions: self._resume(self._paused.intersection(partitions))


def _pause_taken_for_over(original: Any) -> Any:
    def let_go(self: Any, gone: Any) -> None:
        self._paused.difference_update(gone)  # as if the client forgot it too
        original(self, gone)

    return let_go


def _reused_producer(original: Any) -> Any:
    def renew(self: Any, error: Any) -> None:
        # As if a time-out were no reason: the same producer goes on with a new transaction.
        self._producer._doubtful, self._producer._abortable = None, False
        self._producer._queue.clear()
        self._begun = False

    return renew


def _used_after_an_abort(original: Any) -> Any:
    def renew(self: Any, error: Any) -> None:
        if not error.txn_requires_abort():
            original(self, error)
            return
        try:
            self._patiently(lambda: self._producer.abort_transaction(self._timeout_s))
        except KafkaException as failed:
            original(self, failed.args[0])
        self._begun = False

    return renew


def _released_early(original: Any) -> Any:
    def release(self: Any) -> list[Any]:
        released = []
        for held in self._held.values():
            done = [ticket for ticket in held.waiting if ticket.outcome is not None]
            for ticket in done:
                held.waiting.remove(ticket)
                held.released = max(held.released, ticket.offset + 1)
                held.written.append(ticket)
            released += done
        self.load -= sum(ticket.load for ticket in released)
        self._ready.clear()
        return released

    return release


def _late_results_count(original: Any) -> Any:
    def finish(self: Any, ticket: Any, outcome: Any) -> bool:
        held = self._held.get(ticket.partition)
        if held is not None and held.epoch != ticket.epoch:
            ticket.outcome = outcome
            held.waiting.appendleft(ticket)
            self._ready.add(ticket.partition)
            return True
        return original(self, ticket, outcome)  # type: ignore[no-any-return]

    return finish


def _not_produced_again(original: Any) -> Any:
    def ended(self: Any, committed: bool) -> list[Answer]:
        output = self._sealed or self._gathering
        answers = original(self, committed)
        if not answers:
            output.produced = len(output.messages)
        return answers  # type: ignore[no-any-return]

    return ended


def _always_true(original: Any) -> Any:
    return lambda self, offsets: True


def _always_false(original: Any) -> Any:
    return lambda self, offsets: False


def _abandon_nothing(original: Any) -> Any:
    return lambda self: False


def _keep_what_is_open(original: Any) -> Any:
    def abandon(self: Any) -> bool:
        # Forgets the output but leaves the transaction open: the next commit takes it along.
        from concurrent.futures import Future

        done: Future[bool] = Future()
        done.set_result(False)
        self._gathering, self._sealed, self._withdrawing = type(self._gathering)(), None, True
        if self._call is None:
            self._call = done
        return True

    return abandon


def _folds_stay(original: Any) -> Any:
    return lambda self: None


def _lost_is_nothing(original: Any) -> Any:
    def lose(self: Any, polled: Any) -> None:
        self._rewinding.difference_update(polled.lost)
        self._drop(polled.lost)

    return lose


def _never_settles(original: Any) -> Any:
    return lambda self, partitions: None


MUTANTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "an offset too far is committed": (OffsetLedger, "seal", _offset_off_by_one),
    "an offset too few is committed": (OffsetLedger, "seal", _offset_one_behind),
    "output leaves before what came earlier": (OffsetLedger, "release", _released_early),
    "results of a lost assignment count": (OffsetLedger, "finish", _late_results_count),
    "the group's metadata is kept from the first time": (KafkaSource, "membership", _stale_generation),
    "offsets of a client that was expelled are sent": (KafkaSource, "membership", _whoever_we_are),
    "a pause outlives its assignment": (KafkaSource, "_let_go", _pause_taken_for_over),
    "no rewind after output was taken back": (KafkaSource, "rewind", _rewind_to_where_we_are),
    "a producer in doubt is used again": (Session, "_renew", _reused_producer),
    "a producer is used again after an abort": (Session, "_renew", _used_after_an_abort),
    "an unknown outcome counts as committed": (Session, "_reached", _always_true),
    "an unknown outcome counts as aborted": (Session, "_reached", _always_false),
    "aborted output is not produced again": (TransactionalSink, "_ended", _not_produced_again),
    "output of lost partitions stays in the transaction": (TransactionalSink, "abandon", _abandon_nothing),
    "an abandoned transaction is left open": (TransactionalSink, "abandon", _keep_what_is_open),
    "folds of what is read again stay": (FoldBuffer, "clear", _folds_stay),
    "lost partitions take nothing back": (Engine, "_lose", _lost_is_nothing),
}


NOTICED: dict[str, int] = {"folds of what is read again stay": 319, "a pause outlives its assignment": 33}
"""Of the rarest, a seed that notices: looked at first, which saves half a minute and more."""


def seeds_for(name: str, most: int) -> Iterator[int]:
    """All of the first ``most`` seeds, the likeliest to notice this mutant first."""
    first = (NOTICED | profiles_mutants.NOTICED).get(name, 0)
    yield first
    yield from (seed for seed in range(most) if seed != first)


@contextmanager
def broken(name: str) -> Iterator[None]:
    """The code with one safeguard broken, of the worker or of profiles."""
    owner, attribute, breaking = (MUTANTS | profiles_mutants.MUTANTS)[name]
    with patch.object(owner, attribute, breaking(getattr(owner, attribute))):
        yield
