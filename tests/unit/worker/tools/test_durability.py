"""What the doctor wants of a cluster: that the shipped settings satisfy it, and that each rule can be broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import read_properties
from worker.config import Config, KafkaConfig, ProfilesConfig, WorkerConfig
from worker.tools.durability import _brokers, broker_rules, topic_faults

SHIPPED = Path(__file__).resolve().parents[4] / "deploy" / "kafka" / "cluster.properties"
CONFIG = Config(kafka=KafkaConfig(group_protocol="consumer"))


def shipped() -> dict[str, str]:
    # What Kafka has where the file says nothing.
    defaults = {"transaction.max.timeout.ms": "900000"}
    return {**defaults, **read_properties(SHIPPED)}


@pytest.mark.parametrize("rule", broker_rules(CONFIG, 3), ids=lambda rule: rule.key)
def test_the_shipped_settings_satisfy_every_rule_and_each_can_be_broken(rule) -> None:
    settings = shipped()
    assert rule.key in settings, "a rule that the shipped settings do not mention"
    assert rule.broken_by(settings) is None
    worse = rule.bound - 1 if rule.at_least else rule.bound + 1
    said = rule.broken_by({**settings, rule.key: str(worse)})
    assert said is not None
    assert f"{rule.key}={worse}" in said


def test_the_shipped_topic_settings_lose_nothing() -> None:
    settings = shipped()
    topic = {key: settings[key] for key in ("min.insync.replicas", "unclean.leader.election.enable")}
    assert topic_faults("t", int(settings["default.replication.factor"]), topic, 3) == []


@pytest.mark.parametrize(
    ("replicas", "settings", "says"),
    [
        (2, {}, "2 copies"),
        (3, {"min.insync.replicas": "1"}, "min.insync.replicas=1, wanted 2"),
        (3, {"unclean.leader.election.enable": "true"}, "unclean"),
    ],
)
def test_a_topic_that_may_lose_records_is_named(replicas: int, settings: dict[str, str], says: str) -> None:
    (fault,) = topic_faults("scores.ctr", replicas, settings, 3)
    assert fault.startswith("scores.ctr: ")
    assert says in fault


def test_a_machine_for_development_keeps_one_copy() -> None:
    assert topic_faults("t", 1, {"min.insync.replicas": "1"}, 1) == []


def test_transactions_are_asked_about_only_where_they_are_used() -> None:
    plain = Config(worker=WorkerConfig(delivery="at_least_once"), profiles=ProfilesConfig(delivery="at_least_once"))
    keys = {rule.key for rule in broker_rules(plain, 3)}
    assert not any(key.startswith("transaction.") for key in keys)
    assert "group.consumer.session.timeout.ms" not in keys


def test_settings_that_this_user_may_not_see_are_said_to_be_so() -> None:
    check = _brokers({}, broker_rules(CONFIG, 3))
    assert check.well
    assert "not visible" in check.found
    assert "millrace topics acls" in check.todo
