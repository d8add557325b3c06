"""The clients of `tests.simulation.cluster`: a transactional producer and a consumer with librdkafka's
interface, and the worker's own source on such a consumer.

Faults are asked for at every call by name; what the answer means is said at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from tests.simulation.cluster import Cluster, TransactionalId, Written, failure
from worker.config import KafkaConfig
from worker.kafka.records import Partition
from worker.kafka.source import KafkaSource

Fault = Callable[[str], str | None]
"""Asked at every call by its name: what goes wrong with it, or None.

refused     it did not happen, and the transaction must be aborted
retriable   it did not happen, and may be tried again
timeout     nobody knows: a commit is on its way still, and will happen unless the producer is fenced before
happened    it happened, and nobody knows: its answer is lost
fatal       it did not happen, and the producer is of no more use
full        the client's queue has no room
hung        it did not happen, and the call never returns
"""

Rebalanced = Callable[[Any, list[TopicPartition]], None]


@dataclass(frozen=True, slots=True)
class Membership:
    """The group's metadata: who (nobody, for a client that was expelled), and of which generation."""

    name: str
    generation: int


class SimProducer:
    """librdkafka's transactional producer. After a fatal error, or once a time-out left it in doubt, it is broken.

    What was sent and not answered yet may have timed out and be queued again when a transaction is aborted. The abort
    drops it, and the broker takes as many of the next messages for repeats: see `worker.kafka.session`.
    """

    def __init__(self, cluster: Cluster, name: str, fault: Fault, advance: Callable[[float], None]) -> None:
        self._cluster, self._name, self._fault, self._advance = cluster, name, fault, advance
        self._epoch = -1
        self._queue: list[tuple[Written, Any]] = []
        self._abortable = self._began = False
        self._doubtful: str | None = None
        self._unanswered = self._repeats = 0

    def init_transactions(self, timeout_s: float) -> None:
        self._raise(self._fault("init"), timeout_s)
        self._epoch = self._cluster.open_id(self._name)

    def begin_transaction(self) -> None:
        self._usable()
        self._began = True

    def produce(
        self,
        topic: str,
        value: bytes,
        key: bytes | None,
        partition: int,
        on_delivery: Any = None,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> None:
        self._usable()
        if not self._began:
            raise failure(KafkaError._STATE, "no transaction was begun")
        if self._abortable:
            raise failure(KafkaError._STATE, "the transaction must be aborted", abort=True)
        fault = self._fault("produce")
        if fault == "full":
            raise BufferError
        self._raise(fault, 0.0)
        record = Written(topic, None if partition < 0 else partition, key, value, dict(headers or ()))
        self._queue.append((record, on_delivery))
        if self._fault("linger") is None:
            self._flush()

    def poll(self, timeout_s: float) -> int:
        if self._began and not self._abortable:
            try:
                self._flush()
            except KafkaException as error:
                if error.args[0].fatal():
                    raise  # the client raises fatal errors out of whatever serves its callbacks
                self._abortable = True  # told by the next call, as the client does
            else:
                self._unanswered = 0
        self._advance(timeout_s)
        return 0

    def send_offsets_to_transaction(
        self, positions: list[TopicPartition], membership: Membership, timeout_s: float
    ) -> None:
        self._usable()
        fault = self._fault("offsets")
        if fault != "happened":
            self._raise(fault, timeout_s)
        self._flush()
        transaction = self._cluster.transaction(self._name, self._epoch, begin=True)
        try:
            self._cluster.check(membership.name, membership.generation)
        except KafkaException:
            self._abortable = True
            raise
        transaction.offsets.update({(p.topic, p.partition): p.offset for p in positions})
        self._raise(fault, timeout_s)

    def commit_transaction(self, timeout_s: float) -> None:
        self._usable()
        fault = self._fault("commit")
        if fault == "timeout":
            self._flush()
            self._cluster.late_commits.append((self._cluster.clock() + 1.5 * timeout_s, self._name, self._epoch))
        if fault != "happened":
            self._raise(fault, timeout_s)
        self._flush()
        self._cluster.transaction(self._name, self._epoch)
        self._cluster.end(self._id(), commit=True)
        self._began = False
        self._unanswered = 0
        self._raise(fault, timeout_s)

    def abort_transaction(self, timeout_s: float) -> None:
        if self._doubtful is not None:
            raise failure(KafkaError._FATAL, self._doubtful, fatal=True)
        fault = self._fault("abort")
        if fault != "happened":
            self._raise(fault, timeout_s)
        self._repeats += len(self._queue) + self._unanswered
        self._unanswered = 0
        self._queue.clear()
        if self._id().epoch != self._epoch:
            raise failure(KafkaError._FENCED, "fenced", fatal=True)
        self._cluster.end(self._id(), commit=False)
        self._began = self._abortable = False
        self._raise(fault, timeout_s)

    def purge(self) -> None:
        self._queue.clear()

    def _id(self) -> TransactionalId:
        self._cluster.expire()
        return self._cluster.ids[self._name]

    def _flush(self) -> None:
        if self._began and self._id().epoch != self._epoch:
            raise failure(KafkaError._FENCED, "fenced by a newer producer or the broker's time-out", fatal=True)
        for record, on_delivery in self._queue:
            transaction = self._cluster.transaction(self._name, self._epoch, begin=True)
            if self._repeats:
                self._repeats -= 1
            else:
                self._cluster.append(transaction, record)
                self._unanswered += 1
            if on_delivery is not None:
                on_delivery(None, None)
        self._queue.clear()

    def _usable(self) -> None:
        if self._doubtful is not None:
            raise failure(KafkaError._FATAL, self._doubtful, fatal=True)

    def _raise(self, fault: str | None, timeout_s: float) -> None:
        if fault in (None, "full", "linger"):
            return
        if fault == "retriable":
            raise failure(KafkaError.CONCURRENT_TRANSACTIONS, "try again", retriable=True)
        if fault == "refused":
            self._abortable = True
            raise failure(KafkaError.TRANSACTION_COORDINATOR_FENCED, "refused", abort=True)
        if fault == "fatal":
            self._doubtful = "a fatal error came before"
            raise failure(KafkaError._FATAL, "fatal", fatal=True)
        self._advance(timeout_s)
        if fault == "hung":  # never returned, says who watches
            raise TimeoutError
        raise failure(KafkaError._TIMED_OUT, "no answer", retriable=True)


@dataclass(frozen=True, slots=True)
class SimMessage:
    """A record as the client gives it."""

    place: Partition
    at: int
    content: bytes | None

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self.place[0]

    def partition(self) -> int:
        return self.place[1]

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 1, 0

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> None:
        return None


class SimConsumer:
    """librdkafka's consumer, a member of a cooperative group. A pause outlives the assignment, as it does there."""

    def __init__(
        self, cluster: Cluster, name: str, sizes: Callable[[int], int], advance: Callable[[float], None]
    ) -> None:
        self._cluster, self._name, self._sizes, self._advance = cluster, name, sizes, advance
        self._position: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        cluster.join(name)

    def subscribe(self, topics: list[str], on_assign: Rebalanced, on_revoke: Rebalanced, on_lost: Rebalanced) -> None:
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost

    def unsubscribe(self) -> None:
        self._position.clear()

    def assignment(self) -> list[TopicPartition]:
        return _at(self._position)

    def consume(self, most: int, timeout_s: float) -> list[SimMessage]:
        cluster = self._cluster
        cluster.expire()
        if self._name not in cluster.members:
            if self._position:
                self._on_lost(self, _at(self._position))
            cluster.join(self._name)
        member = cluster.members[self._name]
        member.heard_s = cluster.clock()
        member.generation = cluster.generation
        moved = sorted(set(self._position) - cluster.targets[self._name])
        if moved:
            self._on_revoke(self, _at(moved))
            if self._name in cluster.members:
                cluster.members[self._name].held.difference_update(moved)
        if self._name in cluster.members and cluster.members[self._name].generation == cluster.generation:
            fresh = sorted(cluster.grantable(self._name))
            cluster.members[self._name].held.update(fresh)
            if fresh:
                self._on_assign(self, _at(fresh))
        return self._fetch(self._sizes(most))

    def poll(self, timeout_s: float) -> None:
        """Asked just after `consume` brought nothing: time passes, and nothing comes."""
        self._advance(timeout_s)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._paused.update((p.topic, p.partition) for p in partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._paused.difference_update((p.topic, p.partition) for p in partitions)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._position.update({(p.topic, p.partition): max(p.offset, 0) for p in partitions})

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._position.pop((partition.topic, partition.partition), None)

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        raise AssertionError("offsets are committed in the transaction and nowhere else")

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        cluster = self._cluster
        asked = [(p.topic, p.partition) for p in partitions]
        while (until_s := cluster.unstable_until_s(asked)) > 0:
            self._advance(max(until_s - cluster.clock(), 0.0) + 0.01)
            cluster.expire()
        return [TopicPartition(*p, cluster.committed.get(p, OFFSET_INVALID)) for p in asked]

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        asked = [(p.topic, p.partition) for p in partitions]
        return [TopicPartition(*p, self._position.get(p, OFFSET_INVALID)) for p in asked]

    def get_watermark_offsets(self, partition: TopicPartition, cached: bool) -> tuple[int, int]:
        return 0, len(self._cluster.inputs[partition.topic, partition.partition])

    def consumer_group_metadata(self) -> Membership:
        member = self._cluster.members.get(self._name)
        return Membership("", -1) if member is None else Membership(self._name, member.generation)

    def memberid(self) -> str:
        return self.consumer_group_metadata().name

    def heartbeat(self) -> None:
        """The client's own thread: the member is alive, whether it polls or not."""
        member = self._cluster.members.get(self._name)
        if member is not None:
            member.heard_s = self._cluster.clock()

    def close(self) -> None:
        self._cluster.leave(self._name)

    def _fetch(self, most: int) -> list[SimMessage]:
        messages: list[SimMessage] = []
        for partition in sorted(self._position):
            if partition in self._paused:
                continue
            log, first = self._cluster.inputs[partition], self._position[partition]
            last = min(len(log), first + most - len(messages))
            messages += [SimMessage(partition, offset, log[offset]) for offset in range(first, last)]
            self._position[partition] = max(first, last)
        return messages


def sim_source(consumer: SimConsumer, topics: Iterable[str]) -> KafkaSource:
    """The real source on a simulated consumer."""
    return KafkaSource(
        KafkaConfig(embedded=True), {topic: topic for topic in topics}, "group", connect=lambda settings: consumer
    )


def _at(partitions: Iterable[Partition]) -> list[TopicPartition]:
    return [TopicPartition(*partition) for partition in partitions]
