"""What the tests of profiles share, embedded and real: folds written like a worker's, profiles run, states compared.

The expected states are plain numpy over the distinct source positions that were written; nothing of the code under
test computes them.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Self

import msgspec
import numpy as np
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from model.null import NullScorer
from schemas.folds import FoldBlock, decode_block, encode_block
from schemas.redis_keys import fence_key, state_key
from schemas.shards import shard_of
from schemas.states import FENCE_RECORD_KEY, State, decode_fence, decode_state
from schemas.topics import FEATURES, FOLDS
from worker.config import Config
from worker.kafka.clients import producer_config
from worker.kafka.readback import Readback
from worker.profiles.role import run

SPACE = NullScorer.space
SOURCES = ("id-of-events.click", "id-of-events.review")
PARTITIONS = 3
KINDS = ("user", "item")
DEADLINE_S = 60.0
Moments = tuple[int, np.ndarray, np.ndarray, np.ndarray]
"""Time in ms, sums, weights and counts of a state."""
EXPLAINED_MAX = 16
"""Folds of which every subset is tried."""


class FoldWriter:
    """Writes folds like a worker: in source order per partition, some of them again after a "crash"."""

    def __init__(self, config: Config, seed: int = 0, keys: int = 40) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.keys = keys
        self.next_offset = dict.fromkeys(((s, p) for s in SOURCES for p in range(PARTITIONS)), 0)
        self.folds: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.refused: list[object] = []
        self.producer = Producer(producer_config(config.kafka, linger_ms=1, on_delivery=self._told))

    def events(self, n: int) -> list[dict[str, Any]]:
        """The next ``n`` folds, not yet written."""
        made = []
        for _ in range(n):
            source = (SOURCES[self.rng.integers(2)], int(self.rng.integers(PARTITIONS)))
            self.next_offset[source] += int(self.rng.integers(1, 4))
            vector = self.rng.standard_normal(64)
            made.append(
                {
                    "kind": KINDS[self.rng.integers(2)],
                    "key": f"id-{self.rng.integers(self.keys)}",
                    "source": source,
                    "offset": self.next_offset[source],
                    "time_ms": int(1.7e12 + self.rng.integers(0, 400 * 86_400_000)),
                    "weights": np.array([1.0, self.rng.integers(2)], np.float32),
                    "counts": self.rng.integers(0, 2, 3).astype(np.float32),
                    "vector": (vector / np.linalg.norm(vector)).astype(np.float16),
                }
            )
        return made

    def write(self, events: list[dict[str, Any]], block_rows: int = 20, space: str = SPACE) -> None:
        """Write folds in blocks, and wait until they are there. Writing them again is what a replay does."""
        for start in range(0, len(events), block_rows):
            groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
            for event in events[start : start + block_rows]:
                shard = shard_of(event["key"], self.config.kafka.fold_shards)
                groups.setdefault((event["kind"], shard), []).append(event)
                if space == SPACE:
                    self.folds.setdefault((event["kind"], event["key"]), []).append(event)
            for (kind, shard), rows in groups.items():
                self.write_raw(kind, shard, encode_block(_block(kind, shard, rows, space)))
        assert self.producer.flush(30) == 0
        assert not self.refused  # flush counts what was given up as gone too

    def write_raw(self, kind: str, shard: int, value: bytes) -> None:
        """Put bytes into a folds partition."""
        self.producer.produce(self.config.kafka.topic(FOLDS[kind]), value, partition=shard)
        self.producer.poll(0)

    def expected(self) -> dict[tuple[str, str], Moments]:
        """What each (kind, key) must be, by the definition."""
        return {name: self._moments(self._distinct(name)) for name in self.folds}

    def explained(self, name: tuple[str, str], state: State) -> str:
        """Which folds of a key a wrong state holds and where each stands in the folds topic, for whoever must find out
        why."""
        rows = self._distinct(name)
        assert len(rows) <= EXPLAINED_MAX, f"{name}: {len(rows)} folds, the state is not all of them"
        subsets = itertools.chain.from_iterable(itertools.combinations(rows, n) for n in range(1, len(rows) + 1))
        held = next((list(some) for some in subsets if _agree(state, self._moments(list(some)))), None)
        told = "no subset of its folds" if held is None else f"{_places(held)} and lacks {_places(rows, held)}"
        return f"{name}, folded up to {state.fold_offset}: the state holds {told}; written at {self._written(*name)}"

    def _written(self, kind: str, key: str) -> dict[tuple[str, int, int], list[int]]:
        """Offsets in the folds partition of every fold of a key, by its source place."""
        found: dict[tuple[str, int, int], list[int]] = {}
        part = TopicPartition(self.config.kafka.topic(FOLDS[kind]), shard_of(key, self.config.kafka.fold_shards), 0)
        with closing(Readback(self.config.kafka, "explained")) as reader:
            for message in reader.read([part]):
                block = decode_block(message.value())
                for i in (i for i, own in enumerate(block.keys) if own == key):
                    source = block.topic_ids[block.topic_index[i]], int(block.partition[i]), int(block.offset[i])
                    found.setdefault(source, []).append(message.offset())
        return found

    def _distinct(self, name: tuple[str, str]) -> list[dict[str, Any]]:
        return list({(*row["source"], row["offset"]): row for row in self.folds[name]}.values())

    def _moments(self, rows: list[dict[str, Any]]) -> Moments:
        latest = max(row["time_ms"] for row in rows)
        decay = [np.exp(-(latest - row["time_ms"]) / 1000 / np.array(self.config.profiles.scales_s)) for row in rows]
        sums = sum(
            np.einsum("a,s,d->asd", row["weights"].astype(float), d, row["vector"].astype(float))
            for row, d in zip(rows, decay, strict=True)
        )
        weights = sum(np.outer(row["weights"], d) for row, d in zip(rows, decay, strict=True))
        counts = sum(np.outer(d, row["counts"]) for row, d in zip(rows, decay, strict=True))
        return latest, sums, weights, counts

    def _told(self, error: object, _: object) -> None:
        if error is not None:
            self.refused.append(error)


def _block(kind: str, shard: int, rows: list[dict[str, Any]], space: str) -> FoldBlock:
    return FoldBlock(
        kind=kind,
        space=space,
        shard=shard,
        topic_ids=list(SOURCES),
        keys=[row["key"] for row in rows],
        topic_index=np.array([SOURCES.index(row["source"][0]) for row in rows], np.int32),
        partition=np.array([row["source"][1] for row in rows], np.int32),
        offset=np.array([row["offset"] for row in rows], np.int64),
        time_ms=np.array([row["time_ms"] for row in rows], np.int64),
        weights=np.stack([row["weights"] for row in rows]),
        counts=np.stack([row["counts"] for row in rows]),
        vectors=np.stack([row["vector"] for row in rows]),
    )


def wait_for(condition: Callable[[], bool], what: str, check: Callable[[], None] = lambda: None) -> None:
    """Wait until a condition holds, at most `DEADLINE_S`; ``check`` may fail the test earlier."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        check()
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s for {what}"
        threading.Event().wait(0.05)


class Group:
    """What the profiles group has published, and what there is to publish."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.client = Consumer(
            {
                "bootstrap.servers": config.kafka.bootstrap,
                "group.id": f"{config.kafka.group_prefix}.profiles",
                "enable.auto.commit": False,
            }
        )

    def close(self) -> None:
        self.client.close()

    def parts(self) -> list[TopicPartition]:
        """Every folds partition."""
        return [
            TopicPartition(self.config.kafka.topic(FOLDS[kind]), shard)
            for kind in KINDS
            for shard in range(self.config.kafka.fold_shards)
        ]

    def ends(self) -> list[int]:
        return [self.client.get_watermark_offsets(part, timeout=20)[1] for part in self.parts()]

    def committed(self) -> list[int]:
        return [max(0, part.offset) for part in self.client.committed(self.parts(), timeout=20)]

    def published(self) -> bool:
        """Whether every fold is folded and published."""
        return self.committed() == self.ends()


def with_profiles(config: Config, **keys: Any) -> Config:
    """The same configuration with these settings of profiles."""
    return msgspec.structs.replace(config, profiles=msgspec.structs.replace(config.profiles, **keys))


def folded(config: Config) -> list[int]:
    """How far each shard is folded, as Redis says, in the order of `Group.parts`."""
    client = redis.Redis.from_url(config.redis.url)
    names = [fence_key(SPACE, kind, shard) for kind in KINDS for shard in range(config.kafka.fold_shards)]
    raws = client.mget(names)
    client.close()
    return [0 if raw is None else decode_fence(raw).fold_offset for raw in raws]


def states_in_redis(config: Config, url: str) -> dict[tuple[str, str], State]:
    """Every state of `SPACE` that is in its place, names itself and has its shard's incarnation."""
    client = redis.Redis.from_url(url)
    found = {}
    for kind in KINDS:
        for shard in range(config.kafka.fold_shards):
            raw = client.get(fence_key(SPACE, kind, shard))
            if raw is None:
                continue
            incarnation = decode_fence(raw).incarnation
            for name in client.scan_iter(state_key(SPACE, kind, shard, "*"), count=1000):
                state = decode_state(client.get(name))
                assert name.decode() == state_key(SPACE, kind, shard, state.key)
                if state.incarnation == incarnation:
                    found[kind, state.key] = state
    client.close()
    return found


def states_in_features(config: Config) -> dict[tuple[str, str], State]:
    """The latest published state of every key."""
    reader = Consumer({"bootstrap.servers": config.kafka.bootstrap, "group.id": "test", "enable.partition.eof": True})
    shards = config.kafka.fold_shards
    reader.assign([TopicPartition(config.kafka.topic(FEATURES[k]), s, 0) for k in KINDS for s in range(shards)])
    found, ended, deadline = {}, 0, time.monotonic() + DEADLINE_S
    while ended < 2 * shards:
        assert time.monotonic() < deadline
        for message in reader.consume(1000, 0.2):
            if message.error() is not None:
                ended += 1
            elif message.value() is None:
                kind = next(kind for kind in KINDS if config.kafka.topic(FEATURES[kind]) == message.topic())
                found.pop((kind, message.key().decode()), None)
            elif message.key() != FENCE_RECORD_KEY:
                state = decode_state(message.value())
                assert message.key() == state.key.encode()
                assert message.partition() == shard_of(state.key, shards)
                found[state.kind, state.key] = state
    reader.close()
    return found


def assert_exact(states: dict[tuple[str, str], State], writer: FoldWriter) -> None:
    """Every state equals plain numpy within 1e-5 (relative where it is over one)."""
    expected = writer.expected()
    assert set(states) == set(expected)
    for name, moments in expected.items():
        assert _agree(states[name], moments), writer.explained(name, states[name])


def _agree(state: State, moments: Moments) -> bool:
    latest, *arrays = moments
    found = (state.sums, state.weights, state.counts)
    return state.time_ms == latest and all(
        np.allclose(one, other, rtol=1e-5, atol=1e-5) for one, other in zip(found, arrays, strict=True)
    )


def _places(rows: list[dict[str, Any]], but: Sequence[dict[str, Any]] = ()) -> list[tuple[str, int, int]]:
    return [(*row["source"], row["offset"]) for row in rows if not any(row is other for other in but)]


class Running:
    """Profiles running in a thread of this process. Leaving the context stops it and raises what it raised."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            run(self.config, self.stop)
        except BaseException as error:  # noqa: BLE001 handed to the test
            self.error = error

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what it raised."""
        if self.error is not None:
            raise self.error


class Process:
    """Profiles as a process of its own, to be killed, at the latest when the context ends; ``before`` is Python that it
    runs first."""

    def __init__(self, config: Config, before: str = "") -> None:
        code = before + (
            "\nimport sys, threading, msgspec; from worker.config import Config; from worker.profiles.role import run;"
            "run(msgspec.json.decode(sys.argv[1].encode(), type=Config), threading.Event())"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, msgspec.json.encode(config).decode()],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.kill()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.communicate(timeout=20)

    def check(self) -> None:
        if self.process.poll() is not None:
            _, log = self.process.communicate()
            raise AssertionError(f"profiles ended with {self.process.returncode}: {log.decode()[-3000:]}")
