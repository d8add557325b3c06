"""The shop that a campaign breaks: three brokers, two Redis, and the roles under a supervisor."""

from __future__ import annotations

import json
import signal
import threading
import time
import uuid
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import msgspec

from schemas.topics import TOPICS
from tests.chaos.cluster import KafkaCluster
from tests.chaos.fleet import Process
from tests.chaos.redis_pair import RedisPair
from worker.config import Config
from worker.kafka.admin import create_topics, partition_counts

SPAWN_EVERY_S: Final = 0.5
"""A role that ended is started again no sooner: one that cannot come up must not take all the machine."""


class Site:
    """Everything that faults act on. Thread-safe where it must be: `tend` and faults run on one thread."""

    WORKERS: ClassVar = 3
    PROFILES: ClassVar = 2

    def __init__(self, folder: Path, cluster: KafkaCluster, redis: RedisPair, seed: int) -> None:
        self.folder, self.cluster, self.redis, self.seed = folder, cluster, redis, seed
        run = f"{seed}-{uuid.uuid4().hex[:6]}"
        self.run = run
        sections: dict[str, Any] = {
            "kafka": {
                "bootstrap": cluster.bootstrap,
                "group_prefix": f"chaos-{run}",
                "fold_shards": 4,
                "topics": {name: f"{name}-{run}" for name in TOPICS},
            },
            "redis": {"url": redis.url},
            "model": {"artifact": "null"},
        }
        self.config = msgspec.convert(sections, Config)
        self.direct = msgspec.convert({**sections["kafka"], "bootstrap": cluster.direct}, type(self.config.kafka))
        create_topics(self.direct, replication=3)
        cluster.wait_until_in_sync()
        self.ends: list[str] = []
        self._wanted = {f"worker-{n}" for n in range(self.WORKERS)} | {f"profiles-{n}" for n in range(self.PROFILES)}
        self._processes: dict[str, Process] = {}
        self._leaving: list[Process] = []
        self._spawned_s: dict[str, float] = {}
        self._paused_broker: int | None = None
        self._log = (folder / "faults.jsonl").open("a", encoding="utf-8")
        self._lock = threading.Lock()

    # -- roles

    def tend(self) -> None:
        """Start what is wanted and does not run; note how it ended."""
        for name in sorted(self._wanted):
            process = self._processes.get(name)
            if process is not None and process.exit_code is not None:
                if process.exit_code not in (0, -signal.SIGKILL):
                    self.ends.append(f"{name}: exit {process.exit_code}")
                    self.say(f"{name} ended with {process.exit_code}: {process.tail().splitlines()[-1:]}")
                del self._processes[name]
                process = None
            if process is None and time.monotonic() - self._spawned_s.get(name, 0.0) > SPAWN_EVERY_S:
                self._spawned_s[name] = time.monotonic()
                role, _, slot = name.partition("-")
                worker = msgspec.structs.replace(self.config.worker, slot=f"{self.run}-{slot}")
                config = msgspec.structs.replace(self.config, worker=worker)
                self._processes[name] = Process(role, config, self.folder / f"{name}.log")

    def want(self, name: str, *, running: bool) -> None:
        """Have a role run, or stop it cleanly."""
        if running:
            self._wanted.add(name)
            return
        self._wanted.discard(name)
        if (process := self._processes.pop(name, None)) is not None:
            process.send(signal.SIGCONT)
            process.send(signal.SIGTERM)
            self._spawned_s[name] = time.monotonic()
            self._leaving.append(process)

    def kill(self, name: str) -> None:
        """kill -9; the supervisor starts it again."""
        if (process := self._processes.get(name)) is not None:
            process.kill()

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        if (process := self._processes.get(name)) is not None:
            process.send(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        if (process := self._processes.get(name)) is not None:
            process.send(signal.SIGCONT)

    def stop(self) -> None:
        """End all roles cleanly."""
        for name in sorted(self._wanted):
            self.want(name, running=False)
        for process in self._leaving:
            process.join(60)
            process.kill()
        self._log.close()

    # -- brokers

    def transactional_id(self, name: str) -> str:
        """Of a worker by name."""
        return f"{self.config.kafka.group_prefix}.worker.{self.run}-{name.partition('-')[2]}"

    def partitions(self, contract: str) -> int:
        """Of a topic of the contract."""
        name = self.config.kafka.topic(contract)
        return partition_counts(self.direct, [name])[name]

    def pause_coordinator(self, of: Literal["group", "transaction"]) -> None:
        """Hang the broker that coordinates the workers' group, or the first worker's transactions."""
        self._paused_broker = self._coordinator(of)
        self.cluster.pause(self._paused_broker)

    def resume_broker(self) -> None:
        """The one that was paused as coordinator."""
        if self._paused_broker is not None:
            self.cluster.resume(self._paused_broker)
            self._paused_broker = None

    def move_coordinator(self, of: Literal["group", "transaction"]) -> None:
        """Have another broker coordinate."""
        group, transaction = f"{self.config.kafka.group_prefix}.worker", self.transactional_id("worker-0")
        home = self.cluster.group_home(group) if of == "group" else self.cluster.transaction_home(transaction)
        self.cluster.move_leader(*home)

    def _coordinator(self, of: Literal["group", "transaction"]) -> int:
        if of == "group":
            return self.cluster.group_coordinator(f"{self.config.kafka.group_prefix}.worker")
        return self.cluster.transaction_coordinator(self.transactional_id("worker-0"))

    def say(self, what: str, **more: Any) -> None:
        """A line of the fault log."""
        with self._lock:
            self._log.write(json.dumps({"at_s": round(time.time(), 3), "what": what, **more}) + "\n")
            self._log.flush()
