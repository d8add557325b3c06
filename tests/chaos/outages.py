"""How long a failure is felt, and whether anything is left of it.

    python -m tests.chaos.outages stall   [--times 10] [--rate 200] [--seed N]    kill -9 of one of two workers
    python -m tests.chaos.outages redis   [--seconds 60] [--rate 200] [--seed N]  Redis gone for a minute, under load
    python -m tests.chaos.outages replays [--times 10000] [--seed N]              folds that were applied come again

One real broker, a Redis pair, roles with the null model. The age of an output is the time from its event to a committed
reader's sight of it. ``stall``: the oldest output after each kill, until the other worker has caught up. ``redis``:
ages before and during, the folds complete and the states exact afterwards. ``replays``: from a worker that writes folds
twice, and from a Redis that applies them and loses its answer; in the end the states in Redis and in features are those
of the fault-free run. Last line: one JSON object, with ``seed`` and ``commit``. Exit code 1 when a bound was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import msgspec
import numpy as np
from confluent_kafka import Consumer
from rich.progress import Progress, track

from schemas.states import State
from schemas.topics import FOLDS, INPUTS, SCORES_CTR, SCORES_INTENT, SCORES_SENTIMENT
from tests.chaos.audit import Audit, audit, commit
from tests.chaos.cluster import KafkaCluster
from tests.chaos.fleet import Process
from tests.chaos.kills import Feeder, fresh_config
from tests.chaos.redis_pair import RedisPair
from tests.chaos.storms import await_stable, check_running
from tests.fold_harness import FoldWriter, Group, Running, assert_exact, states_in_features, states_in_redis, wait_for
from tests.real.proof import state_mismatches, wait_until_both_committed, wait_until_committed
from tests.redis_proxy import RedisProxy
from worker.config import Config
from worker.kafka.admin import create_topics

STALL_MAX_S: Final = 12.0
"""Session and transaction time-out of eight seconds, and four to notice and take over."""
SLOWER_MAX_MS: Final = 25.0
ANSWERS_LOST: Final = 0.02
"""Share of Redis's answers that go wrong while blocks are applied."""
CALM_S: Final = 1.0
"""Outputs no older than this: all is well again."""
WAIT_S: Final = 120.0


class Watcher(threading.Thread):
    """Reads the scores as they are committed, and keeps when each came and how old its event was then."""

    def __init__(self, config: Config) -> None:
        super().__init__(name="watcher", daemon=True)
        self.ages: list[tuple[float, float]] = []
        self._stopped = threading.Event()
        self._reader = Consumer(
            {
                "bootstrap.servers": config.kafka.bootstrap,
                "group.id": f"{config.kafka.group_prefix}-watcher",
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 10,
            }
        )
        self._reader.subscribe([config.kafka.topic(name) for name in (SCORES_CTR, SCORES_SENTIMENT, SCORES_INTENT)])

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopped.is_set():
            for message in self._reader.consume(500, 0.02):
                if message.error() is None:
                    now = time.time()
                    self.ages.append((now, now - msgspec.json.decode(message.value())["event_time_ms"] / 1000))
        self._reader.close()

    def stop(self) -> None:
        """No more."""
        self._stopped.set()
        self.join(30)

    def since(self, begin_s: float, end_s: float = float("inf")) -> list[float]:
        """Ages of the outputs that came in a stretch of time."""
        return [age for at, age in list(self.ages) if begin_s <= at < end_s]

    def calm(self) -> bool:
        """Whether outputs come, and none of the last second is old."""
        recent = self.since(time.time() - 1.0)
        return bool(recent) and max(recent) < CALM_S


def stall(bootstrap: str, folder: Path, times: int, rate: int, seed: int) -> dict[str, Any]:
    """Kill one of two workers, again and again; how old outputs became each time."""
    config = fresh_config(bootstrap, seed, static_members=False)
    create_topics(config.kafka, replication=1)
    feeder, watcher, rng = Feeder(config, rate, seed), Watcher(config), random.Random(seed)
    workers = [_worker(config, folder, n) for n in (0, 1)]
    feeder.start()
    watcher.start()
    stalls: list[float] = []
    try:
        for n in track(range(times), "kills", disable=not sys.stderr.isatty()):
            await_stable(config, len(workers), lambda: check_running(workers))
            _until(watcher.calm, "outputs without delay")
            killed_s = time.time()
            workers.pop(rng.randrange(2)).kill()
            # Partitions of the dead stand still; over once nothing from before the others took over is left.
            _until(lambda since=killed_s: max(watcher.since(since), default=0) > 2 * CALM_S, "a stall")  # type: ignore[misc]
            _until(watcher.calm, "the end of the stall")
            stalls.append(max(watcher.since(killed_s)))
            workers.append(_worker(config, folder, n + 2))
    finally:
        feeder.finish()
        inputs = [config.kafka.topic(name) for name in INPUTS]
        wait_until_committed(bootstrap, f"{config.kafka.group_prefix}.worker", inputs, [])
        watcher.stop()
        for worker in workers:
            worker.stop()
    found = audit(bootstrap, config.kafka)
    return {
        "kills": len(stalls),
        "longest_stall_s": round(max(stalls), 2),
        "median_stall_s": round(float(np.median(stalls)), 2),
        **_verdict(found),
        "kept": found.clean and max(stalls) <= STALL_MAX_S,
    }


def redis_gone(bootstrap: str, folder: Path, seconds: float, rate: int, seed: int) -> dict[str, Any]:
    """Redis killed and started again so many seconds later, with what its file holds."""
    with RedisPair(folder / "redis", seed=seed) as pair:
        config = fresh_config(bootstrap, seed)
        config = msgspec.structs.replace(config, redis=msgspec.structs.replace(config.redis, url=pair.url))
        create_topics(config.kafka, replication=1)
        feeder, watcher = Feeder(config, rate, seed), Watcher(config)
        roles = [_worker(config, folder, 0), Process("profiles", config, folder / "profiles.log")]
        feeder.start()
        watcher.start()
        try:
            _until(watcher.calm, "outputs without delay")
            began_s = time.time()
            _until(lambda: time.time() - began_s > seconds, "the time before", WAIT_S + seconds)
            gone_s = time.time()
            pair.kill(pair.primary)
            _until(lambda: time.time() - gone_s > seconds, "the time without", WAIT_S + seconds)
            back_s = time.time()
            pair.start(pair.primary)
        finally:
            feeder.finish()
        wait_until_both_committed(config.kafka)
        watcher.stop()
        found = audit(bootstrap, config.kafka)
        wrong = 0
        for kind, name in FOLDS.items():
            scales_s = config.profiles.scales_s
            wrong += state_mismatches(bootstrap, pair.url, config.kafka.topic(name), kind, scales_s)[1]
        for role in roles:
            role.stop()
    before, during = watcher.since(began_s, gone_s), watcher.since(gone_s, back_s)
    p99 = [1000 * float(np.percentile(ages, 99)) for ages in (before, during)]
    return {
        "seconds": seconds,
        "outputs": [len(before), len(during)],
        "p99_before_ms": round(p99[0], 1),
        "p99_without_redis_ms": round(p99[1], 1),
        "slower_ms": round(p99[1] - p99[0], 1),
        "state_mismatches": wrong,
        **_verdict(found),
        "kept": found.clean and not wrong and p99[1] - p99[0] <= SLOWER_MAX_MS,
    }


def replays(bootstrap: str, folder: Path, times: int, seed: int) -> dict[str, Any]:
    """Rows that were folded come again, and writes to Redis lose their answers, until both together are ``times``."""
    with ExitStack() as stack:
        pair = stack.enter_context(RedisPair(folder / "redis", seed=seed))
        proxy = stack.enter_context(RedisProxy(pair.url, seed, ANSWERS_LOST))
        stack.enter_context(patch("worker.redis.store.WRITE_TIMEOUT_S", 0.2))
        config = fresh_config(bootstrap, seed, static_members=False)
        config = msgspec.structs.replace(config, redis=msgspec.structs.replace(config.redis, url=proxy.url))
        create_topics(config.kafka, replication=1)
        writer, rng = FoldWriter(config, seed, keys=60), random.Random(seed)
        group = stack.enter_context(closing(Group(config)))
        events, rows = writer.events(2000), 0
        with Running(config) as profiles, _progress(times) as told:
            for start in range(0, len(events), 20):
                writer.write(events[start : start + 20])
                due = times * (start + 20) // len(events)
                while rows + _gone_wrong(proxy) < due:
                    first = rng.randrange(start + 1)
                    writer.write(events[first : first + 20])
                    rows += len(events[first : first + 20])
                if start % 200 == 180:
                    wait_for(group.published, "folds published", profiles.check)
                told(rows + _gone_wrong(proxy))
            lost, proxy.share = _gone_wrong(proxy), 0.0
            wrong = _wrong(states_in_redis(config, pair.url), writer) + _wrong(states_in_features(config), writer)
    return {
        "replays": rows + lost,
        "rows_again": rows,
        "answers": {kind: n for kind, n in proxy.counts.items() if kind},
        "wrong": wrong,
        "kept": not wrong,
    }


def _gone_wrong(proxy: RedisProxy) -> int:
    return sum(count for kind, count in list(proxy.counts.items()) if kind)


def _wrong(states: dict[tuple[str, str], State], writer: FoldWriter) -> list[str]:
    try:
        assert_exact(states, writer)
    except AssertionError as error:
        return [str(error)[:500]]
    return []


def _worker(config: Config, folder: Path, n: int) -> Process:
    named = msgspec.structs.replace(config.worker, slot=f"{config.worker.slot}-{n}")
    return Process("worker", msgspec.structs.replace(config, worker=named), folder / f"worker-{n}.log")


def _until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)


def _verdict(found: Audit) -> dict[str, int]:
    return {
        "events": found.events, "lost": found.lost, "duplicated": found.duplicated, "reordered": found.reordered
    }  # fmt: skip


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    with Progress(disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("replays", total=total)
        yield lambda done: progress.update(bar, completed=done)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="outages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("stall", "redis", "replays"), nargs="*", help="all three when left out")
    parser.add_argument("--times", type=int, help="kills (10), or replays (10000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="without Redis, and before")
    parser.add_argument("--rate", type=int, default=200, help="events a second")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, KafkaCluster(Path(folder) / "kafka", nodes=1) as cluster:
        for what in args.what or ("stall", "redis", "replays"):
            own = Path(folder) / what  # a Redis of its own: the fences of one are wrong for the topics of the next
            own.mkdir(exist_ok=True)
            at = (cluster.direct, own)
            if what == "stall":
                told[what] = stall(*at, args.times or 10, args.rate, args.seed)
            elif what == "redis":
                told[what] = redis_gone(*at, args.seconds, args.rate, args.seed)
            else:
                told[what] = replays(*at, args.times or 10_000, args.seed)
            print(f"{what}: {json.dumps(told[what])}", flush=True)
    print(json.dumps({**told, "seed": args.seed, "commit": commit()}))
    return 0 if all(figures["kept"] for figures in told.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
