"""A worker in simulated time: a device that takes exactly what a line says, a shop that produces at a given rate.

Nothing sleeps; the same seed gives the same run.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry

from model.null import NullScorer
from tests.fakes import Clock, MemorySink, MemorySource
from worker.config import Config, KafkaConfig, WorkerConfig
from worker.kafka.records import Partition
from worker.metrics import WorkerMetrics
from worker.scoring.batcher import Batch
from worker.scoring.cost import CostModel
from worker.scoring.decode import LANES
from worker.scoring.device import DEPTH
from worker.scoring.pipeline import build
from worker.scoring.results import Scored
from worker.scoring.routing import load_routing
from worker.scoring.score import BatchScorer, NoStates

NOW_MS = 1_700_000_000_000
TEXT = {"click": "title", "review": "text", "service": "text"}
_SOURCE = msgspec.json.Decoder(dict[str, Any])


class FlatHead:
    """Every click is as likely."""

    def click(self, features: Any) -> Any:
        return np.full(len(features), 0.25, np.float32)

    purchase = click


class SimulatedDevice:
    """A `Device`: the null model's results, after as long as ``cost`` says. Waiting moves the clock."""

    def __init__(self, scorer: BatchScorer, cost: CostModel, clock: Clock) -> None:
        self._scorer, self._cost, self._clock = scorer, cost, clock
        self._flying: list[tuple[float, float, Batch]] = []
        self.busy_s = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    @property
    def has_room(self) -> bool:
        return len(self._flying) < DEPTH

    def submit(self, batch: Batch) -> None:
        takes = self._cost.seconds(batch.tokens)
        start = max([self._clock.now, *(end for end, _, _ in self._flying)])
        self._flying.append((start + takes, takes, batch))
        self.busy_s += takes

    def collect(self, timeout_s: float) -> list[Scored]:
        if self._flying and self._flying[0][0] <= self._clock.now + timeout_s:
            self._clock.now = max(self._clock.now, self._flying[0][0])
        else:
            self._clock.now += timeout_s
        done = [each for each in self._flying if each[0] <= self._clock.now]
        self._flying = self._flying[len(done) :]
        return [
            msgspec.structs.replace(self._scorer.compute(self._scorer.fetch(batch)), total_s=takes, encode_s=takes)
            for _, takes, batch in done
        ]

    def close(self) -> None:
        self._flying.clear()


class SimulatedShop:
    """A worker, the topics it reads, and what came of every event: (topic, produced at, seconds to its score).

    ``mix`` gives per topic the share of events and the tokens of each one's text, which no other event has.
    """

    def __init__(
        self, mix: Mapping[str, tuple[float, int]], cost: CostModel, backfill: str | None = None, **worker: Any
    ) -> None:
        self.mix, self.clock, self.random = mix, Clock(), random.Random(7)
        self._kind = {topic: topic for topic in LANES} | ({backfill: "events.review"} if backfill else {})
        self.source = MemorySource({(topic, partition): [] for topic in self._kind for partition in range(4)})
        self.sink, scorer, routing = MemorySink(), NullScorer(), load_routing()
        kafka = KafkaConfig(embedded=True, fold_shards=4, backfill={backfill: "events.review"} if backfill else {})
        config = Config(kafka=kafka, worker=WorkerConfig(**worker))
        scored = BatchScorer(scorer, FlatHead(), lambda *columns: columns[2], NoStates(), (3600.0,), routing.heads)
        self.device = SimulatedDevice(scored, cost, self.clock)
        metrics = WorkerMetrics(CollectorRegistry())
        edges = self.source, self.sink, self.device, metrics
        self.engine = build(config, scorer, routing, *edges, clock=self.clock, wall_ms=lambda: NOW_MS)
        self.produced: dict[Partition, list[float]] = defaultdict(list)
        self.scored: list[tuple[str, float, float]] = []
        self.loads: list[tuple[float, int]] = []
        self._owed = 0.0
        self._events = 0

    def produce(self, topic: str, tokens: int) -> None:
        """One event, now."""
        self._events += 1
        text = f"{self._events} ".ljust(4 * tokens, "x")
        lane = LANES[self._kind[topic]]
        partition = (topic, self.random.randrange(4))
        event = {"event_id": "e", "event_time_ms": NOW_MS, "user_id": f"u{self._events % 50}", TEXT[lane]: text}
        self.source.logs[partition].append(msgspec.json.encode(event))
        self.produced[partition].append(self.clock.now)

    def run(self, seconds: float, rate: Callable[[float], float]) -> None:
        """Let time pass, with ``rate`` of its time from now events a second."""
        began = before = self.clock.now
        topics, shares = list(self.mix), [share for share, _ in self.mix.values()]
        while (now := self.clock.now) < began + seconds:
            self._owed += (now - before) * rate(now - began)
            before = now
            for topic in self.random.choices(topics, shares, k=int(self._owed)):
                self.produce(topic, self.mix[topic][1])
            self._owed %= 1
            self.engine.step()
            if not self.device.in_flight:
                self.clock.now += 0.002  # an idle loop waits for the next record
            self._note()

    def lag(self, topic: str) -> int:
        """Events of a topic that are not committed."""
        logs = self.source.logs.items()
        return sum(len(log) - self.source.committed.get(p, 0) for p, log in logs if p[0] == topic)

    def latencies(self, topic: str, after: float, before: float) -> list[float]:
        """Sorted seconds from produced to scored, of events produced between two times of the clock."""
        return sorted(taken for its, at, taken in self.scored if its == topic and after <= at < before)

    def _note(self) -> None:
        self.loads.append((self.clock.now, self.engine.health()[1]["load"]))
        for message in self.sink.messages:
            if message.topic.startswith("scores."):
                source = _SOURCE.decode(message.value)["source"]
                at = self.produced[source["topic"], source["partition"]][source["offset"]]
                self.scored.append((source["topic"], at, self.clock.now - at))
        self.sink.messages.clear()
