"""One seeded run of the worker's real core against the simulated cluster, and what is checked at its end.

A seed gives the events, the faults and the order in which workers take their turns; the same seed and faults give
the same run, record for record. After the last fault everything must be finished, and then a committed reader must see
each event's output exactly once, in source order, and each of its folds exactly once.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
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
from tests.simulation.clients import Membership, SimProducer, SimSource
from tests.simulation.cluster import TRANSACTION_TIMEOUT_S, Cluster
from worker import logs
from worker.config import Config, KafkaConfig, WorkerConfig
from worker.errors import MillraceError
from worker.kafka.records import Partition
from worker.kafka.session import Session
from worker.kafka.transaction import TransactionalSink
from worker.metrics import WorkerMetrics
from worker.scoring.device import InlineDevice
from worker.scoring.pipeline import build
from worker.scoring.routing import load_routing
from worker.scoring.score import BatchScorer, NoStates, Scored

TOPICS = ("events.click", "events.review", "events.service")
PARTITIONS = 2
WORKERS = 3
EVENTS = 90
TICKS = 400
"""Turns in which faults may happen; after them there are none."""
TICKS_MAX = 6000
NOW_MS = 1_700_000_000_000
CALLS = ("produce", "linger", "offsets", "commit", "abort", "init")
FAILURES = ("refused", "retriable", "timeout", "happened", "fatal")
KINDS = (*4 * ("call",), *2 * ("pause", "nap", "stuck", "start"), "crash", "stop", "away", "hijack", "device", "skip",
         "move")  # fmt: skip
CONFIG = Config(
    kafka=KafkaConfig(embedded=True, fold_shards=2),
    worker=WorkerConfig(max_batch_units=8, poll_records=50, queue_tokens_high=400, queue_tokens_low=100,
                        max_batch_tokens=200),
)  # fmt: skip
# Both only cost time to make; nothing that is checked reads the metrics.
ROUTING = load_routing()
METRICS = WorkerMetrics(CollectorRegistry())


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """What goes wrong at a turn, to which worker; ``detail`` and ``amount`` mean what the kind wants."""

    tick: int
    kind: str
    worker: int
    detail: str = ""
    amount: float = 0.0


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


@dataclass(slots=True)
class Outcome:
    """What a run came to. ``violations`` are empty when all promises were kept."""

    violations: list[str]
    digest: str
    events: int
    happened: Counter[str]


class SimExecutor(Executor):
    """Runs a call when the world says so, on the world's own thread."""

    def __init__(self) -> None:
        self._calls: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, call: Any, /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.append((future, lambda: call(*args, **named)))
        return future

    def run(self) -> None:
        """Everything that waits."""
        calls, self._calls = self._calls, []
        for future, call in calls:
            try:
                future.set_result(call())
            except Exception as error:  # noqa: BLE001 an executor passes on whatever it was
                future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.run()


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


class SimWorker:
    """One process: the real engine and transactional sink, the simulated rest."""

    def __init__(self, world: World, slot: int) -> None:
        self._world = world
        self.paused_until_s = self.stuck_until_s = self.nap_s = 0.0
        self.faults: dict[str, list[str]] = {}
        self.executor = SimExecutor()
        self.scorer = SimScorer()
        name = f"worker.{slot}"
        world.born += 1
        self.source = SimSource(world.cluster, f"{slot}-{world.born}", world.size, world.advance)
        session = Session(
            lambda: SimProducer(world.cluster, name, self._fault, world.advance),
            self.source.committed,
            lambda partition, offset: TopicPartition(*partition, offset),
            str,
            TRANSACTION_TIMEOUT_S,
            clock=world.clock,
            pause=world.advance,
        )
        self.sink = TransactionalSink(session, self.executor, self._membership, world.clock, self._wait)
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
        if self._world.rng.random() < 0.5:
            self._run()

    def stop(self) -> None:
        """A clean end."""
        self.engine.finish()
        self.sink.close(10.0)
        self.source.close()

    def _wait(self, call: Future[bool], timeout_s: float) -> bool:
        if self._world.rng.random() < 0.6:
            self._run()
        self._world.advance(0.3 if self.stuck_until_s > self._world.clock() else timeout_s)
        return call.done()

    def _membership(self) -> Membership | None:
        # The worst moment to fall asleep: all is ready to be committed, and the group goes on meanwhile.
        if self.nap_s:
            self._world.nap(self)
        return self.source.membership()

    def _run(self) -> None:
        if self.stuck_until_s <= self._world.clock():
            self.executor.run()

    def _fault(self, call: str) -> str | None:
        if self._world.clock() < self._world.away_until_s and call in ("init", "offsets", "commit", "abort"):
            return "timeout"
        waiting = self.faults.get(call)
        return waiting.pop(0) if waiting else None


class World:
    """Cluster, clock and workers of one run."""

    def __init__(self, seed: int, faults: Sequence[Fault]) -> None:
        self.rng = random.Random(f"order {seed}")
        self._now = 1000.0
        self.away_until_s = 0.0
        self.born = 0
        self.workers: dict[int, SimWorker] = {}
        self.happened: Counter[str] = Counter()
        self._faults = list(faults)
        self._trace = hashlib.blake2b(digest_size=16)
        partitions: list[Partition] = [(topic, p) for topic in TOPICS for p in range(PARTITIONS)]
        self.cluster = Cluster(partitions, self.clock)
        rng = random.Random(f"events {seed}")
        self._events = [(rng.choice(partitions), _event(rng, n)) for n in range(rng.randrange(EVENTS // 2, EVENTS))]

    def run(self) -> Outcome:
        """To the end, or to `TICKS_MAX` turns."""
        total = len(self._events)
        for slot in range(2):
            self._start(slot)
        violations: list[str] = []
        for tick in range(TICKS_MAX):
            self._arrive(tick, total)
            while self._faults and self._faults[0].tick <= tick:
                self._happen(self._faults.pop(0))
            if tick == TICKS:
                self._mend()
            if tick > TICKS and self._finished():
                break
            self._turn(tick)
        else:
            violations.append(f"not finished after {TICKS_MAX} turns: {self._left()} events left")
        return Outcome(violations + self._check(), self._trace.hexdigest(), total, self.happened)

    def clock(self) -> float:
        """Seconds; a little passes at every look, so that waiting loops end."""
        self._now += 1e-5
        return self._now

    def advance(self, seconds: float) -> None:
        """Time passes; the clients' own threads go on sending heartbeats."""
        self._now += seconds
        for worker in self.workers.values():
            if worker.paused_until_s <= self._now:
                worker.source.heartbeat()

    def nap(self, worker: SimWorker) -> None:
        """One falls asleep in the middle of its turn; the others take theirs until it wakes."""
        until_s, worker.nap_s, worker.paused_until_s = self._now + worker.nap_s, 0.0, math.inf
        while self._now < until_s:
            self._turn(-1)
        worker.paused_until_s = 0.0

    def size(self, most: int) -> int:
        """How many records one poll brings."""
        return self.rng.randrange(most + 1) if self.rng.random() < 0.5 else self.rng.randrange(4)

    def _turn(self, tick: int) -> None:
        self.advance(self.rng.random() * 0.06)
        ready = sorted(slot for slot, w in self.workers.items() if w.paused_until_s <= self._now)
        if not ready:
            return
        slot = self.rng.choice(ready)
        try:
            self.workers[slot].turn()
        except MillraceError as error:
            # A worker that ends by itself is started again by its supervisor.
            self.happened[f"ended: {type(error).__name__}"] += 1
            del self.workers[slot]
            self._start(slot)
        self._trace.update(f"{tick} {slot} {self._now:.5f} {len(self.cluster.log)}\n".encode())

    def _arrive(self, tick: int, total: int) -> None:
        due = total if tick >= TICKS else total * (tick + 40) // (TICKS + 40)
        while self._events and total - len(self._events) < due:
            partition, value = self._events.pop(0)
            self.cluster.inputs[partition].append(value)

    def _start(self, slot: int) -> None:
        try:
            self.workers[slot] = SimWorker(self, slot)
        except MillraceError as error:
            self.happened[f"not started: {type(error).__name__}"] += 1

    def _happen(self, fault: Fault) -> None:
        self.happened[f"{fault.kind} {fault.detail}".strip()] += 1
        match fault.kind:
            case "away":
                self.away_until_s = self._now + 20 * fault.amount
            case "skip":
                self.advance(15 * fault.amount)
            case "move":
                self.cluster.balance(self.rng)
            case "hijack" if f"worker.{fault.worker}" in self.cluster.ids:
                self.cluster.open_id(f"worker.{fault.worker}")
            case "start" if fault.worker not in self.workers:
                self._start(fault.worker)
            case _ if fault.worker in self.workers:
                self._happen_to(self.workers[fault.worker], fault)

    def _happen_to(self, worker: SimWorker, fault: Fault) -> None:
        match fault.kind:
            case "crash":
                del self.workers[fault.worker]
                if fault.amount < 0.7:
                    self._start(fault.worker)
            case "stop" if worker.paused_until_s <= self._now:
                worker.stop()
                del self.workers[fault.worker]
            case "stuck":
                # Its brokers answer late, while partitions move.
                worker.stuck_until_s = self._now + 15 * fault.amount
                self.cluster.balance(self.rng)
            case "pause":
                # Often so long that the group goes on without it.
                worker.paused_until_s = self._now + 15 * fault.amount
                self.advance(14 * fault.amount)
            case "nap":
                worker.nap_s = 15 * fault.amount
            case "device":
                worker.scorer.broken = True
            case "call":
                call, _, detail = fault.detail.partition(":")
                worker.faults.setdefault(call, []).append(detail)

    def _mend(self) -> None:
        self.away_until_s = 0.0
        for worker in self.workers.values():
            worker.faults.clear()
            worker.nap_s = 0.0
            worker.scorer.broken = False
        if not self.workers:
            self._start(0)

    def _left(self) -> int:
        return sum(len(log) - self.cluster.committed.get(p, 0) for p, log in self.cluster.inputs.items())

    def _finished(self) -> bool:
        return self._left() <= 0 and all(owned.open is None for owned in self.cluster.ids.values())

    def _check(self) -> list[str]:
        wanted = [(*p, offset) for p, log in self.cluster.inputs.items() for offset in range(len(log))]
        violations: list[str] = []
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
        return violations

    def _clicks(self) -> list[tuple[str, int, int]]:
        """Positions of the events that change their user's state."""
        logs = self.cluster.inputs.items()
        return [(*p, offset) for p, log in logs if p[0] == "events.click" for offset in range(len(log))]


def _event(rng: random.Random, n: int) -> bytes | None:
    if rng.random() < 0.08:
        return rng.choice([None, b"", b"[]", b"\xff\xfe"])
    text = f"thing {n}" if rng.random() < 0.9 else "x" * 4 * 13
    event = {"event_id": f"e{n}", "event_time_ms": 1000 + n, "user_id": f"u{rng.randrange(5)}", "text": text}
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
