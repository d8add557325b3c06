"""Event to score against load: p50, p95, p99 per lane from a tenth of capacity to half beyond it, and where time goes.

    python -m tests.bench.bench_latency [--quick] [--artifact starter] [--real]

Capacity is measured first, on preloaded topics. Then events are produced on a fixed schedule, whatever becomes of
them (open loop), and every score is timed when a consumer has it, from when its event was due. Between loads the
worker works off what is left. The waterfall gives mean milliseconds of the stages: read (produced to taken in),
tokenise (with decoding), queue, fetch (states), encode, heads, emit (scored to written), commit (written to readable).
At the last load, above capacity, events wait in Kafka, which is ``read``; then comes half of capacity once more:
``recovered``. ``p99_over_bound`` at 0.7 is the p99 over three full batches plus the commit interval, a full batch being
what a batch took on average while capacity was measured; ``predicted_p99_ms`` is what `worker.tools.plan` says, of
costs that it measures first, and ``planned_mb`` its memory of a worker, queues full. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from itertools import chain, count
from typing import Any

import msgspec
from confluent_kafka import Consumer, Producer

from schemas.topics import SCORES_CTR, SCORES_INTENT, SCORES_SENTIMENT
from tests.bench.bench_worker import events
from tests.bench.rig import STAGES, WorkerProcess, embedded_servers, picture, real_servers
from worker.config import Config
from worker.tools.plan import Demand, p99_ms, worker_memory_mb
from worker.tools.yardstick import costs_here

LANE = {SCORES_CTR: "click", SCORES_INTENT: "service", SCORES_SENTIMENT: "review"}
LOADS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.5, 2.0)
QUICK_LOADS = (0.1, 0.4, 0.7, 1.0, 1.5, 2.0)
RECOVERED = 0.5
DRAIN_S = 180.0
READ_S = 0.002
LOOK_S = 0.1
ALL_STAGES = ("read", *STAGES, "emit", "commit")


class Shop:
    """Produces on schedule and reads scores, in one loop; all times are of this machine's clock."""

    def __init__(self, config: Config) -> None:
        self._producer = Producer({"bootstrap.servers": config.kafka.bootstrap, "linger.ms": 0})
        self._consumer = Consumer(
            {
                "bootstrap.servers": config.kafka.bootstrap,
                "group.id": "bench-latency",
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 5,
            }
        )
        self._consumer.subscribe(list(LANE))
        self._events = chain.from_iterable(events(20_000, seed, unique=False) for seed in count(3))
        self._numbered = 0
        self.produced = self.scored = 0
        self.taken: dict[str, list[float]] = defaultdict(list)
        self.emit_ms = self.commit_ms = 0.0

    def produce(self, due_ms: float) -> None:
        """The next event, dated when it was due."""
        topic, key, value = next(self._events)
        self._numbered += 1
        fields = json.loads(value)
        fields["event_time_ms"] = int(due_ms)
        self._producer.produce(topic, json.dumps(fields, ensure_ascii=False).encode(), key)
        self.produced += 1

    def read(self, wait_s: float) -> None:
        """Time the scores that are there."""
        self._producer.poll(0)
        for message in self._consumer.consume(500, wait_s):
            if message.error() is not None:
                continue
            now_ms, score = time.time() * 1e3, json.loads(message.value())
            self.scored += 1
            self.taken[LANE[message.topic()]].append(now_ms - score["event_time_ms"])
            written_ms = message.timestamp()[1]
            self.emit_ms += max(written_ms - score["process_time_ms"], 0)
            self.commit_ms += max(now_ms - written_ms, 0)

    def offer(self, rate: float, seconds: float) -> None:
        """An open loop: so many events a second, evenly spaced, for so long; then until all are scored."""
        self.produced = self.scored = 0
        self.taken.clear()
        self.emit_ms = self.commit_ms = 0.0
        start, sent = time.time(), 0
        while (now := time.time()) < start + seconds:
            while sent < (now - start) * rate:
                self.produce((start + sent / rate) * 1e3)
                sent += 1
            self.read(min(READ_S, 0.5 / rate))
        deadline = time.monotonic() + DRAIN_S
        while self.scored < self.produced:
            self.read(0.05)
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.produced - self.scored} events were not scored {DRAIN_S:.0f} s after the last"
                )

    def close(self) -> None:
        self._consumer.close()


def capacity(config: Config, preload: int) -> tuple[float, float, float]:
    """Events a second at saturation, tokens of an event that had to be encoded, and milliseconds of a batch.

    All that was preloaded is worked off: a part of it would be mostly clicks, which go first and cost least. The shop
    reads the scores meanwhile, as it will under load: it takes of the same processor.
    """
    kafka = msgspec.structs.replace(config.kafka, group_prefix="capacity")
    shop = Shop(msgspec.structs.replace(config, kafka=kafka))
    for _ in range(preload):
        shop.produce(time.time() * 1e3)
        shop.read(0)
    worker = WorkerProcess(msgspec.structs.replace(config, kafka=kafka))
    try:
        while not (before := worker.ask())["committed"]:
            shop.read(LOOK_S)
        start = time.monotonic()
        while (after := worker.ask())["committed"] < preload:
            ask_at = time.monotonic() + LOOK_S
            while time.monotonic() < ask_at:
                shop.read(READ_S)
            if time.monotonic() > start + DRAIN_S:
                raise RuntimeError(
                    f"{preload - after['committed']:.0f} of {preload} events not scored, {DRAIN_S:.0f} s"
                )
        taken = time.monotonic() - start
    finally:
        worker.close()
        shop.close()
    done = after["committed"] - before["committed"]
    batch_ms = 1e3 * (after["batch_s"] - before["batch_s"]) / (after["batches"] - before["batches"])
    return done / taken, (after["tokens"] - before["tokens"]) / done, batch_ms


def quantile(values: list[float], q: float) -> float:
    return round(sorted(values)[min(int(q * len(values)), len(values) - 1)], 1) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer loads, 8 s each")
    parser.add_argument("--artifact", default="starter", help="starter, a folder, or null")
    parser.add_argument("--real", action="store_true", help="a real Kafka (Java and Maven) instead of the embedded one")
    args = parser.parse_args()
    loads, seconds = (QUICK_LOADS, 8.0) if args.quick else (LOADS, 30.0)
    rows: list[dict[str, Any]] = []
    model = {"artifact": args.artifact}
    preload = 40_000 if args.artifact == "null" else 1500 if args.quick else 4000
    with real_servers(12, model=model) if args.real else embedded_servers(model=model) as config:
        costs, _ = costs_here(config)
        rate, tokens, batch_ms = capacity(config, preload)
        print(
            f"capacity {rate:.1f} events/s of {tokens:.1f} new tokens, {batch_ms:.0f} ms a batch; {costs}", flush=True
        )
    with real_servers(12, model=model) if args.real else embedded_servers(model=model) as config:
        worker, shop = WorkerProcess(config), Shop(config)
        try:
            shop.offer(max(5.0, 0.2 * rate), 5.0)  # warm: the model's first batches, the cost model, the cache
            for load in loads:
                before = worker.ask()
                shop.offer(load * rate, seconds)
                after = worker.ask()
                rows.append(_row(load, load * rate, shop, before, after))
                print(json.dumps(rows[-1]), flush=True)
            before = worker.ask()
            shop.offer(RECOVERED * rate, seconds)
            recovered = _row(RECOVERED, RECOVERED * rate, shop, before, worker.ask())
        finally:
            shop.close()
            worker.close()
    bound_ms = 3 * batch_ms + config.worker.commit_interval_ms
    at_70 = next((row for row in rows if row["load"] == 0.7), None)
    demand = Demand(events_per_second=1, p99_ms=1, tokens=tokens, repeated=0.0)
    for row in rows:
        predicted = p99_ms(demand, costs, config, row["events_per_second"])
        row["predicted_p99_ms"] = round(predicted, 1) if predicted < 1e6 else None

    print(
        json.dumps(
            {
                "capacity_events_per_second": round(rate, 1),
                "loads": rows,
                "recovered": recovered,
                "full_batch_ms": round(batch_ms, 1),
                "p99_over_bound": at_70 and round(max(at_70[lane]["p99"] for lane in LANE.values()) / bound_ms, 3),
                "planned_mb": worker_memory_mb(costs, config),
                "picture": picture("latency", lambda plt: draw(plt, rows)),
            }
        )
    )


def draw(plt: Any, rows: list[dict[str, Any]]) -> None:
    """Latency by lane and load; beside it, what of the mean time each stage took."""
    _, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for colour, lane in zip(("tab:blue", "tab:green", "tab:red"), LANE.values(), strict=True):
        for q, style in (("p50", ":"), ("p99", "-")):
            found = [row[lane][q] for row in rows]
            left.plot([row["load"] for row in rows], found, style, color=colour, label=f"{lane} {q}")
    left.set(xlabel="load, of capacity", ylabel="event to score, ms", yscale="log")
    left.legend(fontsize=8)
    names, bottom = [f"{row['load']:.0%}" for row in rows], [0.0] * len(rows)
    totals = [sum(row["stages_ms"].values()) for row in rows]
    for stage in ALL_STAGES:
        shares = [100 * row["stages_ms"][stage] / total for row, total in zip(rows, totals, strict=True)]
        right.bar(names, shares, bottom=bottom, label=stage)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    for place, total in enumerate(totals):
        right.text(place, 101, f"{total:.0f} ms", ha="center", fontsize=8)
    right.set(xlabel="load, of capacity", ylabel="of the mean time, %", ylim=(0, 108))
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _row(load: float, rate: float, shop: Shop, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    events = max(after["scored"] - before["scored"], 1)
    stages = {stage: 1e3 * (after["stages"][stage] - before["stages"][stage]) / events for stage in STAGES}
    stages |= {"emit": shop.emit_ms / shop.scored, "commit": shop.commit_ms / shop.scored}
    total = sum(map(sum, shop.taken.values())) / shop.scored
    stages["read"] = max(total - sum(stages.values()), 0.0)
    row: dict[str, Any] = {"load": load, "events_per_second": round(rate, 1)}
    for lane, taken in shop.taken.items():
        row[lane] = {name: quantile(taken, q) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    row["rss_mb"] = round(after["memory_mb"]["rss"], 1)
    row["stages_ms"] = {stage: round(stages[stage], 2) for stage in ALL_STAGES}
    return row


if __name__ == "__main__":
    main()
