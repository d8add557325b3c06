"""The doctor on three real brokers and a real Redis pair: well where all is as it must be, and what else it finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.chaos.cluster import KafkaCluster
from tests.chaos.redis_pair import RedisPair
from tests.servers import or_skip
from worker.config import Config, KafkaConfig, ModelConfig, RedisConfig
from worker.kafka.admin import create_topics
from worker.tools import doctor
from worker.tools.check import Check

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with or_skip(), KafkaCluster(tmp_path_factory.mktemp("cluster")) as running:
        create_topics(KafkaConfig(bootstrap=running.direct, fold_shards=4))
        running.wait_until_in_sync()
        yield running


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisPair]:
    with or_skip(), RedisPair(tmp_path_factory.mktemp("pair")) as running:
        yield running


@pytest.fixture
def config(cluster: KafkaCluster, pair: RedisPair) -> Config:
    return Config(
        kafka=KafkaConfig(bootstrap=cluster.direct, fold_shards=4),
        redis=RedisConfig(url=pair.url),
        model=ModelConfig(artifact="null"),
    )


def ill(config: Config, **more: Any) -> dict[str, Check]:
    """What is not well, by name."""
    return {check.name: check for check in doctor.examine(config, **more) if not check.well}


def alter(cluster: KafkaCluster, topic: str, key: str, value: str | None) -> None:
    """Set a topic's setting, or take it back, and wait until every broker says so."""
    admin = AdminClient({"bootstrap.servers": cluster.direct})
    how = AlterConfigOpType.SET if value is not None else AlterConfigOpType.DELETE
    entry = ConfigEntry(key, value, incremental_operation=how)
    (future,) = admin.incremental_alter_configs(
        [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])]
    ).values()
    future.result(timeout=30)
    for broker in cluster.brokers.values():
        one = AdminClient({"bootstrap.servers": f"127.0.0.1:{broker.ports.inner}"})
        resource = ConfigResource(ResourceType.TOPIC, topic)
        for _ in range(100):
            found = one.describe_configs([resource])[resource].result(timeout=30)[key].value
            if value is None or found == value:
                break
            one.poll(0.1)
        else:
            pytest.fail(f"{topic}: {key} stays {found}")


def test_a_cluster_with_the_shipped_settings_is_well(config: Config) -> None:
    for protocol in ("cooperative", "consumer"):
        kafka = msgspec.structs.replace(config.kafka, group_protocol=protocol)
        assert ill(msgspec.structs.replace(config, kafka=kafka)) == {}
    names = [check.name for check in doctor.examine(config)]
    assert {"durability", "broker settings", "redis persistence"} <= set(names)


def test_a_topic_that_may_lose_records_is_refused(cluster: KafkaCluster, config: Config) -> None:
    alter(cluster, "scores.ctr", "unclean.leader.election.enable", "true")
    alter(cluster, "folds.user", "min.insync.replicas", "1")
    try:
        found = ill(config)["durability"].found
        assert "scores.ctr: unclean.leader.election.enable=true" in found
        assert "folds.user: min.insync.replicas=1, wanted 2" in found
    finally:
        alter(cluster, "scores.ctr", "unclean.leader.election.enable", None)
        alter(cluster, "folds.user", "min.insync.replicas", "2")
    assert ill(config) == {}


def test_time_outs_that_the_brokers_refuse_are_named(config: Config) -> None:
    worker = msgspec.structs.replace(config.worker, transaction_timeout_ms=20 * 60_000)
    kafka = msgspec.structs.replace(config.kafka, options={"session.timeout.ms": 90_000})
    check = ill(msgspec.structs.replace(config, worker=worker, kafka=kafka))["broker settings"]
    assert "transaction.max.timeout.ms=900000, wanted at least 1200000" in check.found
    assert "group.max.session.timeout.ms=60000, wanted at least 90000" in check.found
    assert "(broker 1, 2, 3)" in check.found
    assert "deploy/kafka/cluster.properties" in check.todo


def test_one_broker_is_enough_for_development_only(kafka_config: dict[str, Any], config: Config) -> None:
    alone = msgspec.structs.replace(config, kafka=msgspec.convert(kafka_config, KafkaConfig))
    create_topics(alone.kafka)
    found = ill(alone)
    assert "1 brokers cannot keep 3 copies" in found["durability"].found
    assert "--replication 1" in found["durability"].todo
    assert ill(alone, replication=1) == {}


def test_redis_without_a_file_a_full_one_and_a_replica_are_refused(config: Config, pair: RedisPair) -> None:
    with pair.client(pair.primary) as client:
        client.config_set("appendonly", "no")
        assert set(ill(config)) == {"redis persistence"}
        client.config_set("save", "60 1")
        assert ill(config) == {}
        client.config_set("save", "")
        client.config_set("appendonly", "yes")
        used = client.info("memory")["used_memory"]
        client.config_set("maxmemory", int(used * 1.05))
        assert "maxmemory is used" in ill(config)["redis eviction"].found
        client.config_set("maxmemory", 0)
    with pair.client(pair.replica) as client:
        port = client.connection_pool.connection_kwargs["port"]
    replica = msgspec.structs.replace(config, redis=RedisConfig(url=f"redis://127.0.0.1:{port}/0"))
    assert "point redis.url to the primary" in ill(replica)["redis"].todo
