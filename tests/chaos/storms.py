"""Rebalance storms: one worker becomes eight becomes three, again and again, while events keep coming.

    python -m tests.chaos.storms [--times 100] [--protocol cooperative|consumer|eager] [--seed N]

One real broker. After every step the group must be stable with just the workers that run; a worker told to go must have
handed over within a quarter of the poll interval. In the end every event has its output exactly once. Last line: a JSON
object with ``storms``, ``protocols``, ``longest_settle_s``, ``longest_hand_over_s``, ``lost``, ``duplicated``,
``reordered``, ``seed``, ``commit``. Exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

import msgspec
from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient
from rich.progress import track

from schemas.topics import INPUTS
from tests.chaos.audit import Audit, audit, commit
from tests.chaos.cluster import KafkaCluster
from tests.chaos.fleet import Process
from tests.chaos.kills import Feeder, fresh_config
from tests.real.proof import wait_until_committed
from worker.config import Config, GroupProtocol
from worker.kafka.admin import create_topics

SIZES: Final = (1, 8, 3)
EVENTS_PER_SECOND: Final = 100
SETTLE_TIMEOUT_S: Final = 120.0
HAND_OVER_MAX_S: Final = 75.0
"""A quarter of the client's poll interval of five minutes."""


@dataclass(slots=True)
class Storm:
    """The workers of one protocol, and how long they took."""

    config: Config
    folder: Path
    workers: list[Process] = field(default_factory=list)
    settles_s: list[float] = field(default_factory=list)
    hand_overs_s: list[float] = field(default_factory=list)
    born: int = 0

    def resize(self, size: int) -> None:
        """Start or stop workers, and wait until the group is stable with them."""
        start = time.monotonic()
        leaving, self.workers = self.workers[size:], self.workers[:size]
        for worker in leaving:
            worker.send(signal.SIGTERM)
        for worker in leaving:
            code = worker.join(HAND_OVER_MAX_S)
            worker.kill()  # one that hangs would keep this process from ending
            assert code == 0, f"told to stop, it ended with {code}\n{worker.tail()}"
            self.hand_overs_s.append(time.monotonic() - start)
        while len(self.workers) < size:
            self.born += 1
            named = msgspec.structs.replace(self.config.worker, slot=f"{self.config.worker.slot}-{self.born}")
            config = msgspec.structs.replace(self.config, worker=named)
            self.workers.append(Process("worker", config, self.folder / f"worker-{self.born}.log"))
        await_stable(self.config, len(self.workers), lambda: check_running(self.workers))
        self.settles_s.append(time.monotonic() - start)


def await_stable(config: Config, workers: int, check: Callable[[], None]) -> None:
    """Wait until the group is stable with so many, and they hold all partitions. ``check`` fails when one has ended."""
    group = f"{config.kafka.group_prefix}.worker"
    admin = AdminClient({"bootstrap.servers": config.kafka.bootstrap, "log_level": 0})
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    found = "nothing"
    while time.monotonic() < deadline:
        check()
        try:
            told = admin.describe_consumer_groups([group], request_timeout=10)[group].result(timeout=20)
        except (KafkaException, TimeoutError) as error:  # the group's log may just be being made
            found = repr(error)
        else:
            held = sum(len(member.assignment.topic_partitions) for member in told.members if member.assignment)
            found = f"{told.state}, {len(told.members)} members, {held} partitions"
            whole = len(told.members) == workers and held == 12 * len(INPUTS)
            if told.state == ConsumerGroupState.STABLE and whole:
                return
        time.sleep(0.1)
    raise AssertionError(f"{workers} workers are no stable group after {SETTLE_TIMEOUT_S:.0f} s: {found}")


def check_running(workers: Sequence[Process]) -> None:
    """Fail when one of them has ended."""
    for worker in workers:
        assert worker.exit_code is None, f"ended by itself with {worker.exit_code}\n{worker.tail()}"


def storm(protocol: GroupProtocol, times: int, bootstrap: str, folder: Path, seed: int) -> tuple[Audit, Storm]:
    """So many storms under one protocol; what a committed reader finds, and how long things took."""
    config = fresh_config(bootstrap, seed, group_protocol=protocol, static_members=False)
    create_topics(config.kafka, replication=1)
    feeder, running = Feeder(config, EVENTS_PER_SECOND, seed), Storm(config, folder)
    feeder.start()
    try:
        for _ in track(range(times), protocol, disable=not sys.stderr.isatty()):
            for size in SIZES:
                running.resize(size)
        feeder.finish()
        inputs = [config.kafka.topic(name) for name in INPUTS]
        wait_until_committed(bootstrap, f"{config.kafka.group_prefix}.worker", inputs, [])
        running.resize(1)
    finally:
        feeder.finish()
        for worker in running.workers:
            worker.stop()
    return audit(bootstrap, config.kafka), running


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="storms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100, help="storms under each protocol")
    parser.add_argument("--protocol", choices=get_args(GroupProtocol), help="one protocol alone")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    protocols: list[GroupProtocol] = [args.protocol] if args.protocol else list(get_args(GroupProtocol))
    total, settles, hand_overs = Audit(), [0.0], [0.0]
    with tempfile.TemporaryDirectory() as folder, KafkaCluster(Path(folder), nodes=1) as cluster:
        for protocol in protocols:
            found, running = storm(protocol, args.times, cluster.direct, Path(folder), args.seed)
            print(f"{protocol}: {found.events} events, {'clean' if found.clean else found.examples}", flush=True)
            settles += running.settles_s
            hand_overs += running.hand_overs_s
            total.add(found)
    figures = {"storms": args.times, "protocols": protocols, **total.figures(), "seed": args.seed, "commit": commit()}
    figures |= {"longest_settle_s": round(max(settles), 1), "longest_hand_over_s": round(max(hand_overs), 1)}
    print(json.dumps(figures))
    return 0 if total.clean else 1


if __name__ == "__main__":
    sys.exit(main())
