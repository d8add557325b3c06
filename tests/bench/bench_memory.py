"""Does the worker's memory stay flat? The null model, every output and fold, events without end.

    python -m tests.bench.bench_memory [--events 10000000] [--quick]

The worker's process is fed as fast as it commits, never more than `AHEAD` events ahead, from templates with fresh
numbers, so that most review and message texts are new and the vector cache is full and turning over long before the
measuring begins, at a tenth of the events. Last line: one JSON object; ``growth`` compares the last tenth with the
second, medians of resident memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from confluent_kafka import Producer

from tests.bench.bench_worker import events
from tests.bench.rig import WorkerProcess, embedded_servers, picture

AHEAD = 8000
TEMPLATES = 4000
MARK = b"No. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="300,000 events")
    args = parser.parse_args()
    total = 300_000 if args.quick else args.events
    templates = [(topic, key, value) for topic, key, value in events(TEMPLATES, 1, unique=True)]
    samples: list[tuple[float, float]] = []
    # A small cache turns over early: what is asked is whether anything grows that should not.
    with embedded_servers(model={"artifact": "null", "vector_cache_mb": 16}) as config:
        worker = WorkerProcess(config)
        producer = Producer({"bootstrap.servers": config.kafka.bootstrap, "compression.type": "lz4", "linger.ms": 20})
        sent, start, done, told = 0, time.monotonic(), 0.0, 0.0
        while done < total:
            figures = worker.ask()
            done = figures["committed"]
            samples.append((done, figures["memory_mb"]["rss"]))
            for _ in range(int(min(done + AHEAD, total)) - sent):
                topic, key, value = templates[sent % TEMPLATES]
                # Each round over the templates brings texts of its own.
                fresh = value.replace(b" model ", b" model %d-" % (sent // TEMPLATES)).replace(
                    MARK, b"No. %d-" % (sent // TEMPLATES)
                )
                producer.produce(topic, fresh, key)
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
