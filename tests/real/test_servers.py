"""The table of topics on a real cluster: made, described, compared."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from schemas.topics import TOPICS
from worker.config import KafkaConfig
from worker.errors import TopicError
from worker.kafka import admin

pytestmark = pytest.mark.real


@pytest.fixture
def kafka(kafka_config: dict[str, Any]) -> KafkaConfig:
    return msgspec.convert(kafka_config, KafkaConfig)


def wait_for_differences(kafka: KafkaConfig, contract: str, wanted: list[str]) -> None:
    """The controller answers before the broker that describes a topic knows its new settings."""
    deadline = time.monotonic() + 20
    while True:
        found = {report.contract: report.differences for report in admin.describe_topics(kafka)}[contract]
        if found == wanted:
            return
        assert time.monotonic() < deadline, f"{contract}: {found}, wanted {wanted}"
        time.sleep(0.1)


def test_created_topics_are_as_the_contract_says(kafka: KafkaConfig) -> None:
    reports = admin.describe_topics(kafka)
    assert all(report.differences for report in reports)
    assert set(admin.create_topics(kafka)) == {kafka.topic(name) for name in TOPICS}
    reports = admin.describe_topics(kafka)
    assert [(report.contract, report.differences) for report in reports] == [(name, []) for name in TOPICS]
    assert {report.contract: report.partitions for report in reports}["folds.user"] == kafka.fold_shards
    assert admin.create_topics(kafka) == []


def test_a_differing_setting_is_told_and_update_mends_it(kafka: KafkaConfig) -> None:
    name = kafka.topic("scores.ctr")
    admin.create_topics(kafka, contracts=["scores.ctr"])
    client = admin.admin_client(kafka)
    entry = ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET)
    change = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    for future in client.incremental_alter_configs([change]).values():
        future.result(timeout=20)
    wait_for_differences(kafka, "scores.ctr", [f"retention.ms=60000, contract {TOPICS['scores.ctr'].retention_ms}"])
    admin.create_topics(kafka, contracts=["scores.ctr"], update=True)
    wait_for_differences(kafka, "scores.ctr", [])


def test_a_shops_own_input_topic_is_left_as_it_is(kafka: KafkaConfig) -> None:
    name = kafka.topic("events.click")
    client = admin.admin_client(kafka)
    (made,) = client.create_topics([NewTopic(name, 2, 1, config={"retention.ms": "60000"})]).values()
    made.result(timeout=20)
    assert name not in admin.create_topics(kafka, update=True)
    report = {report.contract: report for report in admin.describe_topics(kafka)}["events.click"]
    assert (report.partitions, report.differences) == (2, [])
    as_ours = msgspec.structs.replace(kafka, topics={**kafka.topics, "events.click": "elsewhere", "scores.ctr": name})
    report = {report.contract: report for report in admin.describe_topics(as_ours)}["scores.ctr"]
    assert len(report.differences) > 1


def test_a_recreated_topic_has_another_id(kafka: KafkaConfig) -> None:
    name = kafka.topic("events.dead")
    admin.create_topics(kafka, contracts=["events.dead"])
    first = admin.topic_ids(kafka, [name])[name]
    client = admin.admin_client(kafka)
    for future in client.delete_topics([name]).values():
        future.result(timeout=20)
    # Deleting is asynchronous on the broker: creating answers "already exists" until it is done.
    while not admin.create_topics(kafka, contracts=["events.dead"]):
        client.poll(0.05)
    assert admin.topic_ids(kafka, [name])[name] != first


def test_a_missing_topic_is_named(kafka: KafkaConfig) -> None:
    name = kafka.topic("events.click")
    with pytest.raises(TopicError, match=name):
        admin.partition_counts(kafka, [name])
    with pytest.raises(TopicError, match="millrace topics create"):
        admin.topic_ids(kafka, [name])
