"""How fast the worker is, and how much of the time its encoder runs.

    python -m tests.bench.bench_worker [--quick] [--artifact starter] [--profile]

Three runs of the real worker on a preloaded in-process broker that lives in a process of its own, with an embedded
Redis: the null model on the mixed stream (clicks, reviews, service messages; every output, opinion and fold is
produced), and the artifact twice: on the same stream, and on unique texts only. Each from the first tenth committed to
the last event: a part of them would be mostly clicks, which go first and cost least. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing as mp
import pstats
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from prometheus_client import CollectorRegistry

from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE, INPUTS, SCORES_CTR, TOPICS
from worker.config import Config
from worker.demo.embedded import EmbeddedBroker, EmbeddedRedis, embedded_config
from worker.kafka.clients import consumer_config, producer_config
from worker.scoring.pipeline import run

MIX = {EVENTS_CLICK: 0.6, EVENTS_REVIEW: 0.2, EVENTS_SERVICE: 0.2}
ITEMS, USERS = 2000, 5000
TIMEOUT_S = 300.0

ADJECTIVES = ("red", "small", "quiet", "wooden", "heavy", "bright", "folding", "soft", "wireless", "classic", "compact")
THINGS = ("guitar", "kettle", "lamp", "tent", "keyboard", "jacket", "blender", "backpack", "speaker", "chair", "drill")
OPENINGS = (
    "I bought this for my daughter and",
    "After two weeks of daily use",
    "Honestly,",
    "The parcel came a day late, but",
    "买了两个星期，",
    "第二次购买了，",
    "说实话，",
)
MIDDLES = (
    "the sound is warmer than I expected and the strings stay in tune",
    "the handle broke when I lifted it for the first time",
    "it does what it should and nothing more",
    "the colour looks nothing like the picture",
    "包装很仔细，质量也对得起这个价格",
    "屏幕有一道划痕，客服一直没有回复",
    "用起来还可以，就是说明书看不懂",
)
ENDINGS = (
    "I would buy it again.",
    "Not worth the money.",
    "We will see how long it lasts.",
    "推荐购买。",
    "不会再买了。",
)
ASKS = (
    "where is my order",
    "I want to cancel the order that I placed yesterday",
    "how do I get my money back for",
    "can I change the delivery address of",
    "我的快递到哪里了，订单号",
    "我想申请退款，订单号",
    "怎么开发票，订单号",
)


def events(
    count: int, seed: int, unique: bool, mix: Mapping[str, float] = MIX, first: int = 0
) -> Iterator[tuple[str, str, bytes]]:
    """Topic, key and value of a mixed stream. Item texts are Zipf-distributed, or (``unique``) never repeat; texts of
    reviews and messages hold the event's number, which begins at ``first``."""
    rng = random.Random(seed)
    zipf = np.random.default_rng(seed).zipf(1.2, count * 2)
    now = int(time.time() * 1000)
    topics = rng.choices(list(mix), list(mix.values()), k=count)
    for n, (topic, user_draw, item_draw) in enumerate(zip(topics, zipf[::2], zipf[1::2], strict=True), first):
        user, item = f"u{user_draw % USERS}", int(item_draw % ITEMS)
        event: dict[str, Any] = {"event_id": f"e{n}", "event_time_ms": now - 1000 + n // 100, "user_id": user}
        if topic == EVENTS_CLICK:
            name = f"{ADJECTIVES[item % 11]} {THINGS[item // 11 % 11]} model {n if unique else item}"
            event |= {"item_id": f"i{item}", "title": name, "clicked": rng.random() < 0.1}
            event["context"] = {"price": round(rng.uniform(5, 500), 2), "position": rng.randrange(10)}
        elif topic == EVENTS_REVIEW:
            text = f"{rng.choice(OPENINGS)} {rng.choice(MIDDLES)}. No. {n}. {rng.choice(ENDINGS)}"
            event |= {"text": text, "stars": rng.randrange(1, 6), "item_id": f"i{item}", "category": f"c{item % 10}"}
        else:
            event |= {"text": f"{rng.choice(ASKS)} {n}, {rng.choice(MIDDLES)}", "conversation_id": f"s{n}"}
        yield topic, user, json.dumps(event, ensure_ascii=False).encode()


class Preloaded:
    """A broker in a process of its own that holds so many events."""

    def __init__(self, bootstrap: str, pipe: Any) -> None:
        self.bootstrap, self._pipe = bootstrap, pipe

    def more(self) -> None:
        """As many again, of the same stream. Returns when the broker has them."""
        self._pipe.send("more")
        self._pipe.recv()


@contextmanager
def preloaded(count: int, unique: bool = False, mix: Mapping[str, float] = MIX) -> Iterator[Preloaded]:
    here, there = mp.Pipe()
    process = mp.Process(target=_serve_broker, args=(count, 1, unique, dict(mix), there), daemon=True)
    process.start()
    bootstrap, kept = here.recv()
    if kept != count:
        raise RuntimeError(f"the broker kept {kept} of {count} events: preload fewer")
    try:
        yield Preloaded(bootstrap, here)
    finally:
        here.send("stop")
        process.join(10)


def _serve_broker(count: int, seed: int, unique: bool, mix: dict[str, float], pipe: Any) -> None:
    """A preloaded broker, until the pipe says otherwise; in its own process, so that it has its own GIL."""
    with EmbeddedBroker() as broker:
        broker.create_topics(TOPICS)
        _produce(broker.bootstrap, events(count, seed, unique, mix))
        pipe.send((broker.bootstrap, _kept(broker.bootstrap)))
        while pipe.recv() == "more":
            _produce(broker.bootstrap, events(count, seed + 1, unique, mix, first=count))
            pipe.send("done")


def _produce(bootstrap: str, stream: Iterator[tuple[str, str, bytes]]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 50})
    for n, (topic, key, value) in enumerate(stream):
        producer.produce(topic, value, key)
        if n % 1000 == 0:
            producer.poll(0)
    producer.flush()


def _kept(bootstrap: str) -> int:
    """How many events the broker still has: a partition of it forgets beyond 5 MB or 100,000 records."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-count"})
    kept = 0
    for topic in INPUTS:
        for partition in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            kept += high - low
    consumer.close()
    return kept


class Meter:
    """Reads the worker's own metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"millrace_worker_{name}", labels) or 0.0

    def committed(self) -> float:
        # Asked fifty times a second in the worker's own process: the whole registry would take a sixth of a core.
        count = "millrace_worker_latency_seconds_count"
        found = [each for metric in self.registry.restricted_registry([count]).collect() for each in metric.samples]
        return sum(each.value for each in found if each.name == count)

    def outputs(self) -> dict[str, int]:
        return {topic: int(self.value("outputs_total", topic=topic)) for topic in TOPICS if not topic.startswith("f")}


def measure(artifact: str, count: int, unique: bool = False, profile: bool = False) -> dict[str, Any]:
    """Rate of committed events and share of wall time in the encoder, warm-up left out."""
    with preloaded(count, unique) as broker, EmbeddedRedis() as redis:
        config = embedded_config(
            broker.bootstrap, redis, model={"artifact": artifact}, observe={"log_level": "warning"}
        )
        return committed_rate(config, count, profile)


def client_rate(count: int) -> float:
    """Messages a second of the client library alone: the same topics read, each record produced to a topic as it is.

    What the worker's own work costs beside its client is told by the ratio to this, on any machine.
    """
    with preloaded(count) as broker:
        return _client_rate(broker.bootstrap, count)


def _client_rate(bootstrap: str, count: int) -> float:
    kafka = embedded_config(bootstrap, "redis://127.0.0.1:1/0").kafka
    consumer, producer = Consumer(consumer_config(kafka, "bench-client")), Producer(producer_config(kafka))
    consumer.subscribe(list(INPUTS))
    done, start = 0, 0.0
    while done < count * 0.9:
        for message in consumer.consume(1000, 0.1):
            producer.produce(SCORES_CTR, message.value(), message.key())
            done += 1
        producer.poll(0)
        if not start and done > 5000:
            start, before = time.monotonic(), done
    producer.flush()
    rate = (done - before) / (time.monotonic() - start)
    consumer.close()
    return rate


def _commits(meter: Meter, stop: threading.Event, failures: list[BaseException]) -> Iterator[tuple[float, float]]:
    """When and how much, each time more is committed: a window that cuts a batch would count it all or not at all."""
    deadline, seen = time.monotonic() + TIMEOUT_S, 0.0
    while not failures and time.monotonic() < deadline:
        now, done = time.monotonic(), meter.committed()
        if done != seen:
            seen = done
            yield now, done
        stop.wait(0.02)


def _work(
    config: Config,
    stop: threading.Event,
    registry: CollectorRegistry,
    failures: list[BaseException],
    profiler: cProfile.Profile | None,
) -> None:
    try:
        with profiler or nullcontext():
            run(config, stop, registry)
    except BaseException as error:  # noqa: BLE001 raised again by whoever waits
        failures.append(error)


def committed_rate(
    config: Config, count: int, profile: bool = False, more: Callable[[], None] | None = None
) -> dict[str, Any]:
    """As `measure`, of a worker with this configuration and ``count`` events, the first tenth of which warm it up.

    With ``more`` all of them do: when they are committed it is called and must bring as many, which are measured.
    """
    meter, stop, profiler = Meter(), threading.Event(), cProfile.Profile()
    failures: list[BaseException] = []
    thread = threading.Thread(
        target=_work, args=(config, stop, meter.registry, failures, profiler if profile else None)
    )
    thread.start()
    warm, last = (count, 2 * count) if more else (count * 0.1, count)
    marks: list[tuple[float, ...]] = []
    for now, done in _commits(meter, stop, failures):
        if done >= (last if marks else warm):
            marks.append((now, done, meter.value("encoder_busy_seconds_total"), time.process_time()))
            if len(marks) == 2:
                break
            if more:
                more()
    stop.set()
    thread.join(60)
    if failures:
        raise failures[0]
    if len(marks) < 2:
        raise RuntimeError(f"only {meter.committed():.0f} of {last} events were committed in {TIMEOUT_S:.0f} s")
    start, end = marks
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(35)
    wall = end[0] - start[0]
    hits, misses = meter.value("cache_hits_total"), meter.value("cache_misses_total")
    return {
        "events_per_second": round((end[1] - start[1]) / wall, 1),
        "outputs_per_second": round(sum(meter.outputs().values()) / max(end[1], 1) * (end[1] - start[1]) / wall, 1),
        "encoder_busy": round((end[2] - start[2]) / wall, 3),
        "cpu_us_per_event": round(1e6 * (end[3] - start[3]) / max(end[1] - start[1], 1), 1),
        "cpu_cores": round((end[3] - start[3]) / wall, 2),
        "seconds": round(wall, 2),
        "cache_hit_share": round(hits / max(hits + misses, 1), 3),
        "outputs": meter.outputs(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a run of about two minutes")
    parser.add_argument("--artifact", default="starter", help="starter, a folder, or null")
    parser.add_argument("--profile", action="store_true", help="print where the main loop spends its time (slower)")
    args = parser.parse_args()
    mp.set_start_method("spawn")
    client = client_rate(100_000)
    null = measure("null", 80_000 if args.quick else 300_000, profile=args.profile)
    client = (client + client_rate(100_000)) / 2  # before and after: the machine may not be ours alone
    print("null model, mixed stream:", json.dumps(null))
    result: dict[str, Any] = {
        "null_events_per_second": null["events_per_second"],
        "null_outputs_per_second": null["outputs_per_second"],
        "client_messages_per_second": round(client, 1),
        "null_fraction_of_client": round(null["events_per_second"] / client, 3),
    }
    if args.artifact != "null":
        mixed = measure(args.artifact, 2000 if args.quick else 8000, profile=args.profile)
        print(f"{args.artifact}, mixed stream:", json.dumps(mixed))
        unique = measure(args.artifact, 1500 if args.quick else 4000, unique=True)
        print(f"{args.artifact}, unique texts:", json.dumps(unique))
        result |= {
            "starter_events_per_second": mixed["events_per_second"],
            "encoder_busy": mixed["encoder_busy"],
            "unique_events_per_second": unique["events_per_second"],
            "encoder_busy_unique": unique["encoder_busy"],
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
