"""A person is forgotten on Apache Kafka and redis-server: the embedded tests, and offsets set back to the beginning."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer

from schemas.topics import COMPACTION_LAG_MS, DAY_MS, INPUTS
from tests.embedded.test_erase import (  # noqa: F401 tests and fixtures that pytest finds here by name
    SCORES,
    Shop,
    clicked,
    command,
    group,
    letters_of,
    read_by,
    scores_of,
    test_a_person_is_forgotten_and_stays_forgotten,
)
from tests.fold_harness import Group, Running, folded, states_in_redis, wait_for
from tests.real.proof import read_all
from tests.worker_harness import Reader, positions, until, worker
from worker.config import Config

pytestmark = pytest.mark.real


@pytest.fixture
def config(kafka_config: dict[str, Any], redis_url: str) -> Config:
    kafka = {**kafka_config, "options": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}}
    profiles = {"publish_interval_ms": 200, "redis_retry_ms": 100}
    tree = {"kafka": kafka, "redis": {"url": redis_url}, "model": {"artifact": "null"}, "profiles": profiles}
    return msgspec.convert(tree, Config)


def all_folded(config: Config) -> bool:
    """Whether the fences have passed the last fold (beyond it there are marks of transactions)."""
    ends = dict.fromkeys(range(config.kafka.fold_shards), 0)
    for message in read_all(config.kafka.bootstrap, config.kafka.topic("folds.user")):
        ends[message.partition()] = message.offset() + 1
    return all(at >= end for at, end in zip(folded(config), ends.values(), strict=False))


def test_offsets_set_back_to_the_beginning_bring_nobody_back(config: Config, group: Group) -> None:  # noqa: F811
    shop = Shop(config)
    scores = Reader(config.kafka, *SCORES)
    with worker(config), Running(config) as profiles:
        shop.write()
        wait_for(lambda: scores_of(scores) == {"anna": 35, "bert": 35}, "scores", profiles.check)
        wait_for(lambda: clicked(config) == {"anna": 20, "bert": 20}, "states", profiles.check)
        until(lambda: len(letters_of(config)) == 4, "letters")
        receipt = command(config, "erase", "anna", "--yes")
    assert receipt["done"] is True
    told = {config.kafka.contract_topic(each["topic"]): each for each in receipt["topics"]}
    # What the broker itself says: seven days, and seven more until a segment closes.
    within_ms = told["scores.ctr"]["gone_by_ms"] - receipt["cutoff_ms"]
    assert 14 * DAY_MS < within_ms < 14.1 * DAY_MS
    assert COMPACTION_LAG_MS < told["features.user"]["gone_by_ms"] - receipt["cutoff_ms"] < 7.1 * DAY_MS
    assert {name for name, each in told.items() if each["what"] == "names nobody"} == {
        *("folds.item", "features.item", "alerts.control", "trends.opinion"),
    }

    consumer = Consumer(
        {"bootstrap.servers": config.kafka.bootstrap, "group.id": f"{config.kafka.group_prefix}.worker"}
    )
    consumer.commit(offsets=positions(consumer, config.kafka, INPUTS, 0), asynchronous=False)
    consumer.close()
    with worker(config) as scoring, Running(config) as profiles:
        until(lambda: read_by(scoring) == len(shop.rows), "everything to be read again")
        until(lambda: scores_of(scores)["bert"] == 70, "Bert's scores")
        # Bert's folds come again from the same positions: they are repeats, and his state is as it was.
        wait_for(lambda: all_folded(config), "folds", profiles.check)
        assert clicked(config) == {"bert": 20}
        # The letters too: those records are as old as they were.
        assert scoring.value("forgotten_total") == 33
        assert scores_of(scores)["anna"] == 35
        assert len(letters_of(config)) == 1
        assert {key for kind, key in states_in_redis(config, config.redis.url) if kind == "user"} == {"bert"}
