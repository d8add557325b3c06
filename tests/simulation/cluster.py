"""A Kafka cluster in a few hundred lines: what the delivery promises rest on, and nothing else.

Partition logs with transactional records, transactional ids with epochs, a consumer group with generations that moves
partitions cooperatively (nobody is given a partition before its owner has let go of it or is expelled), offsets that
are committed with a transaction, and the broker's time-outs. Time is the simulation's. It is stricter than Kafka where
that costs nothing: a member's generation is stale from the moment that the group's moves on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException

from worker.kafka.records import Offsets, Partition

# Apart, so that there are members expelled with a transaction open, and transactions ended under a member that is not.
SESSION_TIMEOUT_S = 6.0
TRANSACTION_TIMEOUT_S = 10.0


def failure(
    code: int, reason: str, *, fatal: bool = False, retriable: bool = False, abort: bool = False
) -> KafkaException:
    """librdkafka's exception, as the client would raise it."""
    return KafkaException(KafkaError(code, reason, fatal=fatal, retriable=retriable, txn_requires_abort=abort))


@dataclass(slots=True)
class Written:
    """One record in a log. ``state`` is open, committed or aborted."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]
    state: str = "committed"


@dataclass(slots=True)
class Transaction:
    """What one transactional id has open."""

    began_s: float
    records: list[Written] = field(default_factory=list)
    offsets: Offsets = field(default_factory=dict)


@dataclass(slots=True)
class TransactionalId:
    """Its epoch rises with every new producer, and when the broker ends its transaction."""

    epoch: int = 0
    open: Transaction | None = None


@dataclass(slots=True)
class Member:
    """One consumer of the group. ``generation`` is what it knows, ``held`` what it has not let go of."""

    heard_s: float
    generation: int = -1
    held: set[Partition] = field(default_factory=set)


class Cluster:
    """See the module's head."""

    def __init__(self, partitions: Iterable[Partition], clock: Callable[[], float]) -> None:
        self.clock = clock
        self.inputs: dict[Partition, list[bytes | None]] = {partition: [] for partition in partitions}
        self.log: list[Written] = []
        self.ids: dict[str, TransactionalId] = {}
        self.members: dict[str, Member] = {}
        self.generation = 0
        self.targets: dict[str, set[Partition]] = {}
        self.committed: Offsets = {}
        self.late_commits: list[tuple[float, str, int]] = []

    # Transactions

    def open_id(self, name: str) -> int:
        """A new producer: what the older one had open is over, and it is fenced."""
        owned = self.ids.setdefault(name, TransactionalId())
        self.end(owned, commit=False)
        owned.epoch += 1
        return owned.epoch

    def transaction(self, name: str, epoch: int, *, begin: bool = False) -> Transaction:
        """What the id has open, begun now if need be. Raises the client's fatal error for a producer that is fenced."""
        self.expire()
        owned = self.ids[name]
        if owned.epoch != epoch:
            raise failure(KafkaError._FENCED, "fenced by a newer producer or the broker's time-out", fatal=True)
        if owned.open is None:
            if not begin:
                raise failure(KafkaError._STATE, "no transaction is open", fatal=True)
            owned.open = Transaction(self.clock())
        return owned.open

    def end(self, owned: TransactionalId, *, commit: bool) -> None:
        """Both or neither: records become visible and offsets move."""
        if owned.open is not None:
            for record in owned.open.records:
                record.state = "committed" if commit else "aborted"
            if commit:
                self.committed.update(owned.open.offsets)
            owned.open = None

    def expire(self) -> None:
        """What the broker does by the clock: end transactions, expel members."""
        now = self.clock()
        for due in [late for late in self.late_commits if late[0] <= now]:
            self.late_commits.remove(due)
            _, name, epoch = due
            if self.ids[name].epoch == epoch:  # else it is of a producer that was fenced meanwhile: refused
                self.end(self.ids[name], commit=True)
        for owned in self.ids.values():
            if owned.open is not None and now - owned.open.began_s > TRANSACTION_TIMEOUT_S:
                self.end(owned, commit=False)
                owned.epoch += 1
        gone = [name for name, member in self.members.items() if now - member.heard_s > SESSION_TIMEOUT_S]
        for name in gone:
            del self.members[name]
        if gone:
            self.balance()

    def unstable_until_s(self, partitions: Iterable[Partition]) -> float:
        """When the broker ends the last transaction that has offsets of these open; 0 where there is none."""
        asked = set(partitions)
        waiting = [t.open for t in self.ids.values() if t.open is not None and asked & t.open.offsets.keys()]
        return max((t.began_s + TRANSACTION_TIMEOUT_S for t in waiting), default=0.0)

    # The group

    def join(self, name: str) -> None:
        """A new member; the others hear of it when they poll."""
        self.members[name] = Member(self.clock())
        self.balance()

    def leave(self, name: str) -> None:
        """A member goes, and lets go of all it held."""
        if self.members.pop(name, None) is not None:
            self.balance()

    def balance(self, shuffled: random.Random | None = None) -> None:
        """A new generation and a new target for each member, with as few moves as can be, or ``shuffled``."""
        self.generation += 1
        names = sorted(self.members)
        self.targets = {name: set() for name in names}
        if not names:
            return
        most = -(-len(self.inputs) // len(names))
        free = set(self.inputs)
        for name in names:
            kept = [] if shuffled is not None else sorted(self.members[name].held & free)[:most]
            self.targets[name].update(kept)
            free.difference_update(kept)
        left = sorted(free)
        if shuffled is not None:
            shuffled.shuffle(left)
        for partition in left:
            self.targets[min(names, key=lambda n: (len(self.targets[n]), n))].add(partition)

    def grantable(self, name: str) -> set[Partition]:
        """What the member is due and nobody else still holds."""
        others = [member.held for other, member in self.members.items() if other != name]
        return self.targets[name] - self.members[name].held - set().union(*others)

    def check(self, name: str, generation: int) -> None:
        """Raises as the coordinator would for offsets of a member that is gone or behind. From nobody it takes any."""
        if not name:
            return
        if name not in self.members:
            raise failure(KafkaError.UNKNOWN_MEMBER_ID, "not a member of the group", abort=True)
        if generation != self.generation:
            raise failure(KafkaError.ILLEGAL_GENERATION, "the group has moved on", abort=True)

    # What readers see

    def visible(self) -> list[Written]:
        """All records that a committed reader sees, in the order written."""
        return [record for record in self.log if record.state == "committed"]

    def append(self, transaction: Transaction, record: Written) -> None:
        """A record of an open transaction."""
        record.state = "open"
        transaction.records.append(record)
        self.log.append(record)
