"""Does the worker's memory stay flat? The null model, every output and fold, events without end.

    python -m tests.bench.bench_memory [--events 10000000] [--quick]

The worker's process is fed as fast as it commits, never more than `AHEAD` events ahead, from templates with the running
number in each text, so that every text is new and the vector cache is full and turning over long before the measuring
begins, at a tenth of the events. It fails when nothing is committed for two minutes. Last line: one JSON object;
``growth`` compares the last tenth with the second, medians of resident memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from confluent_kafka import Producer

from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE
from tests.bench.bench_worker import events
from tests.bench.rig import Patience, WorkerProcess, embedded_servers, picture

AHEAD = 8000
TEMPLATES = 4000
NUMBERS = {EVENTS_CLICK: b" model %d", EVENTS_REVIEW: b" No. %d. ", EVENTS_SERVICE: b" %d, "}
"""How the number of an event stands in its text."""


def templates() -> list[tuple[str, str, bytes, bytes]]:
    """Topic, key, and what of the value stands before and after the number. Raises ValueError where it has not just
    one."""
    found = []
    for n, (topic, key, value) in enumerate(events(TEMPLATES, 1, unique=True)):
        before, after = value.split(NUMBERS[topic] % n)
        found.append((topic, key, before, after))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="300,000 events")
    args = parser.parse_args()
    total = 300_000 if args.quick else args.events
    shapes, patience = templates(), Patience()
    samples: list[tuple[float, float]] = []
    # A small cache turns over early: what is asked is whether anything grows that should not.
    with embedded_servers(model={"artifact": "null", "vector_cache_mb": 16}) as config:
        worker = WorkerProcess(config)
        producer = Producer({"bootstrap.servers": config.kafka.bootstrap, "compression.type": "lz4", "linger.ms": 20})
        sent, start, done, told = 0, time.monotonic(), 0.0, 0.0
        while done < total:
            figures = worker.ask()
            done = figures["committed"]
            patience.see(done)
            samples.append((done, figures["memory_mb"]["rss"]))
            for _ in range(int(min(done + AHEAD, total)) - sent):
                topic, key, head, tail = shapes[sent % TEMPLATES]
                producer.produce(topic, head + NUMBERS[topic] % sent + tail, key)
                sent += 1
            producer.poll(0.02)
            if time.monotonic() > told + 30:
                told = time.monotonic()
                print(f"{done:.0f} events, {samples[-1][1]:.1f} MB", flush=True)
        seconds = time.monotonic() - start
        worker.close()
    tenth = total / 10
    early = statistics.median(mb for at, mb in samples if tenth <= at < 2 * tenth)
    late = statistics.median(mb for at, mb in samples if at >= 9 * tenth)

    def draw(plt: object) -> None:
        plt.figure(figsize=(7, 3.5))  # type: ignore[attr-defined]
        plt.plot(*zip(*samples, strict=True))  # type: ignore[attr-defined]
        plt.xlabel("events committed")  # type: ignore[attr-defined]
        plt.ylabel("resident memory, MB")  # type: ignore[attr-defined]
        plt.ylim(0)  # type: ignore[attr-defined]

    print(
        json.dumps(
            {
                "events": total,
                "events_per_second": round(total / seconds, 1),
                "early_mb": round(early, 1),
                "late_mb": round(late, 1),
                "growth": round(late / early - 1, 4),
                "picture": picture("memory", draw),
            }
        )
    )


if __name__ == "__main__":
    main()
