"""One seeded run of the profiles role's real loop against a simulated cluster and Redis, and what is checked then.

After the last fault everything must be folded and published, and then every state in Redis and in the features topics
must be what plain numpy makes of the distinct source positions: each fold exactly once. At last Redis is emptied, and
what profiles makes of features and folds must be the same again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import msgspec
import structlog
from confluent_kafka import TopicPartition
from prometheus_client import CollectorRegistry

from schemas.dead import HEADER_OFFSET, HEADER_PARTITION, HEADER_TOPIC
from schemas.redis_keys import fence_key, state_key
from schemas.states import FENCE_RECORD_KEY, State, decode_fence, decode_state
from schemas.topics import EVENTS_DEAD, FEATURES, FOLDS
from tests.simulation.clients import SimProducer
from tests.simulation.cluster import TRANSACTION_TIMEOUT_S
from tests.simulation.folds import MARK, NO_BLOCKS, SCALES_S, SHARDS, SPACE, Name, blocks_of, differences, states_of
from tests.simulation.profiles_clients import KIND, Hands, SimDead, SimErasures, SimFoldStream, SimReadback
from tests.simulation.redis_server import SimRedis, SimRedisClient
from tests.simulation.turns import TICKS, TICKS_MAX, Crash, Fault, Outcome, SimProcess, Turns
from worker.config import Config, KafkaConfig, ProfilesConfig
from worker.errors import KafkaError, MillraceError
from worker.kafka.records import Partition
from worker.kafka.session import Session
from worker.kafka.transaction import TransactionalSink
from worker.metrics import ProfilesMetrics
from worker.profiles.features import Features
from worker.profiles.folding import chunks
from worker.profiles.foldstream import ShardId
from worker.profiles.role import LOOK_S, Profiles
from worker.redis.store import StateStore

PROCESSES = 3
REDIS_CALLS = ("get", "mget", "script", "script", "script", "ping")
REDIS_FAILURES = ("away", "late", "happened", "nonsense", "died", "crash")
PRODUCER_CALLS = ("produce", "linger", "offsets", "commit", "abort", "init")
PRODUCER_FAILURES = ("refused", "retriable", "timeout", "happened", "fatal", "crash")
STREAM_CALLS = ("bounds", "published", "snapshot", "start", "dead")
NAPS = ("membership", "script", "script answered", "mget", "mget answered", *4 * ("produce",), "poll", "published",
        "snapshot")  # fmt: skip
KINDS = (*4 * ("redis call",), *3 * ("call", "nap"), *2 * ("flush", "fail over", "pause", "stuck", "start", "crash"),
         *2 * ("half",), "stream call", "stop", "away", "redis away", "restart", "hijack", "skip", "move")  # fmt: skip
COPY_EVERY = 12
"""Turns between two copies of Redis."""
CONFIG = Config(
    kafka=KafkaConfig(embedded=True, fold_shards=SHARDS),
    profiles=ProfilesConfig(scales_s=SCALES_S, poll_blocks=12, redis_retry_ms=200),
)
# It costs time to make, and nothing that is checked reads it.
METRICS = ProfilesMetrics(CollectorRegistry())
STATES_MAX = (2, 4, 12)
PUBLISH_INTERVALS_MS = (300, 2500)
# So small that what is cut in production is cut here: chunks of rows, states of a call or transaction, a hand-over.
SMALL = {
    "worker.profiles.role.CARRY_S": 1.0,
    "worker.profiles.role.HAND_OVER_S": 1.5,
    "worker.profiles.role.chunks": partial(chunks, rows_max=6),
    "worker.redis.store.MAX_KEYS_PER_CALL": 2,
}


def faults_of(seed: int) -> list[Fault]:
    """The faults that a seed brings, in order of time. Often two or more at once."""
    rng = random.Random(f"profiles faults {seed}")
    faults: list[Fault] = []
    for _ in range(rng.randrange(2, 14)):
        tick = faults[-1].tick if faults and rng.random() < 0.3 else rng.randrange(TICKS)
        kind, worker, amount = rng.choice(KINDS), rng.randrange(PROCESSES), rng.random()
        detail = ""
        if kind == "call":
            call = rng.choice(PRODUCER_CALLS)
            fault = "full" if call == "produce" and rng.random() < 0.5 else rng.choice(PRODUCER_FAILURES)
            kind, detail = "call", f"{call}:{'delay' if call == 'linger' else fault}"
        elif kind == "redis call":
            kind, detail = "call", f"{rng.choice(REDIS_CALLS)}:{rng.choice(REDIS_FAILURES)}"
        elif kind == "stream call":
            kind, detail = "call", f"{rng.choice(STREAM_CALLS)}:{rng.choice(('refused', 'crash'))}"
        elif kind == "half":
            kind, detail = "call", f"half:{rng.choice(('crash', 'flush'))}"
        elif kind == "stuck" and rng.random() < 0.7:
            kind, detail = "nap", "commit"
        elif kind == "nap":
            detail = rng.choice(NAPS)
        faults.append(Fault(tick, kind, worker, detail, amount))
    return sorted(faults, key=lambda fault: fault.tick)


class SimEdges:
    """`worker.profiles.edges.Edges` of one simulated process."""

    def __init__(self, process: SimProfiles) -> None:
        world = process.world
        self._process, self._world, self._cluster = process, world, world.cluster
        self._hands = Hands(process.fault, process.nap, process.wait)

    def store(self) -> StateStore:
        hands = self._hands
        client: Any = SimRedisClient(self._world.redis, hands.fault, hands.nap, hands.advance, Crash)
        return StateStore(CONFIG.redis, SPACE, client)

    def features(self) -> Features:
        reader: Any = SimReadback(self._cluster, self._hands)
        return Features(CONFIG.kafka, SPACE, reader)

    def dead(self) -> SimDead:
        return SimDead(self._cluster, self._hands)

    def erasures(self) -> SimErasures:
        return SimErasures()

    def stream(self, *callbacks: Callable[[list[ShardId]], None]) -> SimFoldStream:
        name = f"{self._process.slot}-{self._world.born}"
        self._process.stream = SimFoldStream(self._cluster, name, self._world.size, self._hands, callbacks)
        return self._process.stream

    def sink(self, stream: SimFoldStream) -> TransactionalSink:
        process, world = self._process, self._world
        session = Session(
            lambda: SimProducer(self._cluster, f"{world.role}.{process.slot}", process.fault, world.advance),
            None,
            lambda partition, offset: TopicPartition(*partition, offset),
            str,
            TRANSACTION_TIMEOUT_S,
            clock=world.clock,
            pause=world.advance,
            watch=lambda call, timeout_s: call(),  # on this thread: what hangs here is a fault
        )
        # Looked up each time: a mutant may have another.
        return TransactionalSink(
            session, process.executor, lambda: stream.membership(), world.clock, process.await_call
        )

    def close(self) -> None:
        """Nothing is held."""


class SimProfiles(SimProcess):
    """One process: the real loop, publishing and transactional sink, the simulated rest."""

    world: ProfilesWorld
    stream: SimFoldStream

    def __init__(self, world: ProfilesWorld, slot: int) -> None:
        super().__init__(world)
        self.slot = slot
        edges: Any = SimEdges(self)
        self.profiles = Profiles(world.config, SPACE, METRICS, edges, world.clock)

    def turn(self) -> None:
        """One step of the loop, and perhaps what waits on the executor."""
        self.profiles.step()
        if self.world.rng.random() < 0.5:
            self.run_calls()

    def stop(self) -> None:
        """A clean end."""
        self.profiles.close()

    def heartbeat(self) -> None:
        """The client's own thread."""
        self.stream.heartbeat()

    def fault(self, call: str) -> str | None:
        """As every process's; and some die when a transaction that had no room for all is committed, the next not."""
        if call == "produce":
            # States in hand, nothing at the broker yet: what it wakes up with may be old.
            self.nap("produce")
            if self.profiles._publishing.cut and super().fault("half") == "flush":
                self.world.redis.flush()
                raise Crash
        return super().fault(call)

    def nap(self, call: str) -> None:
        """As every process's; and some of their brokers fall asleep with a commit, while shards move."""
        super().nap(call)
        if call == "membership" and "commit" in self.plight.naps:
            self.plight.stuck_until_s = self.world.clock() + self.plight.naps.pop("commit")
            self.world.cluster.balance(self.world.rng)

    def wait(self, seconds: float) -> None:
        """While the loop waits for an answer, the executor may go on."""
        self.world.advance(seconds)
        if seconds and self.world.rng.random() < 0.5:
            self.run_calls()

    @property
    def settled(self) -> bool:
        """Whether it knows of nothing to publish."""
        shards = self.profiles._open.values()
        return self.profiles._publishing.idle and not any(shard.unpublished for shard in shards)


class ProfilesWorld(Turns):
    """Cluster, Redis, clock and processes of one run."""

    role = "profiles"

    def __init__(self, seed: int, faults: Sequence[Fault]) -> None:
        super().__init__(seed, faults, [(topic, shard) for topic in FOLDS.values() for shard in range(SHARDS)])
        self.redis = SimRedis(self.clock)
        rng = random.Random(f"folds {seed}")
        profiles = msgspec.structs.replace(CONFIG.profiles, publish_interval_ms=rng.choice(PUBLISH_INTERVALS_MS))
        self.config = msgspec.structs.replace(CONFIG, profiles=profiles)
        self._arriving, self._rows = blocks_of(rng)
        if seed % 4 == 1:
            # As workers write that deliver exactly once.
            self._arriving = [each for block in self._arriving for each in (block, (block[0], MARK))]

    def _born(self, slot: int) -> SimProcess:
        return SimProfiles(self, slot)

    def _turn(self, tick: int) -> None:
        if tick % COPY_EVERY == 0:
            self.redis.keep_copy()
        if tick < 0 and self._arriving and self.rng.random() < 0.1:
            # While one sleeps the workers go on: what it wakes up with must be old, or nobody would see it written.
            partition, value = self._arriving.pop(0)
            self.cluster.inputs[partition].append(value)
        super()._turn(tick)

    def _ended(self, error: MillraceError) -> None:
        super()._ended(error)
        # Kafka may be away for too long. All else would be for good: folds gone, states damaged.
        if type(error) is not KafkaError:
            self.violations.append(f"ended with {type(error).__name__}: {error}")

    def _happen(self, fault: Fault) -> None:
        super()._happen(fault)
        match fault.kind:
            case "flush":
                self.redis.flush()
            case "fail over":
                self.redis.fail_over(fault.amount)
            case "restart":
                self.redis.restart()
            case "redis away":
                self.redis.away_until_s = self._now + 10 * fault.amount

    def _mend(self) -> None:
        super()._mend()
        self.redis.away_until_s = 0.0

    def _finished(self) -> bool:
        return (
            super()._finished()
            and not self.redis.late
            and all(self._folded(*partition) for partition in self.cluster.inputs)
            and all(process.settled for process in self.processes.values())
        )

    def _folded(self, topic: str, shard: int) -> bool:
        raw = self.redis.data.get(fence_key(SPACE, KIND[topic], shard))
        return raw is not None and decode_fence(raw).fold_offset == len(self.cluster.inputs[topic, shard])

    def _check(self) -> None:
        expected = states_of(self._rows)
        self._compare("Redis", self._states(), expected)
        self._compare("features", self._features(), expected)
        for partition, log in self.cluster.inputs.items():
            if (found := self.cluster.committed.get(partition, 0)) != len(log):
                self.violations.append(f"published up to {found} of {len(log)}: {partition}")
        self._check_dead()
        if self.violations:
            return
        self.redis.flush()
        self.advance(LOOK_S)
        for tick in range(TICKS_MAX):
            if self._finished():
                break
            self._turn(tick)
        else:
            self.violations.append(f"not rebuilt after {TICKS_MAX} turns")
        self._compare("Redis rebuilt", self._states(), expected)
        self._compare("features after a rebuild", self._features(), expected)

    def _compare(self, where: str, found: dict[Name, State], expected: dict[Name, Any]) -> None:
        self.violations += [f"{where}: {wrong}" for wrong in differences(found, expected)]
        # No floats: their last bits are the machine's.
        for (kind, key), state in sorted(found.items()):
            self._trace.update(f"{where} {kind} {key} {state.fold_offset} {state.time_ms}\n".encode())

    def _states(self) -> dict[Name, State]:
        """What is in Redis, in its place and of its shard's incarnation."""
        found: dict[Name, State] = {}
        for topic, shard in self.cluster.inputs:
            kind, raw = KIND[topic], self.redis.data.get(fence_key(SPACE, KIND[topic], shard))
            prefix = state_key(SPACE, kind, shard, "")
            for name, value in self.redis.data.items():
                if name.startswith(prefix) and raw is not None:
                    state = decode_state(value)
                    if state.incarnation == decode_fence(raw).incarnation:
                        found[kind, name.removeprefix(prefix)] = state
        return found

    def _features(self) -> dict[Name, State]:
        """What a committed reader of the features topics knows at last."""
        kinds = {topic: kind for kind, topic in FEATURES.items()}
        latest: dict[tuple[str, bytes], bytes | None] = {}
        for record in self.cluster.visible():
            if record.topic in kinds and record.key is not None and record.key != FENCE_RECORD_KEY:
                latest[record.topic, record.key] = record.value
        return {
            (kinds[topic], key.decode()): decode_state(value)  # type: ignore[misc]
            for (topic, key), value in latest.items()
            if value is not None
        }

    def _check_dead(self) -> None:
        copied: set[Partition] = set()
        for record in self.cluster.visible():
            if record.topic == EVENTS_DEAD:
                head = record.headers
                copied.add((*_place(head), int(head[HEADER_OFFSET])))  # type: ignore[arg-type]
        for partition, log in self.cluster.inputs.items():
            for offset, value in enumerate(log):
                if value in NO_BLOCKS and (*partition, offset) not in copied:
                    self.violations.append(f"lost: no copy of {partition} {offset}, which cannot be read")


def _place(head: dict[str, bytes]) -> Partition:
    return head[HEADER_TOPIC].decode(), int(head[HEADER_PARTITION])


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


@contextmanager
def _small_and_silent(seed: int) -> Iterator[None]:
    """Bounds that are met, incarnations that are the seed's, and no log of thousands of provoked errors."""
    before = structlog.get_config()
    incarnations = random.Random(f"incarnations {seed}")
    with ExitStack() as stack:
        for name, value in SMALL.items():
            stack.enter_context(patch(name, value))
        states_max = random.Random(f"bounds {seed}").choice(STATES_MAX)
        stack.enter_context(patch("worker.profiles.publishing.STATES_MAX", states_max))
        stack.enter_context(patch("worker.profiles.shard.secrets.randbits", incarnations.getrandbits))
        stack.callback(structlog.configure, **before)
        structlog.configure(processors=[_drop])
        yield


def simulate(seed: int, faults: Sequence[Fault] | None = None) -> Outcome:
    """Run a seed, with its own faults or with those given."""
    with _small_and_silent(seed):
        return ProfilesWorld(seed, faults_of(seed) if faults is None else faults).run()
