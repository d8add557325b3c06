"""The rights that each role needs on Kafka, and no more: from the contract's table of topics to access control lists.

A right on a topic to read or write implies the right to describe it. Topics that a shop named itself
(``kafka.topics``, ``further_topics``, ``backfill``) and the group prefix are those of the configuration.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import confluent_kafka
import msgspec
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from schemas.topics import (
    ALERTS_CONTROL,
    ALERTS_OPINION,
    ERASURES,
    EVENTS_DEAD,
    FEATURES,
    FOLDS,
    INPUTS,
    OPINIONS,
    SCORES_CTR,
    SCORES_INTENT,
    SCORES_SENTIMENT,
    TOPICS,
    TRENDS_OPINION,
)
from worker.config import KafkaConfig
from worker.errors import ConfigError
from worker.kafka.admin import admin_client
from worker.kafka.clients import REQUEST_TIMEOUT_S, translate

Role = Literal["worker", "profiles", "alerts", "notify", "operator"]
Resource = Literal["topic", "group", "transactional-id", "cluster"]
Operation = Literal["read", "write", "create", "describe", "describe-configs", "alter-configs"]

ROLES: Final[tuple[Role, ...]] = ("worker", "profiles", "alerts", "notify", "operator")
CLUSTER: Final = "kafka-cluster"
_WORKER_WRITES: Final = (SCORES_CTR, SCORES_SENTIMENT, SCORES_INTENT, OPINIONS, *FOLDS.values(), EVENTS_DEAD)


class Acl(msgspec.Struct, frozen=True, kw_only=True):
    """One right of one role. ``prefixed``: on every resource whose name begins so."""

    role: Role
    operation: Operation
    resource: Resource
    name: str
    prefixed: bool = False


def acls(kafka: KafkaConfig) -> list[Acl]:
    """Every right of every role under this configuration.

    The operator makes and checks topics, replays, follows, silences, erases, and looks at groups; no other role may
    alter a topic or read what it has no use for. Feeds read without a group, but their client asks for rights on one.
    A dead letter goes back to where it came from, so the operator writes to all that a role may bury a record of.
    """
    prefix = kafka.group_prefix
    changelogs = f"{prefix}.alerts-"
    every = _topics(kafka, TOPICS)
    added = sorted(kafka.added_topics)
    buried = (*INPUTS, *FOLDS.values(), ALERTS_OPINION)
    return [
        *_each("worker", "read", "topic", [*_topics(kafka, (*INPUTS, ERASURES)), *added]),
        *_each("worker", "write", "topic", _topics(kafka, _WORKER_WRITES)),
        *_prefixed("worker", ("read",), "group", f"{prefix}.worker"),
        *_prefixed("worker", ("write", "describe"), "transactional-id", f"{prefix}.worker"),
        *_each("profiles", "read", "topic", _topics(kafka, (*FOLDS.values(), *FEATURES.values(), ERASURES))),
        *_each("profiles", "write", "topic", _topics(kafka, (*FEATURES.values(), EVENTS_DEAD))),
        *_prefixed("profiles", ("read",), "group", f"{prefix}.profiles"),
        *_prefixed("profiles", ("write", "describe"), "transactional-id", f"{prefix}.profiles"),
        *_each("alerts", "read", "topic", _topics(kafka, (OPINIONS, TRENDS_OPINION))),
        *_each("alerts", "write", "topic", _topics(kafka, (ALERTS_OPINION, TRENDS_OPINION))),
        *_prefixed("alerts", ("read", "write", "create"), "topic", changelogs),
        *_prefixed("alerts", ("read",), "group", f"{prefix}.alerts"),
        *_each("notify", "read", "topic", _topics(kafka, (ALERTS_OPINION, ALERTS_CONTROL))),
        *_each("notify", "write", "topic", _topics(kafka, (EVENTS_DEAD,))),
        *_prefixed("notify", ("read",), "group", f"{prefix}.notify"),
        *(
            Acl(role="operator", operation=operation, resource="topic", name=name)
            for operation in _OPERATOR
            for name in every
        ),
        *(right for operation in _OPERATOR_ADDED for right in _each("operator", operation, "topic", added)),
        *_each("operator", "write", "topic", _topics(kafka, (*buried, ERASURES, EVENTS_DEAD, ALERTS_CONTROL))),
        *_prefixed("operator", ("write", "describe"), "transactional-id", f"{prefix}.dead-replay"),
        *_prefixed("operator", ("describe", "describe-configs"), "topic", "__"),
        *_prefixed("operator", ("read",), "group", prefix),
        *_each("operator", "describe", "cluster", [CLUSTER]),
        *_each("operator", "describe-configs", "cluster", [CLUSTER]),
    ]


_OPERATOR: Final[tuple[Operation, ...]] = ("read", "create", "describe-configs", "alter-configs")
_OPERATOR_ADDED: Final[tuple[Operation, ...]] = ("read", "write", "create", "describe-configs")
"""Made where it is missing, never altered."""


def principals_of(given: Iterable[str]) -> dict[Role, str]:
    """Who bears each role: ``User:millrace-<role>``, or as given by ``ROLE=PRINCIPAL``. Raises `ConfigError`."""
    found: dict[Role, str] = {role: f"User:millrace-{role}" for role in ROLES}
    for text in given:
        role, eq, principal = text.partition("=")
        if role not in found or not eq or ":" not in principal:
            raise ConfigError(f"--principal {text}: expected ROLE=User:NAME, the role one of {', '.join(ROLES)}")
        found[role] = principal
    return found


def commands(kafka: KafkaConfig, rights: Iterable[Acl], principals: dict[Role, str]) -> list[str]:
    """Calls of Kafka's own tool, one a right: to be reviewed and kept where one keeps such things.

    ``admin.properties`` is for the reader to write: how a user who may alter the cluster logs in.
    """
    tool = ["kafka-acls.sh", "--bootstrap-server", kafka.bootstrap, "--command-config", "admin.properties", "--add"]
    lines = []
    for right in rights:
        what = ["--cluster"] if right.resource == "cluster" else [f"--{right.resource}", right.name]
        pattern = ["--resource-pattern-type", "prefixed"] if right.prefixed else []
        # The tool knows operations as DescribeConfigs; it takes one word in any case, but two of them only so.
        operation = right.operation.title().replace("-", "")
        who = ["--allow-principal", principals[right.role], "--operation", operation]
        lines.append(shlex.join([*tool, *who, *what, *pattern]))
    return lines


def apply(kafka: KafkaConfig, rights: Sequence[Acl], principals: dict[Role, str]) -> None:
    """Add the rights on the cluster. Needs the right to alter it. Raises `KafkaError`."""
    bindings = [
        AclBinding(
            ResourceType.BROKER if right.resource == "cluster" else _RESOURCES[right.resource],
            right.name,
            ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL,
            principals[right.role],
            "*",
            AclOperation[right.operation.replace("-", "_").upper()],
            AclPermissionType.ALLOW,
        )
        for right in rights
    ]
    admin = admin_client(kafka)
    try:
        admin.list_topics(timeout=REQUEST_TIMEOUT_S)
        for future in admin.create_acls(bindings, request_timeout=REQUEST_TIMEOUT_S).values():
            future.result(timeout=2 * REQUEST_TIMEOUT_S)
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="adding access control lists") from error


_RESOURCES: Final = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}


def _topics(kafka: KafkaConfig, names: Iterable[str]) -> list[str]:
    return [kafka.topic(name) for name in names]


def _each(role: Role, operation: Operation, resource: Resource, names: Iterable[str]) -> list[Acl]:
    return [Acl(role=role, operation=operation, resource=resource, name=name) for name in names]


def _prefixed(role: Role, operations: Iterable[Operation], resource: Resource, name: str) -> list[Acl]:
    return [
        Acl(role=role, operation=operation, resource=resource, name=name, prefixed=True) for operation in operations
    ]
