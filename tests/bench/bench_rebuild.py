"""How fast an empty Redis is rebuilt from the features topics: users a second, on real Kafka and redis-server.

``make bench-rebuild ARGS="--users 200000 --processes 1"``; the last line is JSON. States are written to `features.user`
as profiles writes them; then every shard is opened as profiles opens it when Redis has no fence. With several processes
each has its share of the shards, as members of the group have.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import redis
from prometheus_client import CollectorRegistry

from model.state import States
from schemas.redis_keys import state_key
from schemas.shards import shard_of
from schemas.states import Fence, decode_state, encode_fence
from tests.real.conftest import SCRIPT, free_ports, kafka_answers, redis_answers, server
from worker.config import Config
from worker.kafka.admin import create_topics
from worker.kafka.sink import KafkaSink
from worker.metrics import ProfilesMetrics
from worker.privacy.erasures import Erasures
from worker.profiles.features import Features
from worker.profiles.foldstream import FoldStream
from worker.profiles.shard import ShardOpener
from worker.redis.store import StateStore

SPACE = "bench"
BATCH = 5000


@contextmanager
def servers(folder: Path) -> Iterator[tuple[str, str]]:
    """A broker and a Redis of our own: bootstrap and URL."""
    subprocess.run([SCRIPT, "fetch"], check=True, stdout=subprocess.DEVNULL, timeout=600)
    port, controller, redis_port = free_ports(3)
    bootstrap, url = f"127.0.0.1:{port}", f"redis://127.0.0.1:{redis_port}/0"
    kafka = [str(SCRIPT), "run", "--port", str(port), "--controller-port", str(controller), "--data", str(folder / "k")]
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("redis-server is missing: apt-get install redis-server")
    store = [program, "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with ExitStack() as stack:
        stack.enter_context(server(kafka, folder / "kafka.out", lambda: kafka_answers(bootstrap)))
        stack.enter_context(server(store, folder / "redis.out", lambda: redis_answers(url)))
        yield bootstrap, url


def publish(config: Config, users: int) -> None:
    """States of so many users, and the fence of every shard."""
    features, sink = Features(config.kafka, SPACE), KafkaSink(config.kafka)
    shards = config.kafka.fold_shards
    random = np.random.default_rng(1)
    for first in range(0, users, BATCH):
        n = min(BATCH, users - first)
        states = States.empty(n, config.profiles.scales_s)
        ones = np.ones((n, 3))
        states.fold(np.arange(n), np.full(n, 10**12), ones[:, :2], ones, random.standard_normal((n, 64)))
        names = [f"user-{i}" for i in range(first, first + n)]
        by_shard: dict[int, list[Any]] = {}
        for state in states.to_records("user", names, 7, 5):
            by_shard.setdefault(shard_of(state.key, shards), []).append(state)
        for shard, found in by_shard.items():
            keys, fence = [state.key for state in found], encode_fence(Fence(incarnation=7, fold_offset=0, marks={}))
            sink.write(features.messages("user", shard, keys, found, fence))
        sink.seal({})
        deadline = time.monotonic() + 300
        while not sink.poll(0.1):
            assert time.monotonic() < deadline, "the broker did not take the states"
    sink.close(10)
    features.close()


def rebuild(config: Config, mine: list[int], go: Any, done: Any) -> None:
    """Open the shards; tells how long it took."""
    with ExitStack() as stack:
        store = stack.enter_context(closing(StateStore(config.redis, SPACE)))
        features = stack.enter_context(closing(Features(config.kafka, SPACE)))
        nothing = lambda _: None  # noqa: E731 three callbacks that never come: nothing is polled
        stream = stack.enter_context(closing(FoldStream(config.kafka, nothing, nothing, nothing)))
        opener = ShardOpener(store, features, stream, Erasures(), ProfilesMetrics(CollectorRegistry()))
        go.wait()
        began, used = time.monotonic(), time.process_time()
        for shard in mine:
            opener.open("user", shard)
        done.put((time.monotonic() - began, time.process_time() - used))


def check(config: Config, users: int) -> None:
    """Every state is there, and reads as itself."""
    with redis.Redis.from_url(config.redis.url) as client:
        assert client.dbsize() == users + config.kafka.fold_shards
        for user in range(0, users, max(1, users // 1000)):
            name = f"user-{user}"
            value: Any = client.get(state_key(SPACE, "user", shard_of(name, config.kafka.fold_shards), name))
            assert decode_state(value).key == name


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--profile", metavar="FILE", help="Write a cProfile of the first process there.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder)) as (bootstrap, url):
        tree = {"kafka": {"bootstrap": bootstrap}, "redis": {"url": url}}
        config = msgspec.convert(tree, Config)
        create_topics(config.kafka)
        publish(config, arguments.users)
        print(json.dumps(measure(config, arguments)))


def measure(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rebuild, and the figures."""
    context = multiprocessing.get_context("spawn")
    go, done = context.Event(), context.Queue()
    shards = list(range(config.kafka.fold_shards))
    if arguments.profile:
        import cProfile

        go.set()
        profile = cProfile.Profile()
        profile.runcall(rebuild, config, shards, go, done)
        profile.dump_stats(arguments.profile)
        parts = [done.get()]
    else:
        n = arguments.processes
        processes = [context.Process(target=rebuild, args=(config, shards[i::n], go, done)) for i in range(n)]
        for process in processes:
            process.start()
        go.set()
        parts = [done.get(timeout=1800) for _ in processes]
        for process in processes:
            process.join()
    check(config, arguments.users)
    seconds = max(wall for wall, _ in parts)
    cpu = sum(used for _, used in parts)
    return {
        "users": arguments.users,
        "processes": arguments.processes,
        "users_per_second": round(arguments.users / seconds),
        "seconds": round(seconds, 2),
        "cpu_us_per_user": round(cpu / arguments.users * 1e6, 2),
        "users_per_second_of_cpu": round(arguments.users / cpu),
        "max_rss_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    main()
