"""Streams of opinions with a surge planted in them, and what a detector that is never interrupted makes of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.scores import Alert, Opinion, SourcePosition
from schemas.topics import ALERTS_OPINION, OPINIONS
from tests import roles
from tests.roles import WAIT_S
from tests.servers import NOT_YET
from worker.alerts.baseline import ErrorRates
from worker.alerts.error_rates import error_rates
from worker.alerts.role import run
from worker.alerts.rules import RuleBook, shipped
from worker.alerts.surge import PERFECT, SurgeDetector
from worker.config import Config
from worker.kafka.clients import consumer_config

MINUTE_MS = 60_000
START_MS = 29_000_000 * MINUTE_MS  # some day in February 2025, on a minute


def opinion(subject: str, at_ms: int, p_negative: float, offset: int, *, partition: int = 0) -> Opinion:
    """An opinion as the worker writes it, from one place in ``events.review``."""
    return Opinion(
        output_id=f"events.review/{partition}/{offset}#opinion:{subject}",
        event_id=f"r{offset}",
        source=SourcePosition("events.review", partition, offset),
        model_version="test",
        event_time_ms=at_ms,
        process_time_ms=at_ms,
        subject=subject,
        level="item",
        p_negative=p_negative,
        p_neutral=0.0,
        p_positive=1.0 - p_negative,
    )


def stream(
    minutes: int,
    a_minute: int,
    share: Callable[[str, int], float],
    *,
    subjects: tuple[str, ...] = ("item:lamp", "item:kettle", "item:tent"),
    seed: int = 7,
) -> list[Opinion]:
    """``a_minute`` opinions on each subject in every minute; ``share(subject, minute)`` of them are negative."""
    rng = random.Random(seed)
    opinions = []
    for minute in range(minutes):
        for number in range(a_minute):
            for subject in subjects:
                at_ms = START_MS + minute * MINUTE_MS + number * MINUTE_MS // a_minute
                p_negative = rng.uniform(0.8, 1.0) if rng.random() < share(subject, minute) else rng.uniform(0.0, 0.2)
                opinions.append(opinion(subject, at_ms, p_negative, len(opinions)))
    return opinions


def burst_on_lamp(subject: str, minute: int) -> float:
    """15 % negative, but for minutes 40 to 46 of the lamp: 90 %."""
    return 0.9 if subject == "item:lamp" and 40 <= minute < 46 else 0.15


def detect(opinions: list[Opinion], rules: RuleBook | None = None, rates: ErrorRates = PERFECT) -> list[Alert]:
    """Alerts of one detector that sees all of it."""
    detector = SurgeDetector(rules or shipped(), rates)
    return [alert for each in opinions for alert in detector.add(each, 0)[1]]


def plain(alerts: list[Alert]) -> list[Alert]:
    """Alerts without the wall time, in an order that partitions cannot change."""
    timeless = [msgspec.structs.replace(alert, process_time_ms=0) for alert in alerts]
    return sorted(timeless, key=lambda alert: (alert.subject, alert.window_end_ms, alert.status))


def produce(config: Config, opinions: list[Opinion]) -> None:
    """Write opinions as the worker does: keyed by subject."""
    settings = {"bootstrap.servers": config.kafka.bootstrap, "compression.type": "lz4", "log_level": 0}
    producer = Producer({**settings, "partitioner": "murmur2_random"})
    topic = config.kafka.topic(OPINIONS)
    for each in opinions:
        producer.produce(topic, msgspec.json.encode(each), key=each.subject)
        producer.poll(0)
    assert producer.flush(WAIT_S) == 0


def read(config: Config, contract: str, *, isolation: str = "read_committed") -> list[list[bytes]]:
    """Values of a topic as they stand now, one list a partition."""
    topic = config.kafka.topic(contract)
    consumer = Consumer(consumer_config(config.kafka, "nobody", isolation_level=isolation, enable_partition_eof=True))
    try:
        count = len(consumer.list_topics(topic, timeout=WAIT_S).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(count)])
        values: list[list[bytes]] = [[] for _ in range(count)]
        at_end: set[int] = set()
        while len(at_end) < count:
            message = consumer.poll(WAIT_S)
            assert message is not None, f"{topic}: no answer in {WAIT_S} s"
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                at_end.add(message.partition())
            elif error is not None:
                assert error.retriable() or error.code() in NOT_YET, error
            else:
                values[message.partition()].append(message.value())
        return values
    finally:
        consumer.close()


def published(config: Config) -> list[Alert]:
    """Alerts on ``alerts.opinion`` now."""
    return [msgspec.json.decode(v, type=Alert) for part in read(config, ALERTS_OPINION) for v in part]


def expected(config: Config, *, isolation: str = "read_committed") -> list[Alert]:
    """Alerts of uninterrupted detectors, one a partition, over what ``opinions`` holds now."""
    parts = read(config, OPINIONS, isolation=isolation)
    decoded = [[msgspec.json.decode(value, type=Opinion) for value in part] for part in parts]
    return [alert for part in decoded for alert in detect(part, rates=error_rates(config))]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds; fail after `WAIT_S`."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.1)


def counted_to_the_end(config: Config) -> bool:
    """Whether the group has committed the end of every partition of ``opinions`` that holds records."""
    topic = config.kafka.topic(OPINIONS)
    consumer = Consumer(consumer_config(config.kafka, f"{config.kafka.group_prefix}.alerts"))
    try:
        count = len(consumer.list_topics(topic, timeout=WAIT_S).topics[topic].partitions)
        asked = [TopicPartition(topic, partition) for partition in range(count)]
        committed = consumer.committed(asked, timeout=WAIT_S)
        ends = [consumer.get_watermark_offsets(partition, timeout=WAIT_S)[1] for partition in asked]
        return all(end == 0 or part.offset == end for part, end in zip(committed, ends, strict=True))
    except KafkaException as error:
        # A broker that has just made a topic or its first group is still looking for leader and coordinator.
        if error.args[0].code() in NOT_YET:
            return False
        raise
    finally:
        consumer.close()


Role = partial(roles.Role, run)
running = partial(roles.running, run)
