"""Rights by role: enough for the table of topics, and no more."""

from __future__ import annotations

import shlex

import pytest

from schemas.topics import ERASURES, FEATURES, FOLDS, INPUTS, TOPICS
from worker.config import KafkaConfig
from worker.errors import ConfigError
from worker.kafka.acls import ROLES, acls, commands, principals_of

KAFKA = KafkaConfig(
    bootstrap="k:9092",
    group_prefix="shop",
    topics={"events.click": "shop.clicks"},
    further_topics={"app.clicks": "events.click"},
    backfill={"old.clicks": "events.click"},
)


def names(role: str, operation: str, resource: str = "topic") -> set[str]:
    found = (
        right for right in acls(KAFKA) if (right.role, right.operation, right.resource) == (role, operation, resource)
    )
    return {right.name for right in found}


def test_every_topic_has_one_who_may_write_it_and_input_topics_only_the_operator() -> None:
    writers = {kind: names(kind, "write") for kind in ROLES}
    assert set().union(*writers.values()) >= {KAFKA.topic(name) for name in TOPICS}
    for name in (*INPUTS, ERASURES):
        assert [role for role in ROLES if KAFKA.topic(name) in writers[role]] == ["operator"]


def test_roles_read_what_they_consume_under_the_configured_names() -> None:
    clicks = {"shop.clicks", "app.clicks", "old.clicks"}
    assert names("worker", "read") == {*clicks, "events.review", "events.service", "erasures"}
    assert names("profiles", "read") == {*FOLDS.values(), *FEATURES.values(), "erasures"}
    assert "opinions" in names("alerts", "read")
    assert names("worker", "read", "group") == {"shop.worker"}


def test_the_operator_sees_the_lag_of_added_topics_and_may_send_every_kind_of_letter_back() -> None:
    assert {"old.clicks", "app.clicks"} <= names("operator", "read")
    clicks = {"shop.clicks", "app.clicks", "old.clicks"}
    came_from = {*clicks, "events.review", "events.service", *FOLDS.values(), "alerts.opinion"}
    assert names("operator", "write") >= came_from
    # What nobody buries a record of, the operator has no business in.
    assert names("operator", "write") - came_from == {"erasures", "events.dead", "alerts.control"}


def test_the_operator_may_make_added_topics_and_look_at_their_settings_but_not_alter_them() -> None:
    for operation in ("create", "describe-configs"):
        assert "old.clicks" in names("operator", operation)
    assert "old.clicks" not in names("operator", "alter-configs")


def test_no_role_but_the_operator_may_touch_topics_themselves() -> None:
    for role in ("worker", "profiles", "notify"):
        assert {right.operation for right in acls(KAFKA) if right.role == role} <= {"read", "write", "describe"}
    created = [right for right in acls(KAFKA) if right.role == "alerts" and right.operation == "create"]
    assert [(right.name, right.prefixed) for right in created] == [("shop.alerts-", True)]


def test_a_transactional_id_has_one_bearer() -> None:
    ids = [right for right in acls(KAFKA) if right.resource == "transactional-id"]
    bearers = {(right.role, right.name, right.prefixed) for right in ids}
    own = {(role, f"shop.{role}", True) for role in ("worker", "profiles")}
    assert bearers == own | {("operator", "shop.dead-replay", True)}


def test_commands_are_those_of_kafkas_own_tool() -> None:
    bearers = principals_of(["worker=User:CN=scoring worker"])
    lines = [shlex.split(line) for line in commands(KAFKA, acls(KAFKA), bearers)]
    assert all(line[:3] == ["kafka-acls.sh", "--bootstrap-server", "k:9092"] for line in lines)
    first = lines[0]
    assert first[first.index("--allow-principal") + 1] == "User:CN=scoring worker"
    assert first[-2:] == ["--topic", "shop.clicks"]
    assert any(line[-1] == "--cluster" for line in lines)
    assert any(
        line[-4:] == ["--transactional-id", "shop.worker", "--resource-pattern-type", "prefixed"] for line in lines
    )


# SecurityUtils of Kafka 4.4 and what AclEntry allows on each kind of resource: the tool refuses every other name.
KAFKAS_OPERATIONS = {
    "--topic": {"Read", "Write", "Create", "Delete", "Describe", "Alter", "DescribeConfigs", "AlterConfigs"},
    "--group": {"Read", "Describe", "Delete", "DescribeConfigs", "AlterConfigs"},
    "--transactional-id": {"Describe", "Write", "TwoPhaseCommit"},
    "--cluster": {
        *("Create", "ClusterAction", "DescribeConfigs", "AlterConfigs", "IdempotentWrite", "Alter", "Describe"),
    },
}


def test_commands_name_operations_as_kafkas_tool_does() -> None:
    for line in commands(KAFKA, acls(KAFKA), principals_of([])):
        words = shlex.split(line)
        (resource,) = set(words) & KAFKAS_OPERATIONS.keys()
        assert words[words.index("--operation") + 1] in KAFKAS_OPERATIONS[resource], line


@pytest.mark.parametrize("text", ["worker", "worker=scoring", "driver=User:x"])
def test_a_principal_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--principal"):
        principals_of([text])
