"""The alerts role on a real broker: opinions a second, and how long from an opinion to the alert that it sets off.

    python -m tests.bench.bench_watch [--quick] [--opinions N] [--bursts N] [--seed N]

One process of the role, twelve partitions. First it counts a preloaded topic: 3,000 subjects, Zipf-distributed, an hour
of event time. Then bursts come in real time, one subject every fifth of a second, on top of that hour: an alert's age
is the time from the event time that opened it to a committed reader's sight of it. Last line: one JSON object with
``opinions_per_second`` (the first tenth left out), ``alerts``, and ``p50_ms``, ``p99_ms`` of their ages.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from confluent_kafka import Consumer

from schemas.scores import Alert
from schemas.topics import ALERTS_OPINION, OPINIONS, TRENDS_OPINION
from tests.chaos.cluster import KafkaCluster
from tests.chaos.kills import fresh_config
from tests.opinions import opinion
from tests.roles import process, program
from tests.servers import free_ports
from worker.config import Config
from worker.kafka.admin import create_topics
from worker.kafka.bulk import BulkProducer

SUBJECTS: Final = 3000
HISTORY_MS: Final = 3_600_000
CALM_SHARE: Final = 0.12
BURST: Final = 40
"""Negative opinions of a burst, within two seconds."""
BURST_EVERY_S: Final = 0.2
HISTORY: Final = 300
"""Opinions in the hour before a burst, on its subject."""
WAIT_S: Final = 300.0


class Writer:
    """Opinions as the worker writes them, keyed by subject."""

    def __init__(self, config: Config, seed: int) -> None:
        self._rng, self._sent = random.Random(seed), 0
        self._producer = BulkProducer(
            config.kafka,
            config.kafka.topic(OPINIONS),
            doing="writing opinions",
            advice="Run the bench again.",
            timeout_s=120,
        )

    def write(self, subject: str, at_ms: int, *, negative: bool | None = None) -> None:
        """One opinion; negative as often as in calm times unless told."""
        bad = self._rng.random() < CALM_SHARE if negative is None else negative
        p_negative = self._rng.uniform(0.8, 1.0) if bad else self._rng.uniform(0.0, 0.2)
        made = opinion(subject, at_ms, p_negative, self._sent)
        self._sent += 1
        self._producer.write(msgspec.json.encode(made), subject.encode())

    def flush(self) -> None:
        """Until all is there."""
        self._producer.finish()


def preload(writer: Writer, count: int, bursts: int, seed: int) -> int:
    """An hour that ends now, in the order of its events; how many opinions."""
    rng, now_ms = np.random.default_rng(seed), int(time.time() * 1000)
    weights = 1 / np.arange(1, SUBJECTS + 1)
    subjects = [f"item:calm-{n}" for n in rng.choice(SUBJECTS, count, p=weights / weights.sum())]
    subjects += [f"item:burst-{n}" for n in range(bursts) for _ in range(HISTORY)]
    times = now_ms - HISTORY_MS + rng.integers(0, HISTORY_MS, len(subjects))
    for n in np.argsort(times):
        writer.write(subjects[n], int(times[n]))
    writer.flush()
    return len(subjects)


def counted(address: str) -> float:
    """What the role says it has counted or skipped; 0 while it says nothing yet."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return 0.0
    names = ("millrace_alerts_opinions_total", "millrace_alerts_skipped_total")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def throughput(address: str, count: int, check: Callable[[], None]) -> float:
    """Opinions a second from the first tenth to the last."""
    deadline, start = time.monotonic() + WAIT_S, None
    while (done := counted(address)) < count:
        now = time.monotonic()
        if start is None and done >= count / 10:
            start = (now, done)
        check()
        if now > deadline:
            raise TimeoutError(f"{done:.0f} of {count} opinions counted in {WAIT_S:.0f} s")
        time.sleep(0.02)
    assert start is not None
    return (count - start[1]) / (time.monotonic() - start[0])


def ages(config: Config, writer: Writer, bursts: int) -> list[float]:
    """Milliseconds from the event that opened an alert to its sight, of bursts sent in real time."""
    reader = Consumer(
        {
            "bootstrap.servers": config.kafka.bootstrap,
            "group.id": f"{config.kafka.group_prefix}-reader",
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 10,
        }
    )
    reader.subscribe([config.kafka.topic(ALERTS_OPINION)])
    found: dict[str, float] = {}
    due = sorted(
        (n * BURST_EVERY_S + i * 2 / BURST, f"item:burst-{n}") for n in range(bursts) for i in range(BURST)
    )  # seconds from now, subject
    began, deadline = time.time(), time.time() + bursts * BURST_EVERY_S + WAIT_S
    while len(found) < bursts and time.time() < deadline:
        while due and began + due[0][0] <= time.time():
            writer.write(due.pop(0)[1], int(time.time() * 1000), negative=True)
        for message in reader.consume(100, 0.005):
            if message.error() is None:
                alert = msgspec.json.decode(message.value(), type=Alert)
                if alert.status == "opened" and alert.subject.startswith("item:burst-"):
                    found.setdefault(alert.subject, time.time() * 1000 - alert.opened_at_ms)
        if not due and time.time() - began > bursts * BURST_EVERY_S + 20:
            break
    reader.close()
    writer.flush()
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30,000 opinions and 40 bursts")
    parser.add_argument("--opinions", type=int, default=200_000)
    parser.add_argument("--bursts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    count, bursts = (30_000, 40) if args.quick else (args.opinions, args.bursts)
    with tempfile.TemporaryDirectory() as temporary, KafkaCluster(Path(temporary) / "kafka", nodes=1) as cluster:
        folder, address = Path(temporary), f"127.0.0.1:{free_ports(1)[0]}"
        kafka = fresh_config(cluster.direct, args.seed).kafka
        tree: dict[str, Any] = {
            "kafka": msgspec.to_builtins(kafka),
            "alerts": {"data_dir": str(folder / "alerts")},
            "observe": {"log_level": "warning", "port": int(address.rpartition(":")[2])},
        }
        (folder / "config.json").write_bytes(msgspec.json.encode(tree))
        config = msgspec.convert(tree, Config)
        create_topics(config.kafka, replication=1, contracts=[OPINIONS, ALERTS_OPINION, TRENDS_OPINION])
        writer = Writer(config, args.seed)
        total = preload(writer, count, bursts, args.seed)
        with process(program("worker.alerts.role"), folder) as role:

            def check() -> None:
                if role.poll() is not None:
                    said = (folder / "role.out").read_text()[-3000:]
                    raise RuntimeError(f"the role ended with {role.returncode}: {said}")

            rate = throughput(address, total, check)
            found = ages(config, writer, bursts)
    figures = {"opinions_per_second": round(rate), "opinions": total, "bursts": bursts, "alerts": len(found)}
    told = {f"p{p}_ms": round(float(np.percentile(found, p)), 1) for p in (50, 99)} if found else {}
    print(json.dumps({**figures, **told, "seed": args.seed}))


if __name__ == "__main__":
    main()
