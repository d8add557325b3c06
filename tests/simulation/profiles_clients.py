"""What stands at the edges of a simulated profiles process: its member of the group, readers, the dead letters.

As in `tests.simulation.clients`, faults are asked for at every call by name; ``refused`` means that it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, TopicPartition

from schemas.redis_keys import Kind
from schemas.topics import FOLDS
from tests.simulation.clients import Membership
from tests.simulation.cluster import Cluster, Written
from tests.simulation.folds import MARK
from worker.errors import KafkaError
from worker.kafka.clients import REQUEST_TIMEOUT_S
from worker.kafka.records import Offsets, OutMessage, Partition
from worker.kafka.sink import Answer
from worker.privacy.erasures import Erasures
from worker.profiles.foldstream import ShardId

KIND: dict[str, Kind] = {topic: kind for kind, topic in FOLDS.items()}  # type: ignore[misc]


@dataclass(slots=True)
class Hands:
    """How a client of a process reaches the world: names as in `tests.simulation.turns.SimProcess`."""

    fault: Callable[[str], str | None]
    nap: Callable[[str], None]
    advance: Callable[[float], None]

    def refused(self, call: str) -> None:
        """Raises `KafkaError` when the call fails."""
        self.nap(call)
        if self.fault(call) is not None:
            raise KafkaError(f"{call}: refused")


class SimFoldStream:
    """`worker.profiles.foldstream.FoldStream`."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        sizes: Callable[[int], int],
        hands: Hands,
        callbacks: Sequence[Callable[[list[ShardId]], None]],
    ) -> None:
        self._cluster, self._name, self._sizes, self._hands = cluster, name, sizes, hands
        self._assigned, self._revoked, self._lost = callbacks
        self._position: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._heard: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        cluster.join(name)

    def topic(self, kind: Kind) -> str:
        return FOLDS[kind]

    def topic_id(self, kind: Kind) -> str:
        return f"id of {FOLDS[kind]}"

    def poll(self, max_blocks: int, timeout_s: float) -> dict[ShardId, list[tuple[int, bytes | None]]]:
        self._hands.nap("poll")
        cluster, name = self._cluster, self._name
        cluster.expire()
        if name not in cluster.members:
            gone = sorted(self._position)
            if gone:
                self._lost(_ids(gone))
            self._position.clear()
            cluster.join(name)
        member = cluster.members[name]
        member.heard_s = cluster.clock()
        member.generation = cluster.generation
        moved = sorted(set(self._position) - cluster.targets[name])
        if moved:
            self._revoked(_ids(moved))
            for partition in moved:
                self._position.pop(partition, None)
            if name in cluster.members:
                cluster.members[name].held.difference_update(moved)
        if name in cluster.members and cluster.members[name].generation == cluster.generation:
            fresh = sorted(cluster.grantable(name))
            cluster.members[name].held.update(fresh)
            self._position.update(dict.fromkeys(fresh, 0))
            self._paused.update(fresh)
            if fresh:
                self._assigned(_ids(fresh))
        found = self._fetch(self._sizes(max_blocks))
        self._hands.advance(0.0 if found else timeout_s)
        return found

    def bounds(self, shard: ShardId) -> tuple[int, int]:
        self._hands.refused("bounds")
        return 0, len(self._cluster.inputs[_at(shard)])

    def behind(self, shard: ShardId, position: int) -> int:
        return max(0, self._heard.get(_at(shard), -1) - max(position, self.ended(shard)))

    def ended(self, shard: ShardId) -> int:
        return self._ends.get(_at(shard), -1)

    def published(self, shard: ShardId) -> int | None:
        self._hands.refused("published")
        cluster, partition = self._cluster, _at(shard)
        deadline_s = cluster.clock() + REQUEST_TIMEOUT_S
        cluster.expire()
        # The broker tells no offset while a transaction that may change it is open.
        while cluster.unstable_until_s([partition]) > 0:
            if cluster.clock() > deadline_s:
                raise KafkaError("published: the group's offset is not settled")
            self._hands.advance(0.2)
            cluster.expire()
        return cluster.committed.get(partition)

    def start(self, shard: ShardId, offset: int) -> bool:
        if self._hands.fault("start") is not None:
            return False
        if _at(shard) not in self._position:
            return False
        self._position[_at(shard)] = offset
        self._ends.pop(_at(shard), None)
        self._paused.discard(_at(shard))
        return True

    def pause(self, shards: Iterable[ShardId]) -> None:
        self._paused.update(_at(shard) for shard in shards)

    def metadata(self) -> Membership:
        member = self._cluster.members.get(self._name)
        return Membership("", -1) if member is None else Membership(self._name, member.generation)

    def membership(self) -> Membership | None:
        # The worst moment to fall asleep: all is ready to be committed, and the group goes on meanwhile.
        self._hands.nap("membership")
        metadata = self.metadata()
        return metadata if metadata.name else None

    def commit(self, published: dict[ShardId, int]) -> bool:
        raise AssertionError("offsets are committed in the transaction and nowhere else")

    def heartbeat(self) -> None:
        """The client's own thread: the member is alive, whether it polls or not."""
        member = self._cluster.members.get(self._name)
        if member is not None:
            member.heard_s = self._cluster.clock()

    def close(self) -> None:
        held = sorted(self._position)
        if held and self._name in self._cluster.members:
            self._revoked(_ids(held))
        self._cluster.leave(self._name)

    def _fetch(self, most: int) -> dict[ShardId, list[tuple[int, bytes | None]]]:
        found: dict[ShardId, list[tuple[int, bytes | None]]] = {}
        for partition in sorted(self._position):
            if partition in self._paused or not most:
                continue
            log, first = self._cluster.inputs[partition], self._position[partition]
            self._heard[partition] = len(log)  # the client hears of what it fetches, and of nothing else
            last = min(len(log), first + most)
            if last > first:
                blocks = [each for each in enumerate(log[first:last], first) if each[1] != MARK]
                if blocks:
                    found[_id(partition)] = blocks
                self._position[partition] = last
                most -= last - first
            if last == len(log):
                self._ends[partition] = last
        return found


class SimReadback:
    """`worker.kafka.readback.Readback` of committed records, up to the first that is not decided."""

    def __init__(self, cluster: Cluster, hands: Hands) -> None:
        self._cluster, self._hands = cluster, hands

    def read(self, parts: Sequence[TopicPartition]) -> Generator[Any, None, None]:
        self._hands.nap("snapshot")
        self._cluster.expire()
        places = {(part.topic, part.partition) for part in parts}
        for offset, record in enumerate(list(self._cluster.log)):
            if (record.topic, record.partition) not in places or record.state == "aborted":
                continue
            if record.state == "open":
                break
            yield SimMessage(record, offset)
            if self._hands.fault("snapshot") is not None:
                raise KafkaError("snapshot: no answer")

    def close(self) -> None:
        """Nothing is held."""


class SimMessage:
    """librdkafka's message, as far as it is read."""

    def __init__(self, record: Written, offset: int) -> None:
        self._record, self._offset = record, offset

    def key(self) -> bytes | None:
        return self._record.key

    def value(self) -> bytes | None:
        return self._record.value

    def headers(self) -> list[tuple[str, bytes]]:
        return list(self._record.headers.items())

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_NOT_AVAILABLE, 0


class SimDead:
    """The sink for copies of what cannot be read; it is asked for nothing else."""

    def __init__(self, cluster: Cluster, hands: Hands) -> None:
        self._cluster, self._hands = cluster, hands

    def write(self, messages: Sequence[OutMessage]) -> None:
        self._hands.refused("dead")
        for each in messages:
            written = Written(each.topic, each.partition, each.key, each.value or b"", dict(each.headers or ()))
            self._cluster.log.append(written)

    def seal(self, offsets: Offsets) -> None:
        """Written is safe here."""

    def poll(self, timeout_s: float) -> list[Answer]:
        return [Answer({})]

    def close(self, timeout_s: float) -> None:
        """Nothing is held."""


class SimErasures:
    """`worker.privacy.erasure_feed.ErasureFeed`, of nobody."""

    topic_id = "id-of-erasures"

    def __init__(self) -> None:
        self.known = Erasures()

    def poll(self) -> bool:
        return False

    def catch_up(self, offset: int) -> None:
        """There is nothing."""

    def close(self) -> None:
        """Nothing is held."""


def _at(shard: ShardId) -> Partition:
    return FOLDS[shard[0]], shard[1]


def _id(partition: Partition) -> ShardId:
    return KIND[partition[0]], partition[1]


def _ids(partitions: Iterable[Partition]) -> list[ShardId]:
    return [_id(partition) for partition in partitions]
