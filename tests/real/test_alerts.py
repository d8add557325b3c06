"""The alerts role against Apache Kafka: kills, aborted transactions, topics that are not what they were."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from schemas.scores import Alert
from schemas.shards import shard_of
from schemas.topics import ALERTS_OPINION, OPINIONS
from tests import roles
from tests.opinions import (
    MINUTE_MS,
    WAIT_S,
    Role,
    burst_on_lamp,
    counted_to_the_end,
    detect,
    expected,
    opinion,
    plain,
    produce,
    published,
    running,
    stream,
    wait_until,
)
from worker.alerts import role as role_module
from worker.alerts.error_rates import error_rates
from worker.alerts.rebuild import Rebuild
from worker.alerts.watch import changelog_name
from worker.config import Config
from worker.errors import KafkaError, TopicError
from worker.kafka.admin import create_topics

pytestmark = pytest.mark.real

A_MINUTE = 12


@pytest.fixture
def config(kafka_config: dict[str, Any], tmp_path: Path) -> Config:
    tree = {
        "kafka": kafka_config,
        "alerts": {"data_dir": str(tmp_path / "alerts")},
        "observe": {"log_level": "warning"},
    }
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(tree))
    config = msgspec.convert(tree, Config)
    create_topics(config.kafka, contracts=[OPINIONS, ALERTS_OPINION])
    return config


process = partial(roles.process, roles.program("worker.alerts.role"))


def test_a_burst_opens_one_alert_which_resolves(config: Config) -> None:
    produce(config, stream(60, A_MINUTE, burst_on_lamp))
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "all opinions counted")
    alerts = published(config)
    assert plain(alerts) == plain(expected(config))
    assert {alert.subject for alert in alerts} == {"item:lamp"}
    assert [alert.status for alert in alerts].count("opened") == 1
    assert alerts[-1].status == "resolved"


def test_kill_in_the_burst_loses_nothing_and_doubles_nothing(config: Config, tmp_path: Path) -> None:
    opinions = stream(60, A_MINUTE, burst_on_lamp)
    burst, later = 41 * A_MINUTE * 3, 44 * A_MINUTE * 3
    with process(tmp_path) as role:
        produce(config, opinions[:burst])
        wait_until(lambda: counted_to_the_end(config), "the calm before counted")
        produce(config, opinions[burst:later])
        wait_until(lambda: bool(published(config)), "the alert opened")
        role.send_signal(signal.SIGKILL)
        role.wait(WAIT_S)
    before = published(config)
    with process(tmp_path):
        produce(config, opinions[later:])
        wait_until(lambda: counted_to_the_end(config), "the rest counted")
    after = published(config)
    # At least once: what the kill caught between publishing and remembering comes again, equal but for the wall time.
    assert after[: len(before)] == before
    assert distinct(after) == plain(expected(config))
    opened = {alert.alert_id for alert in after if alert.status == "opened"}
    assert len(opened) == 1
    assert {alert.alert_id for alert in after} == opened


def test_aborted_opinions_are_not_counted(config: Config) -> None:
    calm = stream(45, A_MINUTE, lambda _subject, _minute: 0.15)
    cut = 40 * A_MINUTE * 3
    produce(config, calm[:cut])
    producer = Producer(
        {"bootstrap.servers": config.kafka.bootstrap, "transactional.id": config.kafka.group_prefix, "log_level": 0}
    )
    producer.init_transactions(WAIT_S)
    for round_ in range(3):
        producer.begin_transaction()
        for number in range(50):
            angry = opinion(
                "item:lamp", calm[cut].event_time_ms + round_ * MINUTE_MS, 1.0, 100_000 + 50 * round_ + number
            )
            producer.produce(config.kafka.topic(OPINIONS), msgspec.json.encode(angry), key="item:lamp")
        assert producer.flush(WAIT_S) == 0
        producer.abort_transaction(WAIT_S)
    produce(config, calm[cut:])
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "all opinions counted")
    assert expected(config, isolation="read_uncommitted"), "the aborted ones would have raised an alert"
    assert expected(config) == []
    assert published(config) == []


def test_two_processes_share_partitions_and_one_takes_over(config: Config, tmp_path: Path) -> None:
    opinions = stream(60, A_MINUTE, burst_on_lamp, subjects=("item:lamp", *(f"item:{n}" for n in range(11))))
    third = len(opinions) // 3
    with process(tmp_path) as first:
        produce(config, opinions[:third])
        wait_until(lambda: counted_to_the_end(config), "first third counted")
        with process(tmp_path):
            produce(config, opinions[third : 2 * third])
            wait_until(lambda: counted_to_the_end(config), "second third counted")
            first.send_signal(signal.SIGKILL)
            first.wait(WAIT_S)
            produce(config, opinions[2 * third :])
            wait_until(lambda: counted_to_the_end(config), "last third counted by the one that is left")
    assert distinct(published(config)) == plain(expected(config))


def test_new_partitions_are_refused_not_guessed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(role_module, "PARTITIONS_INTERVAL_S", 0.5)
    produce(config, stream(3, 3, burst_on_lamp))
    role = Role(config)
    wait_until(lambda: counted_to_the_end(config), "all counted")
    admin = AdminClient({"bootstrap.servers": config.kafka.bootstrap, "log_level": 0})
    topic = config.kafka.topic(OPINIONS)
    admin.create_partitions([NewPartitions(topic, 13)])[topic].result(WAIT_S)
    said = f"13 partitions, {changelog_name(config)} has 12"
    wait_until(lambda: role.ended, "the role refuses while it runs")
    with pytest.raises(TopicError, match=said):
        role.stop()
    with pytest.raises(TopicError, match=said), running(config):
        pass


def test_after_a_rebuild_a_subject_goes_on_in_its_new_partition(config: Config) -> None:
    lamps = stream(60, A_MINUTE, burst_on_lamp, subjects=("item:lamp",))
    others = stream(60, A_MINUTE, burst_on_lamp, subjects=("item:kettle", "item:tent"))
    rates = error_rates(config)
    known, uncounted = 42 * A_MINUTE, 44 * A_MINUTE
    count = next(n for n in range(13, 24) if shard_of("item:lamp", n) != shard_of("item:lamp", 12))
    produce(config, lamps[:known] + others[: 2 * known])
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "all counted")
        assert refusal(config) == "1 alerts process(es)"
    told = published(config)
    assert [alert.status for alert in told][:1] == ["opened"]
    produce(config, lamps[known:uncounted] + others[2 * known : 2 * uncounted])
    admin = AdminClient({"bootstrap.servers": config.kafka.bootstrap, "log_level": 0})
    topic = config.kafka.topic(OPINIONS)
    admin.create_partitions([NewPartitions(topic, count)])[topic].result(WAIT_S)
    found = Rebuild(config).run(lambda _done: None)
    assert (found.partitions, found.opinions, found.subjects) == (count, 3 * uncounted, 3)
    assert distinct(published(config)) == plain(detect(lamps[:uncounted], rates=rates)), (
        "those not yet told, and no other"
    )
    assert len(published(config)) == len(told) + found.alerts_published
    produce(config, lamps[uncounted:] + others[2 * uncounted :])
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "the rest counted")
    assert plain(published(config)) == plain(detect(lamps, rates=rates)), "each once"


def refusal(config: Config) -> str:
    """How a rebuild is refused."""
    with pytest.raises(KafkaError) as refused:
        Rebuild(config).run(lambda _done: None)
    return str(refused.value).partition(" are in")[0]


def delete_opinions(config: Config) -> None:
    admin = AdminClient({"bootstrap.servers": config.kafka.bootstrap, "log_level": 0})
    topic = config.kafka.topic(OPINIONS)
    admin.delete_topics([topic])[topic].result(WAIT_S)
    wait_until(lambda: topic not in admin.list_topics(timeout=WAIT_S).topics, "the topic is gone")


@pytest.mark.parametrize("anew", [False, True])
def test_a_running_role_ends_when_its_topic_is_deleted(
    config: Config, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    produce(config, stream(3, 3, burst_on_lamp))
    monkeypatch.setattr(role_module, "PARTITIONS_INTERVAL_S", 12.0)  # counted, deleted and made anew before it looks
    role = Role(config)
    wait_until(lambda: counted_to_the_end(config), "all counted")
    delete_opinions(config)
    if anew:
        create_topics(config.kafka, contracts=[OPINIONS])
    wait_until(lambda: role.ended, "the role notices")
    with pytest.raises(TopicError, match="made anew" if anew else "missing"):
        role.stop()


@pytest.mark.parametrize("minutes", [0, 9])
def test_a_topic_made_anew_is_refused(config: Config, minutes: int) -> None:
    produce(config, stream(3, 3, burst_on_lamp))
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "all counted")
    delete_opinions(config)
    create_topics(config.kafka, contracts=[OPINIONS])
    produce(config, stream(minutes, 3, burst_on_lamp))  # in the end beyond the old positions
    role = Role(config)
    wait_until(lambda: role.ended, "the role refuses")
    with pytest.raises(TopicError, match="made anew"):
        role.stop()


def distinct(alerts: list[Alert]) -> list[Alert]:
    """Alerts once each, in `plain` order; repeats must be equal but for the wall time."""
    once: list[Alert] = []
    for alert in plain(alerts):
        if not once or alert != once[-1]:
            once.append(alert)
    return once
