"""Kill a worker at every named point of a transaction's life, again and again, while events keep coming.

    python -m tests.chaos.kills [--times 50] [--point NAME] [--seed N]

One real broker, a worker under a supervisor that starts it again at once. In the end every event must have its output,
opinions and folds exactly once, in order, for a committed reader. Last line: one JSON object with ``points``,
``kills``, ``events``, ``lost``, ``duplicated``, ``reordered``, ``seed``, ``commit``. Exit code 1 when a promise was
broken.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec
from confluent_kafka import Producer
from rich.progress import track

from schemas.topics import INPUTS, TOPICS
from tests.chaos.audit import Audit, audit, commit
from tests.chaos.cluster import KafkaCluster
from tests.chaos.fleet import CRASH_POINTS, Process
from tests.real.proof import wait_until_committed
from worker.config import Config
from worker.kafka.admin import create_topics

EVENTS_PER_SECOND: Final = 150
LIFE_TIMEOUT_S: Final = 60.0
PASSES_MAX: Final = {"output half produced": 40}
PASSES_MAX_ELSE: Final = 5


class Feeder(threading.Thread):
    """Sends events to all inputs until told to stop; counts what the broker has acknowledged."""

    def __init__(self, config: Config, rate: int, seed: int, users: int = 50) -> None:
        super().__init__(name="feeder", daemon=True)
        self.sent = 0
        self._config, self._rate, self._users = config, rate, users
        self._rng = random.Random(seed)
        self._stopped = threading.Event()
        # Acknowledged by all or retried, in order: what the check expects is what is in the topics.
        self._producer = Producer(
            {"bootstrap.servers": config.kafka.bootstrap, "enable.idempotence": True, "message.timeout.ms": 0}
        )

    def run(self) -> None:
        """Send at the rate, a little every twentieth of a second."""
        while not self._stopped.wait(0.05):
            self.send(max(1, self._rate // 20))

    def send(self, count: int) -> None:
        """So many events more."""
        for _ in range(count):
            self._producer.produce(*self._event())
            self.sent += 1
        self._producer.poll(0)

    def finish(self) -> None:
        """Send no more, and wait until all is acknowledged."""
        self._stopped.set()
        if self.is_alive():
            self.join()
        left = self._producer.flush(120)
        assert left == 0, f"{left} events could not be sent"

    def _event(self) -> tuple[str, bytes | None, bytes]:
        n, user = self.sent, f"u{self._rng.randrange(self._users)}"
        topic = self._config.kafka.topic(INPUTS[n % len(INPUTS)])
        if self._rng.random() < 0.02:
            return topic, self._rng.choice([b"", b"[]", b"\xff\xfe", b'{"event_id": 7}']), user.encode()
        event: dict[str, Any] = {"event_id": f"e{n}", "event_time_ms": int(time.time() * 1000), "user_id": user}
        event |= {"text": f"text {n}", "title": f"title {n % 97}", "item_id": f"i{n % 23}", "clicked": n % 3 == 0}
        return topic, msgspec.json.encode(event), user.encode()


def kill_at(point: str, times: int, bootstrap: str, folder: Path, seed: int, **kafka: Any) -> Audit:
    """Kill a worker ``times`` times at the point, let the last one finish, and check."""
    config = fresh_config(bootstrap, seed, **kafka)
    create_topics(config.kafka, replication=1)
    rng = random.Random(f"{seed} {point}")
    feeder = Feeder(config, EVENTS_PER_SECOND, seed)
    feeder.start()
    log = folder / f"worker-{point.replace(' ', '-')}.log"
    try:
        for kill in range(times):
            passes = rng.randrange(PASSES_MAX.get(point, PASSES_MAX_ELSE)) if point != "transactions opened" else 0
            process = Process("worker", config, log, (point, passes))
            code = process.join(LIFE_TIMEOUT_S)
            assert code == -9, f"kill {kill + 1} at {point!r}: ended with {code}\n{process.tail()}"
    finally:
        feeder.finish()
    last = Process("worker", config, log)
    try:
        inputs = [config.kafka.topic(name) for name in INPUTS]
        wait_until_committed(bootstrap, f"{config.kafka.group_prefix}.worker", inputs, [])
    finally:
        last.stop()
    return audit(bootstrap, config.kafka)


def fresh_config(bootstrap: str, seed: int, **more: Any) -> Config:
    """The configuration of `fresh_sections`."""
    return msgspec.convert(fresh_sections(bootstrap, seed, **more), Config)


def fresh_sections(bootstrap: str, seed: int, **more: Any) -> dict[str, dict[str, Any]]:
    """Topics and groups of one run alone, the null model, no Redis (states are read best-effort)."""
    run = f"{seed}-{uuid.uuid4().hex[:6]}"
    kafka = {
        "bootstrap": bootstrap,
        "group_prefix": f"chaos-{run}",
        "fold_shards": 4,
        "topics": {name: f"{name}-{run}" for name in TOPICS},
        # A worker that comes back takes its partitions up at once, as under a supervisor in production.
        "static_members": True,
        **more,
    }
    return {
        "kafka": kafka,
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "model": {"artifact": "null"},
        "worker": {"slot": f"slot-{run}"},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=50, help="kills at each point")
    parser.add_argument("--point", choices=list(CRASH_POINTS), help="one point alone")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    points = [args.point] if args.point else list(CRASH_POINTS)
    total = Audit()
    with tempfile.TemporaryDirectory() as folder, KafkaCluster(Path(folder), nodes=1) as cluster:
        for point in track(points, "points", disable=not sys.stderr.isatty()):
            found = kill_at(point, args.times, cluster.direct, Path(folder), args.seed)
            print(f"{point}: {found.events} events, {'clean' if found.clean else found.examples}", flush=True)
            total.add(found)
    kills = args.times * len(points)
    told = {"points": len(points), "kills": kills, **total.figures(), "seed": args.seed, "commit": commit()}
    print(json.dumps(told))
    return 0 if total.clean else 1


if __name__ == "__main__":
    sys.exit(main())
