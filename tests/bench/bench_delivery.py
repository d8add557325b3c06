"""What exactly once costs: events per second against at-least-once, on the same real broker, in turns.

    python -m tests.bench.bench_delivery [--quick] [--repeats N] [--events N]

The null model reads preloaded topics from one real Kafka broker and writes every output, once with either delivery at
commits of 100 ms, the order changing from repeat to repeat. Last line: one JSON object with ``ratio`` (exactly once
over at least once, the median of the repeats), its ``spread``, and the rates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Producer

from tests.bench.bench_worker import Meter, events
from tests.chaos.cluster import KafkaCluster
from tests.chaos.kills import fresh_config
from worker.config import Config
from worker.kafka.admin import create_topics
from worker.scoring.pipeline import run

TIMEOUT_S = 300.0


def preload(config: Config, count: int) -> None:
    """The mixed stream of `bench_worker`, into the topics of one run."""
    producer = Producer({"bootstrap.servers": config.kafka.bootstrap, "compression.type": "lz4", "linger.ms": 50})
    for n, (topic, key, value) in enumerate(events(count, 1, False)):
        producer.produce(config.kafka.topic(topic), value, key)
        if n % 1000 == 0:
            producer.poll(0)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} events could not be written")


def rate(config: Config, delivery: str, count: int) -> float:
    """Committed events per second, the first tenth left out."""
    meter, stop = Meter(), threading.Event()
    worker = msgspec.structs.replace(config.worker, delivery=delivery, slot=f"{config.worker.slot}-{delivery}")
    group = f"{config.kafka.group_prefix}-{delivery}"
    kafka = msgspec.structs.replace(config.kafka, group_prefix=group, static_members=False)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run(msgspec.structs.replace(config, worker=worker, kafka=kafka), stop, meter.registry)
        except BaseException as error:  # noqa: BLE001 raised again below
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    deadline, start = time.monotonic() + TIMEOUT_S, None
    while not failures and time.monotonic() < deadline:
        now, done = time.monotonic(), meter.committed()
        if start is None and done >= count * 0.1:
            start = (now, done)
        if start is not None and done >= count * 0.98:
            break
        stop.wait(0.01)
    stop.set()
    thread.join(60)
    if failures:
        raise failures[0]
    if start is None or done < count * 0.98:
        raise RuntimeError(f"only {meter.committed():.0f} of {count} events were committed in {TIMEOUT_S:.0f} s")
    return (done - start[1]) / (now - start[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two repeats of 20,000 events")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--events", type=int, default=100_000)
    args = parser.parse_args()
    repeats, count = (2, 20_000) if args.quick else (args.repeats, args.events)
    rates: dict[str, list[float]] = {"exactly_once": [], "at_least_once": []}
    with tempfile.TemporaryDirectory() as folder, KafkaCluster(Path(folder), nodes=1) as cluster:
        for repeat in range(repeats):
            config = fresh_config(cluster.direct, repeat)
            create_topics(config.kafka, replication=1)
            preload(config, count)
            for delivery in list(rates) if repeat % 2 else list(rates)[::-1]:
                rates[delivery].append(rate(config, delivery, count))
                print(f"repeat {repeat + 1}, {delivery}: {rates[delivery][-1]:.0f} events/s", flush=True)
    ratios = [once / least for once, least in zip(*rates.values(), strict=True)]
    figures: dict[str, Any] = {name: round(statistics.median(values)) for name, values in rates.items()}
    spread = [round(min(ratios), 3), round(max(ratios), 3)]
    print(json.dumps({"ratio": round(statistics.median(ratios), 3), "spread": spread, "repeats": repeats, **figures}))


if __name__ == "__main__":
    main()
