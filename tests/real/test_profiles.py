"""Profiles on Apache Kafka and redis-server: kill -9, a zombie, a flushed Redis; the states stay exact."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.fold_harness import (
    FoldWriter,
    Group,
    Process,
    Running,
    assert_exact,
    folded,
    states_in_features,
    states_in_redis,
    wait_for,
    with_profiles,
)
from worker.config import Config
from worker.kafka.admin import create_topics

pytestmark = pytest.mark.real


@pytest.fixture
def config(kafka_config: dict[str, Any], redis_url: str) -> Config:
    # Short session: a killed member's shards move after it, and the tests wait for that.
    kafka = {**kafka_config, "options": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}}
    tree = {
        "kafka": kafka,
        "redis": {"url": redis_url},
        "model": {"artifact": "null"},
        "profiles": {"publish_interval_ms": 300, "redis_retry_ms": 100, "poll_blocks": 20},
    }
    return msgspec.convert(tree, Config)


@pytest.fixture
def group(config: Config) -> Iterator[Group]:
    create_topics(config.kafka)
    group = Group(config)
    yield group
    group.close()


def test_exact_through_kill_9_replays_and_a_flushed_redis(config: Config, group: Group) -> None:
    writer = FoldWriter(config, keys=300)
    events = writer.events(3000)
    # The second publishes nothing on its way: however fast it folds, the kill does not come too late.
    for part, interval_ms in enumerate((300, 600_000)):
        process = Process(with_profiles(config, publish_interval_ms=interval_ms))
        writer.write(events[part * 750 : (part + 1) * 750], block_rows=10)
        aim = sum(group.ends()) - 200
        wait_for(lambda aim=aim: sum(folded(config)) > aim, f"folds of part {part}", process.check)
        process.kill()
    assert not group.published()
    with Running(config) as profiles:
        writer.write(events[1300:2200])  # the worker was killed too: two hundred folds come again
        wait_for(group.published, "folds published", profiles.check)
        assert_exact(states_in_redis(config, config.redis.url), writer)
        assert_exact(states_in_features(config), writer)
        with redis.Redis.from_url(config.redis.url) as client:
            client.flushall()
        writer.write(events[2100:])
        wait_for(group.published, "later folds published", profiles.check)
    assert_exact(states_in_redis(config, config.redis.url), writer)
    assert_exact(states_in_features(config), writer)


def test_a_zombie_that_wakes_up_harms_nothing(config: Config, group: Group) -> None:
    """Stopped with blocks in hand beyond its session, it wakes up when another process has folded on."""
    writer = FoldWriter(config, keys=100)
    with Process(config) as zombie:
        writer.write(writer.events(300))
        wait_for(group.published, "first folds published", zombie.check)
        writer.write(writer.events(300))
        zombie.signal(signal.SIGSTOP)
        writer.write(writer.events(300))
        with Running(config) as profiles:
            wait_for(group.published, "folds published by the other", profiles.check)
            zombie.signal(signal.SIGCONT)
            writer.write(writer.events(600))
            wait_for(group.published, "later folds published", profiles.check)
            zombie.check()
            assert_exact(states_in_redis(config, config.redis.url), writer)
            assert_exact(states_in_features(config), writer)


ASLEEP_BEFORE_SENDING = """
import os, pathlib, signal
from worker.profiles.publishing import Publishing
send, settle = Publishing.send, Publishing.settle
slept = False
def asleep(self):
    global slept
    if self._sent and not slept:
        slept = True
        os.kill(os.getpid(), signal.SIGSTOP)
    send(self)
def told(self, timeout_s):
    busy = bool(self._sent)
    settle(self, timeout_s)
    if busy and not self._sent:
        pathlib.Path({marker!r}).touch()
Publishing.send, Publishing.settle = asleep, told
"""


def test_a_zombie_with_states_in_hand_publishes_none_of_them(config: Config, group: Group, tmp_path: Path) -> None:
    """Stopped between reading states and sending them, it wakes up when another has published newer ones."""
    writer, marker = FoldWriter(config, keys=20), tmp_path / "answered"
    with Process(config, ASLEEP_BEFORE_SENDING.format(marker=str(marker))) as zombie:
        writer.write(writer.events(200))
        stat = Path(f"/proc/{zombie.process.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the zombie asleep", zombie.check)
        with Running(config) as profiles:
            writer.write(writer.events(400))
            wait_for(group.published, "newer states published by the other", profiles.check)
            zombie.signal(signal.SIGCONT)
            wait_for(marker.exists, "the zombie's answer", zombie.check)
            assert_exact(states_in_features(config), writer)


def test_a_shard_that_outlives_the_retention_of_its_folds_opens_again(
    config: Config, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions leave marks behind the last fold. Kafka deletes all, and the log begins behind them."""
    monkeypatch.setattr("worker.profiles.role.CARRY_S", 1.0)
    writer = FoldWriter(config, keys=40)
    writer.write(writer.events(200))
    cluster = {"bootstrap.servers": config.kafka.bootstrap}
    marker = Producer({**cluster, "transactional.id": f"marks.{config.kafka.group_prefix}"})
    marker.init_transactions(30)
    for end in (marker.commit_transaction, marker.abort_transaction):
        marker.begin_transaction()
        for part in group.parts():
            marker.produce(part.topic, b"no block", partition=part.partition)
        marker.flush(30)
        end(30)
    with Running(config) as profiles:
        wait_for(lambda: folded(config) == group.ends(), "fences carried over the marks", profiles.check)
        wait_for(group.published, "folds published", profiles.check)
    everything = [TopicPartition(part.topic, part.partition, -1) for part in group.parts()]
    admin = AdminClient(cluster)
    for deleted in admin.delete_records(everything).values():
        deleted.result(30)
    with Running(config) as profiles:
        wait_for(lambda: folded(config) == group.ends(), "shards opened again", profiles.check)
    assert_exact(states_in_redis(config, config.redis.url), writer)
    with redis.Redis.from_url(config.redis.url) as client:
        client.flushall()
    with Running(config) as profiles:
        wait_for(lambda: folded(config) == group.ends(), "states rebuilt", profiles.check)
        wait_for(group.published, "published", profiles.check)
    assert_exact(states_in_redis(config, config.redis.url), writer)
