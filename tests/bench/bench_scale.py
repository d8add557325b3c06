"""How the worker scales over processes: the device sleeps instead of computing, so coordination is what is measured.

    python -m tests.bench.bench_scale [--quick] [--embedded]

1, 2, 4 and 8 worker processes, one group, one broker (real Kafka where Java and Maven are, else the embedded one with
four partitions a topic), each reading the same preloaded topics in a group of its own; twice over, interleaved. Every
run is to the last event, so that all have scored the same mix (clicks go first, and are short), and partitions hold
equally many, so that it is not the largest one that is measured. A device that takes 40 ms a batch and 1 ms a token
leaves most of a small machine to Kafka and to us. ``efficiency`` is the rate over the count times the rate of one;
``predicted`` is what `worker.tools.plan` says of one worker, times the count, for events of as many tokens as these
have; ``planned_mb`` is its memory of a worker, queues full, beside ``worker_rss_mb``. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from typing import Any

import msgspec
from confluent_kafka import Producer

from schemas.topics import INPUTS
from tests.bench.bench_worker import events
from tests.bench.rig import Patience, WorkerProcess, embedded_servers, picture, real_servers
from worker.config import Config
from worker.tools.plan import Costs, Demand, saturated_rate, worker_memory_mb

SLEEP = (40.0, 1000.0)
"""Milliseconds a batch, microseconds a token."""
COSTS = Costs(batch_ms=SLEEP[0], token_us=SLEEP[1])
LOOK_S = 0.1
PARTITIONS = 24
EVENTS, QUICK_EVENTS = 12_000, 6_000


def preload(config: Config, count: int) -> None:
    """Fill the input topics, each partition of a topic with equally many: by users the largest would get a fifth."""
    producer = Producer({"bootstrap.servers": config.kafka.bootstrap, "compression.type": "lz4", "linger.ms": 50})
    partitions = {topic: len(producer.list_topics(topic, timeout=10).topics[topic].partitions) for topic in INPUTS}
    sent = dict.fromkeys(INPUTS, 0)
    for topic, key, value in events(count, 1, unique=True):
        producer.produce(topic, value, key, partition=sent[topic] % partitions[topic])
        sent[topic] += 1
        producer.poll(0)
    producer.flush()


def measure(config: Config, workers: int, count: int) -> dict[str, Any]:
    """Committed events a second of so many workers, from when each of them has committed some to the last event.

    Raises RuntimeError when nothing moves.
    """
    kafka = msgspec.structs.replace(config.kafka, group_prefix=f"scale-{workers}-{time.time_ns()}")
    running = [WorkerProcess(msgspec.structs.replace(config, kafka=kafka), SLEEP) for _ in range(workers)]
    patience, done, before, start = Patience(), 0.0, list[dict[str, Any]](), 0.0
    try:
        while done < count:
            time.sleep(LOOK_S)
            after = [worker.ask() for worker in running]
            done = sum(each["committed"] for each in after)
            patience.see(done)
            if not before and all(each["committed"] for each in after):
                before, start = after, time.monotonic()
        taken = time.monotonic() - start
    finally:
        for worker in running:
            worker.close()
    if not before:
        raise RuntimeError(f"all was done before each of {workers} workers had a part in it")
    total = sum(b["committed"] - a["committed"] for a, b in zip(before, after, strict=True))
    busy = sum(b["busy_s"] - a["busy_s"] for a, b in zip(before, after, strict=True))
    cpu = sum(b["cpu_s"] - a["cpu_s"] for a, b in zip(before, after, strict=True))
    tokens = sum(b["tokens"] - a["tokens"] for a, b in zip(before, after, strict=True)) / max(total, 1)
    demand = Demand(events_per_second=1, p99_ms=1, tokens=tokens, repeated=0.0)
    tightest_s = min(config.worker.objectives_s(on_gpu=False).values())
    one = saturated_rate(demand, COSTS, config, tightest_s)
    return {
        "events_per_second": total / taken,
        "tokens_per_event": tokens,
        "predicted": workers * one,
        "device_busy": busy / taken / workers,
        "cpu_us_per_event": 1e6 * cpu / max(total, 1),
        "rss_mb": max(figures["memory_mb"]["rss"] for figures in after),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"once, {QUICK_EVENTS:,} events each")
    parser.add_argument("--embedded", action="store_true", help="the embedded broker, Java or not")
    args = parser.parse_args()
    real = not args.embedded and bool(shutil.which("java") and shutil.which("mvn"))
    counts, rounds, total = (1, 2, 4, 8), 1 if args.quick else 2, QUICK_EVENTS if args.quick else EVENTS
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    servers = (
        real_servers(PARTITIONS, model={"artifact": "null"}) if real else embedded_servers(model={"artifact": "null"})
    )
    with servers as config:
        preload(config, total)
        for _ in range(rounds):
            for count in counts:
                runs[count].append(measure(config, count, total))
                print(count, "workers:", json.dumps({k: round(v, 3) for k, v in runs[count][-1].items()}), flush=True)
    rates, predicted = (
        {count: statistics.median(run[what] for run in runs[count]) for count in counts}
        for what in ("events_per_second", "predicted")
    )

    def draw(plt: Any) -> None:
        plt.figure(figsize=(6, 4))
        plt.plot(counts, [rates[count] for count in counts], "o-", label="measured")
        plt.plot(counts, [predicted[count] for count in counts], "--", label="predicted by millrace plan")
        plt.xlabel("worker processes")
        plt.ylabel("events a second")
        plt.legend()

    print(
        json.dumps(
            {
                "broker": "kafka" if real else "embedded",
                "events_per_second": {count: round(rate, 1) for count, rate in rates.items()},
                "efficiency": {count: round(rate / (count * rates[1]), 3) for count, rate in rates.items()},
                "predicted": {count: round(rate, 1) for count, rate in predicted.items()},
                "measured_over_predicted": {c: round(rate / predicted[c], 3) for c, rate in rates.items()},
                "device_busy": {c: round(statistics.median(r["device_busy"] for r in runs[c]), 3) for c in counts},
                "planned_mb": worker_memory_mb(COSTS, config),
                "worker_rss_mb": round(max(run["rss_mb"] for each in runs.values() for run in each), 1),
                "picture": picture("scale", draw),
            }
        )
    )


if __name__ == "__main__":
    main()
