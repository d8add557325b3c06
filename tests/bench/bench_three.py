"""One shared encoder against three separate ones: events a second and memory.

    python -m tests.bench.bench_three [--quick] [--artifact starter]

The same preloaded topics, once read by one worker, once by three workers of which each reads one stream and has the
model to itself, as three separate models would. All have the same cores; the three get one thread each (with more they
only take turns), the one gets them all. Interleaved repeats; a run ends when every event is committed, and fails when
none is for two minutes. Memory is what the processes have of their own plus their part of what they share (PSS). Last
line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import msgspec
from confluent_kafka import Producer

from schemas.topics import INPUTS
from tests.bench.bench_worker import events
from tests.bench.rig import Patience, WorkerProcess, embedded_servers, picture
from worker.config import Config

EMPTY = {name: f"empty.{name}" for name in INPUTS}


def configs(base: Config, three: bool, run: str) -> list[Config]:
    """One configuration for all streams, or one each; the streams that a worker does not read are empty topics."""
    kafka = msgspec.structs.replace(base.kafka, group_prefix=run)
    if not three:
        return [msgspec.structs.replace(base, kafka=kafka)]
    model = msgspec.structs.replace(base.model, threads=1)
    found = []
    for own in INPUTS:
        topics = {name: empty for name, empty in EMPTY.items() if name != own}
        mine = msgspec.structs.replace(kafka, topics=topics, group_prefix=f"{run}-{own}")
        found.append(msgspec.structs.replace(base, kafka=mine, model=model))
    return found


def measure(base: Config, three: bool, count: int, run: str) -> dict[str, float]:
    """From the first tenth committed to the last event. Raises RuntimeError when nothing moves."""
    patience = Patience()
    workers = [WorkerProcess(config) for config in configs(base, three, run)]
    try:
        start = begun = memory = done = 0.0
        while done < count:
            figures = [worker.ask() for worker in workers]
            done = sum(each["committed"] for each in figures)
            patience.see(done)
            memory = max(memory, sum(each["memory_mb"]["pss"] for each in figures))
            if not start and all(each["committed"] > 0 for each in figures) and done >= 0.1 * count:
                start, begun = time.monotonic(), done
            time.sleep(0.1)
        return {"events_per_second": (done - begun) / (time.monotonic() - start), "memory_mb": memory}
    finally:
        for worker in workers:
            worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two repeats of 2,000 events")
    parser.add_argument("--artifact", default="starter", help="starter, or a folder")
    parser.add_argument("--events", type=int, help="how many in each run")
    args = parser.parse_args()
    count, repeats = (args.events or 2000, 2) if args.quick else (args.events or 12_000, 5)
    runs: dict[str, list[dict[str, float]]] = {"shared": [], "three": []}
    with embedded_servers(model={"artifact": args.artifact}) as config:
        producer = Producer({"bootstrap.servers": config.kafka.bootstrap, "linger.ms": 50})
        for name in EMPTY.values():
            producer.list_topics(name, timeout=10)
        for topic, key, value in events(count, 1, unique=False):
            producer.produce(topic, value, key)
            producer.poll(0)
        producer.flush()
        for repeat in range(repeats):
            for name in ("shared", "three") if repeat % 2 == 0 else ("three", "shared"):
                runs[name].append(measure(config, name == "three", count, f"{name}-{repeat}"))
                print(name, json.dumps({k: round(v, 1) for k, v in runs[name][-1].items()}), flush=True)
    medians = {
        name: {what: statistics.median(run[what] for run in each) for what in each[0]} for name, each in runs.items()
    }
    rates = {name: sorted(run["events_per_second"] for run in each) for name, each in runs.items()}

    def draw(plt: Any) -> None:
        _, axes = plt.subplots(1, 2, figsize=(7, 3.5))
        for axis, what in zip(axes, ("events_per_second", "memory_mb"), strict=True):
            axis.bar(["one shared", "three"], [medians["shared"][what], medians["three"][what]])
            axis.set_title(what.replace("_", " "))

    print(
        json.dumps(
            {
                **{name: {k: round(v, 1) for k, v in each.items()} for name, each in medians.items()},
                "spread": {name: [round(each[0], 1), round(each[-1], 1)] for name, each in rates.items()},
                "rate_ratio": round(medians["shared"]["events_per_second"] / medians["three"]["events_per_second"], 3),
                "memory_ratio": round(medians["shared"]["memory_mb"] / medians["three"]["memory_mb"], 3),
                "picture": picture("three", draw),
            }
        )
    )


if __name__ == "__main__":
    main()
