"""The operator's tools against a broker and a Redis inside the process: make, replay, look, follow."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer, TopicPartition

from model.null import NullScorer
from schemas.redis_keys import fence_key
from schemas.states import Fence, encode_fence
from schemas.topics import TOPICS
from worker.cli.app import main
from worker.config import KafkaConfig
from worker.kafka.clients import consumer_config


class Site:
    """Where Kafka and Redis are, as options of the command line."""

    def __init__(self, kafka: KafkaConfig, redis_url: str, doctor: tuple[str, ...] = ("doctor",)) -> None:
        self.kafka, self.redis_url, self.doctor = kafka, redis_url, doctor
        settings = {f"kafka.{key}": json.dumps(value) for key, value in msgspec.to_builtins(kafka).items()}
        settings |= {"redis.url": redis_url, "model.artifact": "null"}
        self.options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def site(embedded_broker: str, embedded_redis: str) -> Site:
    kafka = KafkaConfig(bootstrap=embedded_broker, embedded=True, fold_shards=4, group_prefix="ops")
    return Site(kafka, embedded_redis)


@pytest.fixture
def options(site: Site) -> list[str]:
    return site.options


def run(options: list[str], *arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def write_rows(path: Path, count: int) -> Path:
    now_s = int(time.time())
    rows = [{"text": f"message {i}", "user_id": i % 3, "ts": now_s} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_topics_are_made_once_and_described(site: Site, options: list[str]) -> None:
    assert "missing" in run(options, "topics", "describe", code=1).stdout
    made = run(options, "topics", "create").stdout
    assert all(site.kafka.topic(name) in made for name in TOPICS)
    assert run(options, "topics", "create").stdout == "all topics are there\n"
    reports = json.loads(run(options, "topics", "describe", "--json").stdout)
    assert [report["differences"] for report in reports] == [[]] * len(TOPICS)


def test_a_replay_without_topics_says_how_to_make_them(options: list[str], tmp_path: Path) -> None:
    file = write_rows(tmp_path / "chats.jsonl", 3)
    result = run(options, "replay", str(file), "--topic", "events.service", code=3)
    assert "millrace topics create" in result.stderr


def test_replayed_rows_can_be_followed_counted_and_are_keyed_by_user(
    site: Site, options: list[str], tmp_path: Path
) -> None:
    run(options, "topics", "create")
    file = write_rows(tmp_path / "chats.jsonl", 40)
    report = json.loads(run(options, "replay", str(file), "--topic", "events.service", "--json").stdout)
    assert (report["events"], report["skipped"]) == (40, 0)
    shown = run(options, "tail", "events.service", "--from-beginning", "--count", "40", "--json").stdout
    lines = [json.loads(line) for line in shown.splitlines()]
    assert sorted(line["fields"]["event_id"] for line in lines) == sorted(f"chats-{n}" for n in range(1, 41))
    by_user: dict[str, set[int]] = {}
    for line in lines:
        by_user.setdefault(line["fields"]["user_id"], set()).add(line["partition"])
    assert [len(partitions) for partitions in by_user.values()] == [1, 1, 1]
    readable = run(options, "tail", "events.service", "--from-beginning", "--count", "5").stdout
    assert len(readable.splitlines()) == 5
    assert "message" not in readable

    status = json.loads(run(options, "status", "--json").stdout)
    roles = {role["role"]: role for role in status["roles"]}
    assert roles["worker"]["lag"] == 40
    assert 0 <= roles["worker"]["oldest_unfinished_s"] < 120
    assert roles["profiles"]["lag"] == roles["alerts"]["lag"] == 0
    assert roles["alerts"]["oldest_unfinished_s"] is None

    group = Consumer(consumer_config(site.kafka, f"{site.kafka.group_prefix}.worker"))
    done = [
        TopicPartition(part["topic"], part["partition"], part["high"])
        for part in roles["worker"]["partitions"]
        if part["high"]
    ]
    group.commit(offsets=done, asynchronous=False)
    group.close()
    after = json.loads(run(options, "status", "--json").stdout)
    assert next(role["lag"] for role in after["roles"] if role["role"] == "worker") == 0
    assert "worker" in run(options, "status").stdout


def test_a_paced_replay_takes_its_time(options: list[str], tmp_path: Path) -> None:
    run(options, "topics", "create")
    file = write_rows(tmp_path / "chats.jsonl", 20)
    report = json.loads(
        run(options, "replay", str(file), "--topic", "events.service", "--rate", "40", "--json", "--limit", "16").stdout
    )
    assert report["events"] == 16
    assert report["seconds"] >= 15 / 40


def test_status_sets_fences_beside_the_end_of_the_folds(site: Site, options: list[str]) -> None:
    run(options, "topics", "create")
    producer = Producer({"bootstrap.servers": site.kafka.bootstrap})
    for _ in range(3):
        producer.produce(site.kafka.topic("folds.user"), b"block", partition=2)
    producer.flush(10)
    with redis.Redis.from_url(site.redis_url) as client:
        client.set(
            fence_key(NullScorer().space, "user", 2), encode_fence(Fence(incarnation=1, fold_offset=1, marks={}))
        )
    fences = json.loads(run(options, "status", "--json").stdout)["fences"]
    assert len(fences) == 2 * site.kafka.fold_shards
    assert [fence for fence in fences if fence["end"]] == [{"kind": "user", "shard": 2, "fence": 1, "end": 3}]


def test_status_goes_on_without_redis(options: list[str]) -> None:
    run(options, "topics", "create")
    result = run([*options, "--set", "redis.url=redis://127.0.0.1:1/0"], "status", "--json")
    status = json.loads(result.stdout)
    assert status["fences"] == []
    assert "Redis" in status["fences_error"]


def test_the_doctor_finds_a_sound_system_well_and_an_evicting_redis_not(site: Site, options: list[str]) -> None:
    run(options, "topics", "create")
    checks = json.loads(run(options, *site.doctor, "--json").stdout)
    assert {check["name"] for check in checks} >= {"libraries", "kafka", "topics", "redis", "redis eviction", "model"}
    assert "✓" in run(options, *site.doctor).stdout
    with redis.Redis.from_url(site.redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    checks = json.loads(run(options, *site.doctor, "--json", code=1).stdout)
    (bad,) = [check for check in checks if not check["well"]]
    assert (bad["name"], bad["found"]) == ("redis eviction", "allkeys-lru")
    assert "noeviction" in bad["todo"]


def test_a_topic_with_the_wrong_shards_is_told(options: list[str]) -> None:
    run(options, "topics", "create")
    result = run([*options, "--set", "kafka.fold_shards=16"], "topics", "describe", "--json", code=1)
    wrong = {report["contract"] for report in json.loads(result.stdout) if report["differences"]}
    assert wrong == {"folds.user", "folds.item", "features.user", "features.item"}
