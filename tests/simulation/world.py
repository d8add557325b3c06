"""One seeded run of the worker's real core against the simulated cluster, and what is checked at its end.

A seed gives the events, the faults and the order in which workers take their turns; the same seed and faults give
the same run, record for record. After the last fault everything must be finished, and then a committed reader must see
each event's output exactly once, in source order, and each of its folds exactly once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
from confluent_kafka import TopicPartition
from prometheus_client import CollectorRegistry

from model.null import NullScorer
from model.scoring import Floats, Prepared
from schemas.dead import HEADER_OFFSET, HEADER_PARTITION, HEADER_TOPIC
from schemas.folds import decode_block
from tests.simulation.clients import SimConsumer, SimProducer, sim_source
from tests.simulation.cluster import TRANSACTION_TIMEOUT_S
from tests.simulation.turns import TICKS, Fault, Outcome, SimProcess, Turns
from worker import logs
from worker.config import Config, KafkaConfig, WorkerConfig
from worker.kafka.records import Partition
from worker.kafka.session import Session
from worker.kafka.transaction import TransactionalSink
from worker.metrics import WorkerMetrics
from worker.scoring.device import InlineDevice
from worker.scoring.pipeline import build
from worker.scoring.results import Scored
from worker.scoring.routing import load_routing
from worker.scoring.score import BatchScorer, NoStates

TOPICS = ("events.click", "events.review", "events.service")
PARTITIONS = 2
WORKERS = 3
EVENTS = 90
NOW_MS = 1_700_000_000_000
CALLS = ("produce", "linger", "offsets", "commit", "abort", "init")
FAILURES = ("refused", "retriable", "timeout", "happened", "fatal")
KINDS = (*4 * ("call",), *2 * ("pause", "nap", "stuck", "start"), "crash", "stop", "away", "hijack", "device", "skip",
         "move")  # fmt: skip
CONFIG = Config(
    kafka=KafkaConfig(embedded=True, fold_shards=2),
    worker=WorkerConfig(max_batch_units=8, poll_records=50, queue_tokens_high=40, queue_tokens_low=10,
                        max_batch_tokens=200),
)  # fmt: skip
# Both only cost time to make; nothing that is checked reads the metrics.
ROUTING = load_routing()
METRICS = WorkerMetrics(CollectorRegistry())


def faults_of(seed: int) -> list[Fault]:
    """The faults that a seed brings, in order of time. Often two or more at once."""
    rng = random.Random(f"faults {seed}")
    faults: list[Fault] = []
    for _ in range(rng.randrange(2, 14)):
        tick = faults[-1].tick if faults and rng.random() < 0.3 else rng.randrange(TICKS)
        kind, worker = rng.choice(KINDS), rng.randrange(WORKERS)
        detail, amount = "", rng.random()
        if kind == "call":
            call = rng.choice(CALLS)
            fault = "full" if call == "produce" and rng.random() < 0.5 else rng.choice(FAILURES)
            detail = f"{call}:{'delay' if call == 'linger' else fault}"
        faults.append(Fault(tick, kind, worker, detail, amount))
    return sorted(faults, key=lambda fault: fault.tick)


class SimScorer(NullScorer):
    """The null model with a device that fails when told to, and always on texts of one length."""

    broken = False

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        if self.broken:
            self.broken = False
            raise RuntimeError("the device failed")
        if any(text.tokens == 13 for text in prepared):
            raise RuntimeError("the model cannot bear this text")
        return super().encode(prepared)


class SimDevice(InlineDevice):
    """A device that takes its time: partitions may move while it is at work."""

    def __init__(self, scorer: BatchScorer, world: World) -> None:
        super().__init__(scorer)
        self._world = world

    def collect(self, timeout_s: float) -> list[Scored]:
        if self._world.rng.random() < 0.7:
            self._world.advance(timeout_s)
            return []
        return super().collect(timeout_s)


class Head:
    """A click head that says a quarter."""

    def click(self, features: Any) -> Any:
        return np.full(len(features), 0.25, np.float32)

    purchase = click


class SimWorker(SimProcess):
    """One process: the real engine and transactional sink, the simulated rest."""

    def __init__(self, world: World, slot: int) -> None:
        super().__init__(world)
        self.scorer = SimScorer()
        name = f"{world.role}.{slot}"
        self.consumer = SimConsumer(world.cluster, f"{slot}-{world.born}", world.size, world.advance)
        self.source = sim_source(self.consumer, TOPICS)
        session = Session(
            lambda: SimProducer(world.cluster, name, self.fault, world.advance),
            self.source.committed,
            lambda partition, offset: TopicPartition(*partition, offset),
            str,
            TRANSACTION_TIMEOUT_S,
            clock=world.clock,
            pause=world.advance,
            watch=lambda call, timeout_s: call(),  # on this thread: what hangs here is a fault
        )
        self.sink = TransactionalSink(session, self.executor, self._membership, world.clock, self.await_call)
        batches = BatchScorer(
            self.scorer, Head(), lambda *columns: columns[2], NoStates(), (3600.0,), ROUTING.heads, world.clock
        )
        self.engine = build(
            CONFIG,
            self.scorer,
            ROUTING,
            self.source,
            self.sink,
            SimDevice(batches, world),
            METRICS,
            clock=world.clock,
            wall_ms=lambda: NOW_MS,
        )

    def turn(self) -> None:
        """One step of the loop, and perhaps what waits on the executor."""
        self.engine.step()
        if self.world.rng.random() < 0.5:
            self.run_calls()

    def stop(self) -> None:
        """A clean end."""
        self.engine.finish()
        self.sink.close(10.0)
        self.source.close()

    def heartbeat(self) -> None:
        """The client's own thread."""
        self.consumer.heartbeat()

    def mend(self) -> None:
        """No more faults."""
        super().mend()
        self.scorer.broken = False

    def _membership(self) -> object | None:
        # The worst moment to fall asleep: all is ready to be committed, and the group goes on meanwhile.
        self.nap("membership")
        return self.source.membership()


class World(Turns):
    """Cluster, clock and workers of one run."""

    role = "worker"

    def __init__(self, seed: int, faults: Sequence[Fault]) -> None:
        partitions: list[Partition] = [(topic, p) for topic in TOPICS for p in range(PARTITIONS)]
        super().__init__(seed, faults, partitions)
        rng = random.Random(f"events {seed}")
        self._arriving = [(rng.choice(partitions), _event(rng, n)) for n in range(rng.randrange(EVENTS // 2, EVENTS))]

    def _born(self, slot: int) -> SimProcess:
        return SimWorker(self, slot)

    def _happen_to(self, process: Any, fault: Fault) -> None:
        if fault.kind == "device":
            process.scorer.broken = True
        super()._happen_to(process, fault)

    def _check(self) -> None:
        wanted = [(*p, offset) for p, log in self.cluster.inputs.items() for offset in range(len(log))]
        violations = self.violations
        scored: list[tuple[str, int, int]] = []
        dead: set[tuple[str, int, int]] = set()
        folds: Counter[tuple[Any, ...]] = Counter()
        opinions: Counter[tuple[Any, ...]] = Counter()
        for record in self.cluster.visible():
            self._trace.update(record.value)
            if record.topic.startswith("scores."):
                scored.append(_source(record.value))
            elif record.topic == "events.dead":
                head = record.headers
                scored.append((head[HEADER_TOPIC].decode(), int(head[HEADER_PARTITION]), int(head[HEADER_OFFSET])))
                dead.add(scored[-1])
            elif record.topic.startswith("folds."):
                folds.update(_folds(record.value))
            elif record.topic == "opinions":
                opinions[(*_source(record.value), msgspec.json.decode(record.value)["subject"])] += 1
        counts = Counter(scored)
        violations += [f"lost: {p} has no output" for p in wanted if not counts[p]]
        violations += [f"double: {p} has {n} outputs" for p, n in counts.items() if n > 1]
        violations += [f"double: {n} folds of {p}" for p, n in folds.items() if n > 1]
        violations += [f"double: {n} opinions of {p}" for p, n in opinions.items() if n > 1]
        violations += [f"reordered: {p}" for p in self.cluster.inputs if (own := _of(scored, p)) != sorted(own)]
        violations += [f"lost: no fold of {p}" for p in self._clicks() if p not in dead and ("user", *p) not in folds]
        for partition, log in self.cluster.inputs.items():
            if self.cluster.committed.get(partition, 0) > len(log):
                violations.append(f"committed beyond the end: {partition}")

    def _clicks(self) -> list[tuple[str, int, int]]:
        """Positions of the events that change their user's state."""
        logs = self.cluster.inputs.items()
        return [(*p, offset) for p, log in logs if p[0] == "events.click" for offset in range(len(log))]


def _event(rng: random.Random, n: int) -> bytes | None:
    if rng.random() < 0.08:
        return rng.choice([None, b"", b"[]", b"\xff\xfe"])
    text = f"thing {n}" if rng.random() < 0.9 else "x" * 4 * 13
    event = {
        "event_id": f"e{n}",
        "event_time_ms": NOW_MS - 100_000 + n,
        "user_id": f"u{rng.randrange(5)}",
        "text": text,
    }
    event |= {"title": text, "item_id": f"i{rng.randrange(4)}", "clicked": rng.random() < 0.5}
    return msgspec.json.encode(event)


def _source(value: bytes) -> tuple[str, int, int]:
    source = msgspec.json.decode(value)["source"]
    return source["topic"], source["partition"], source["offset"]


def _folds(value: bytes) -> list[tuple[Any, ...]]:
    block = decode_block(value)
    topics = [block.topic_ids[i] for i in block.topic_index]
    places = zip(topics, block.partition.tolist(), block.offset.tolist(), strict=True)
    return [(block.kind, *place) for place in places]


def _of(scored: list[tuple[str, int, int]], partition: Partition) -> list[int]:
    return [offset for topic, p, offset in scored if (topic, p) == partition]


def simulate(seed: int, faults: Sequence[Fault] | None = None) -> Outcome:
    """Run a seed, with its own faults or with those given."""
    # Else the key of pseudonyms, and with it every opinion's author, would be another in every process.
    with patch.object(logs, "_key", lambda: b"simulation"):
        return World(seed, faults_of(seed) if faults is None else faults).run()
