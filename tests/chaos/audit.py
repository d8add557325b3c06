"""What a committed reader finds in the end, against what was put in: lost, doubled, out of order.

Reads the topics from their beginning, with nothing of the code under test but the byte format of folds.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from schemas.dead import HEADER_OFFSET, HEADER_PARTITION, HEADER_TOPIC
from schemas.folds import decode_block
from schemas.topics import EVENTS_CLICK, EVENTS_DEAD, FOLDS, INPUTS, OPINIONS
from tests.real.proof import SCORES, read_all
from worker.config import KafkaConfig
from worker.kafka.admin import topic_ids

Place = tuple[str, int, int]
EXAMPLES_MAX: Final = 5


class _Source(msgspec.Struct):
    topic: str
    partition: int
    offset: int


class _Output(msgspec.Struct):
    source: _Source
    subject: str = ""


_output = msgspec.json.Decoder(_Output).decode


def commit() -> str:
    """The commit under test, for a campaign's figures; empty where there is no repository."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


@dataclass(slots=True)
class Audit:
    """Counts, and a few examples of each violation. ``outputs`` are scores and dead letters."""

    events: int = 0
    outputs: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled or reordered."""
        return not (self.lost or self.duplicated or self.reordered)

    def add(self, other: Audit) -> None:
        """Take in the counts of another run. Its examples were told with it."""
        self.events += other.events
        self.outputs += other.outputs
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.reordered += other.reordered

    def figures(self) -> dict[str, int]:
        """The counts that a run's last line gives."""
        names = ("events", "lost", "duplicated", "reordered")
        return {name: getattr(self, name) for name in names}

    def note(self, what: str, place: object) -> None:
        """Keep an example."""
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{what} {place}")


def audit(bootstrap: str, kafka: KafkaConfig) -> Audit:
    """Every event's output and folds, exactly once and in order."""
    result = Audit()
    wanted = {
        (kafka.topic(name), message.partition(), message.offset())
        for name in INPUTS
        for message in read_all(bootstrap, kafka.topic(name))
    }
    result.events = len(wanted)
    scored, dead = _outputs(bootstrap, kafka, result)
    for place in wanted - scored:
        result.lost += 1
        result.note("lost", place)
    for place in scored - wanted:
        result.note("output of no event", place)
        result.duplicated += 1
    folded = _folds(bootstrap, kafka, result)
    clicks = {place for place in wanted - dead if place[0] == kafka.topic(EVENTS_CLICK)}
    for place in clicks - folded:
        result.lost += 1
        result.note("fold lost", place)
    _opinions(bootstrap, kafka, result)
    return result


def _outputs(bootstrap: str, kafka: KafkaConfig, result: Audit) -> tuple[set[Place], set[Place]]:
    seen: set[Place] = set()
    dead: set[Place] = set()
    for name in (*SCORES, EVENTS_DEAD):
        last: dict[tuple[int, str, int], int] = {}
        for message in read_all(bootstrap, kafka.topic(name)):
            place = _dead_place(message) if name == EVENTS_DEAD else _place(_output(message.value()))
            result.outputs += 1
            if name == EVENTS_DEAD:
                dead.add(place)
            if place in seen:
                result.duplicated += 1
                result.note(f"doubled in {name}", place)
            seen.add(place)
            lane = (message.partition(), place[0], place[1])
            if place[2] < last.get(lane, -1):
                result.reordered += 1
                result.note(f"out of order in {name}", place)
            last[lane] = place[2]
    return seen, dead


def _folds(bootstrap: str, kafka: KafkaConfig, result: Audit) -> set[Place]:
    counts: Counter[Any] = Counter()
    for kind, name in FOLDS.items():
        for message in read_all(bootstrap, kafka.topic(name)):
            block = decode_block(message.value())
            topics = [block.topic_ids[i] for i in block.topic_index]
            places = zip(topics, block.partition.tolist(), block.offset.tolist(), strict=True)
            counts.update((kind, *place) for place in places)
    for fold, count in counts.items():
        if count > 1:
            result.duplicated += 1
            result.note(f"folded {count} times", fold)
    known = {topic_id: name for name, topic_id in topic_ids(kafka, [kafka.topic(name) for name in INPUTS]).items()}
    return {(known[topic_id], partition, offset) for kind, topic_id, partition, offset in counts if kind == "user"}


def _opinions(bootstrap: str, kafka: KafkaConfig, result: Audit) -> None:
    seen: set[tuple[Any, ...]] = set()
    for message in read_all(bootstrap, kafka.topic(OPINIONS)):
        opinion = _output(message.value())
        key = (*_place(opinion), opinion.subject)
        if key in seen:
            result.duplicated += 1
            result.note("opinion doubled", key)
        seen.add(key)


def _place(output: _Output) -> Place:
    return output.source.topic, output.source.partition, output.source.offset


def _dead_place(message: Any) -> Place:
    head = dict(message.headers() or ())
    return head[HEADER_TOPIC].decode(), int(head[HEADER_PARTITION]), int(head[HEADER_OFFSET])
