"""How the worker scales over processes: the device sleeps instead of computing, so coordination is what is measured.

    python -m tests.bench.bench_scale [--quick] [--embedded]

1, 2, 4 and 8 worker processes, one group, one broker (real Kafka where Java and Maven are, else the embedded one with
four partitions a topic), each reading the same preloaded topics in a group of its own; twice over, interleaved. A
device that takes 40 ms a batch and 1 ms a token leaves most of a small machine to Kafka and to us. ``efficiency`` is
the rate over the count times the rate of one; ``predicted`` is what `worker.tools.plan` says of one worker, times the
count, for events of as many tokens as those that were scored had: at saturation clicks go first, and are short.
Last line: one JSON object.
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

from tests.bench.bench_worker import events
from tests.bench.rig import START_TIMEOUT_S, WorkerProcess, embedded_servers, picture, real_servers
from worker.config import Config
from worker.tools.plan import Costs, Demand, saturated_rate

SLEEP = (40.0, 1000.0)
"""Milliseconds a batch, microseconds a token."""
PARTITIONS = 24
PRELOADED = 60_000


def preload(config: Config, count: int) -> None:
    """Fill the input topics."""
    producer = Producer({"bootstrap.servers": config.kafka.bootstrap, "compression.type": "lz4", "linger.ms": 50})
    for n, (topic, key, value) in enumerate(events(count, 1, unique=True)):
        producer.produce(topic, value, key)
        if n % 500 == 0:
            producer.poll(0)
    producer.flush()


def measure(config: Config, workers: int, seconds: float) -> dict[str, Any]:
    """Committed events a second of so many workers, once each of them has committed some."""
    kafka = msgspec.structs.replace(config.kafka, group_prefix=f"scale-{workers}-{time.time_ns()}")
    running = [WorkerProcess(msgspec.structs.replace(config, kafka=kafka), SLEEP) for _ in range(workers)]
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(worker.ask()["committed"] > 50 for worker in running):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all of {workers} workers came to work in {START_TIMEOUT_S:.0f} s")
            time.sleep(0.2)
        before, start = [worker.ask() for worker in running], time.monotonic()
        time.sleep(seconds)
        after, taken = [worker.ask() for worker in running], time.monotonic() - start
    finally:
        for worker in running:
            worker.close()
    total = sum(b["committed"] - a["committed"] for a, b in zip(before, after, strict=True))
    busy = sum(b["busy_s"] - a["busy_s"] for a, b in zip(before, after, strict=True))
    cpu = sum(b["cpu_s"] - a["cpu_s"] for a, b in zip(before, after, strict=True))
    tokens = sum(b["tokens"] - a["tokens"] for a, b in zip(before, after, strict=True)) / max(total, 1)
    demand = Demand(events_per_second=1, p99_ms=1, tokens=tokens, repeated=0.0)
    tightest_s = min(config.worker.objectives_s(on_gpu=False).values())
    one = saturated_rate(demand, Costs(batch_ms=SLEEP[0], token_us=SLEEP[1]), config, tightest_s)
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
    parser.add_argument("--quick", action="store_true", help="once, 8 s each")
    parser.add_argument("--embedded", action="store_true", help="the embedded broker, Java or not")
    args = parser.parse_args()
    real = not args.embedded and bool(shutil.which("java") and shutil.which("mvn"))
    counts, rounds, seconds = (1, 2, 4, 8), 1 if args.quick else 2, 8.0 if args.quick else 20.0
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    servers = (
        real_servers(PARTITIONS, model={"artifact": "null"}) if real else embedded_servers(model={"artifact": "null"})
    )
    with servers as config:
        preload(config, PRELOADED if real else PRELOADED // 2)
        for _ in range(rounds):
            for count in counts:
                runs[count].append(measure(config, count, seconds))
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
                "worker_rss_mb": round(max(run["rss_mb"] for each in runs.values() for run in each), 1),
                "picture": picture("scale", draw),
            }
        )
    )


if __name__ == "__main__":
    main()
