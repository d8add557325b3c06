"""Old events from a topic of their own, at low priority: all are scored, and by lanes that are paused one by one."""

from __future__ import annotations

import msgspec

from schemas.topics import TOPICS
from tests.worker_harness import Reader, events, produce, until, worker
from worker.demo.embedded import EmbeddedBroker, embedded_config

OLD, LIVE = 1500, 300


def test_backfill_and_live_events_are_all_scored_with_room_for_few(embedded_redis: str) -> None:
    with EmbeddedBroker() as broker:
        small = {"max_batch_tokens": 64, "queue_tokens_high": 400, "queue_tokens_low": 200}
        config = embedded_config(broker, embedded_redis, model={"artifact": "null"}, worker=small)
        kafka = msgspec.structs.replace(config.kafka, backfill={"reviews.2024": "events.review"})
        config = msgspec.structs.replace(config, kafka=kafka)
        broker.create_topics([*TOPICS, "reviews.2024"])
        produce(kafka, "reviews.2024", events(OLD, text="an old review of a red kettle"))
        with worker(config) as running:
            until(lambda: running.value("batches_total", reason="backfill") > 0, "a batch of backfill")
            produce(kafka, "events.review", events(LIVE, OLD, text="a new review"))
            reader = Reader(kafka, "scores.sentiment")
            reader.wait(OLD + LIVE)
            until(lambda: running.value("latency_seconds_count", lane="backfill") == OLD, "commits of the backfill")
            until(lambda: running.value("latency_seconds_count", lane="review") == LIVE, "commits of what is live")
        sources = [msgspec.json.decode(record.value())["source"] for record in reader.records]
        positions = {(each["topic"], each["partition"], each["offset"]) for each in sources}
        assert len(positions) == len(sources) == OLD + LIVE
        assert sum(topic == "reviews.2024" for topic, _, _ in positions) == OLD
