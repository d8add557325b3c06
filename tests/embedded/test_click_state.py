"""What the click head sees in training is what it sees in service: a log folded by profiles, and by the log itself."""

from __future__ import annotations

import uuid

import numpy as np
from confluent_kafka import Producer

from model.clicks.features import features
from model.clicks.head import ClickHead
from model.clicks.log import Log, settled
from model.state import States
from schemas.folds import FoldBlock, encode_block
from schemas.shards import shard_of
from schemas.topics import FOLDS
from tests.fold_harness import KINDS, SPACE, Group, Running, states_in_redis, wait_for
from worker.config import Config
from worker.demo.embedded import embedded_config
from worker.kafka.admin import create_topics
from worker.kafka.clients import producer_config

ROWS, BLOCK_ROWS = 240, 16


def small_log(seed: int = 0) -> Log:
    """Impressions of some users and items over three days, some of them in the same second."""
    rng = np.random.default_rng(seed)
    clicked = (rng.random(ROWS) < 0.4).astype(float)
    purchased = clicked * (rng.random(ROWS) < 0.5)
    vectors = rng.standard_normal((ROWS, 64))
    return Log(
        users=rng.integers(0, 12, ROWS),
        items=rng.integers(0, 20, ROWS),
        time_ms=1_700_000_000_000 + 1000 * np.sort(rng.integers(0, 3 * 86400, ROWS) // 40 * 40),
        weights=np.stack([np.ones(ROWS), clicked], axis=1),
        counts=np.stack([np.ones(ROWS), clicked, purchased], axis=1),
        vectors=(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32),
        label=clicked,
        bought=np.where(clicked == 1, purchased, np.nan),
        converted=purchased,
    )


def test_features_of_redis_are_those_of_the_log(embedded_broker: str, embedded_redis: str) -> None:
    config = embedded_config(
        embedded_broker,
        embedded_redis,
        model={"artifact": "null"},
        profiles={"publish_interval_ms": 200, "redis_retry_ms": 100},
        kafka={"group_prefix": uuid.uuid4().hex[:6]},
    )
    create_topics(config.kafka)
    log = small_log()
    scales = config.profiles.scales_s
    log = log.expecting(settled(log, ClickHead.counts_only(0.4, scales)))
    group = Group(config)
    # The state serving reads between two moments: everything before the last quarter's first event, then the rest.
    for first in (ROWS // 2, ROWS * 3 // 4):
        first = int(np.searchsorted(log.time_ms, log.time_ms[first]))
        end = int(np.searchsorted(log.time_ms, log.time_ms[first], "right"))
        asked = np.arange(ROWS) >= first
        asked[end:] = False
        write(config, log, first)
        with Running(config) as profiles:
            wait_for(group.published, "folds published", profiles.check)
        states = states_in_redis(config, config.redis.url)
        users, items = (
            States.from_records([states.get((kind, f"{kind}-{key}")) for key in keys[asked]], scales)
            for kind, keys in zip(KINDS, (log.users, log.items), strict=True)
        )
        found = features(users, items, log.vectors[asked], log.time_ms[asked])
        np.testing.assert_allclose(found, log.features(scales, asked), rtol=1e-4, atol=1e-4)
        assert users.present.any()
    group.close()


def write(config: Config, log: Log, end: int) -> None:
    """The log's first ``end`` rows as a worker folds them; offset = row, so rows written before are repeats."""
    producer = Producer(producer_config(config.kafka, linger_ms=1))
    for start in range(0, end, BLOCK_ROWS):
        for kind, keys in zip(KINDS, (log.users, log.items), strict=True):
            names = np.array([f"{kind}-{key}" for key in keys])
            rows = np.arange(start, min(start + BLOCK_ROWS, end))
            shards = np.array([shard_of(name, config.kafka.fold_shards) for name in names[rows]])
            for shard in np.unique(shards):
                some = rows[shards == shard]
                block = FoldBlock(
                    kind=kind,  # type: ignore[arg-type]
                    space=SPACE,
                    shard=int(shard),
                    topic_ids=["id-of-clicks"],
                    keys=names[some].tolist(),
                    topic_index=np.zeros(len(some), np.int32),
                    partition=np.zeros(len(some), np.int32),
                    offset=some.astype(np.int64),
                    time_ms=log.time_ms[some],
                    weights=log.weights[some].astype(np.float32),
                    counts=log.counts[some].astype(np.float32),
                    vectors=log.vectors[some].astype(np.float16),
                )
                producer.produce(config.kafka.topic(FOLDS[kind]), encode_block(block), partition=int(shard))
    assert producer.flush(30) == 0
