"""Kafka in memory for the worker's loop: a source and a sink that a test holds by the reins, and a clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence

from worker.errors import KafkaError
from worker.kafka.records import Offsets, OutMessage, Partition, Record
from worker.kafka.sink import Answer
from worker.kafka.source import Polled


class Clock:
    """Time that passes when told to, and a little at every look, so that waiting loops end."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1e-5
        return self.now


class MemorySource:
    """`worker.kafka.source.Source` over lists of values. Assignment, revocation and failures are set by the test."""

    def __init__(self, logs: Mapping[Partition, list[bytes | None]]) -> None:
        self.logs = dict(logs)
        self.committed: Offsets = {}
        self.history: list[Offsets] = []
        self.position: dict[Partition, int] = {}
        self.paused: set[str] = set()
        self.fail_commits = 0
        self.asked: list[int] = []
        self._assign: list[Partition] = list(logs)
        self._revoke: list[Partition] = []
        self._lose: list[Partition] = []
        self._answers: list[tuple[Offsets, str | None]] = []

    def assign(self, *partitions: Partition) -> None:
        self._assign += partitions

    def revoke(self, *partitions: Partition) -> None:
        self._revoke += partitions

    def lose(self, *partitions: Partition) -> None:
        self._lose += partitions

    def poll(self, max_records: int, timeout_s: float, hand_over: Callable[[list[Partition]], None]) -> Polled:
        self.asked.append(max_records)
        polled = Polled([], [], [], self._answers)
        self._answers = []
        if self._revoke:
            gone, self._revoke = self._revoke, []
            hand_over(gone)
            polled.lost += gone
        polled.lost += self._lose
        self._lose = []
        for partition in polled.lost:
            self.position.pop(partition, None)
        for partition in self._assign:
            self.position[partition] = self.committed.get(partition, 0)
            polled.assigned.append(partition)
        self._assign = []
        for partition, position in self.position.items():
            if partition[0] not in self.paused:
                room = max_records - len(polled.records)
                for offset, value in enumerate(self.logs[partition][position : position + room], position):
                    polled.records.append(Record(*partition, offset, 0, b"k", value))
                    self.position[partition] = offset + 1
        return polled

    def pause(self, topics: Container[str] | None = None) -> None:
        self.paused |= {topic for topic, _ in self.position if topics is None or topic in topics}

    def resume(self, topics: Container[str] | None = None) -> None:
        self.paused = {topic for topic in self.paused if topics is not None and topic not in topics}

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        failed = self.fail_commits > 0
        self.fail_commits -= failed
        if not failed:
            self._note(offsets)
        self._answers.append((dict(offsets), "the coordinator is away" if failed else None))

    def commit_now(self, offsets: Mapping[Partition, int]) -> bool:
        self._note(offsets)
        return True

    def lag(self) -> dict[str, int]:
        lag = dict.fromkeys((topic for topic, _ in self.logs), 0)
        for (topic, number), position in self.position.items():
            lag[topic] += len(self.logs[topic, number]) - position
        return lag

    def close(self) -> None:
        self.position.clear()

    def _note(self, offsets: Mapping[Partition, int]) -> None:
        self.committed.update(offsets)
        if offsets:
            self.history.append(dict(offsets))


class MemorySink:
    """A `Sink` that acknowledges at once, unless ``hold``; takes only ``room`` messages while that is set."""

    def __init__(self) -> None:
        self.messages: list[OutMessage] = []
        self.hold = False
        self.room: int | None = None
        self.failure: KafkaError | None = None
        self._waiting: list[OutMessage] = []
        self._marks: list[Offsets] = []

    @property
    def full(self) -> bool:
        return bool(self._waiting)

    @property
    def ready(self) -> bool:
        return True

    @property
    def sealed(self) -> int:
        return len(self._marks)

    def write(self, messages: Sequence[OutMessage]) -> None:
        self._waiting += messages
        self._flow()

    def seal(self, offsets: Offsets) -> None:
        self._marks.append(offsets)

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        self._flow()
        if self.failure is not None:
            raise self.failure
        if self.hold or self._waiting:
            return []
        done, self._marks = self._marks, []
        return [Answer(offsets) for offsets in done]

    def abandon(self) -> bool:
        return False

    def close(self, timeout_s: float) -> None:
        self._waiting.clear()

    def by_topic(self) -> dict[str, list[OutMessage]]:
        found: dict[str, list[OutMessage]] = defaultdict(list)
        for message in self.messages:
            found[message.topic].append(message)
        return found

    def _flow(self) -> None:
        count = len(self._waiting) if self.room is None else max(0, min(self.room, len(self._waiting)))
        if self.room is not None:
            self.room -= count
        self.messages += self._waiting[:count]
        del self._waiting[:count]
