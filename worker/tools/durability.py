"""What a Kafka cluster must be for exactly once and for losing nothing: asked of the brokers, judged here.

What is wanted is in ``deploy/kafka/cluster.properties``; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import confluent_kafka
import msgspec
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from schemas.topics import INPUTS, TOPICS
from worker.config import Config
from worker.kafka.admin import admin_client
from worker.kafka.clients import NO_RIGHT, REQUEST_TIMEOUT_S, consumer_config, translate
from worker.tools.check import Check, bad, good

TRANSACTION_LOG: Final = "__transaction_state"
GROUP_LOG: Final = "__consumer_offsets"
CLEANUP_MS_MAX: Final = 2000
"""An overdue transaction holds readers back for its time-out and up to this much more."""

Settings = Mapping[str, str]


class Rule(msgspec.Struct, frozen=True):
    """A setting and what it must be: at least, or at most, a number."""

    key: str
    bound: int
    at_least: bool

    def broken_by(self, settings: Settings) -> str | None:
        """What is wrong; None where all is well or the broker does not tell."""
        value = settings.get(self.key)
        if value is None or (int(value) >= self.bound if self.at_least else int(value) <= self.bound):
            return None
        return f"{self.key}={value}, wanted {'at least' if self.at_least else 'at most'} {self.bound}"


def broker_rules(config: Config, copies: int) -> list[Rule]:
    """The rules for every broker under this configuration, for ``copies`` copies of a record."""
    session_ms = int(consumer_config(config.kafka, "doctor").get("session.timeout.ms", 10_000))
    kept_ms = max(TOPICS[name].retention_ms or 0 for name in INPUTS)
    rules = [
        Rule("group.min.session.timeout.ms", session_ms, at_least=False),
        Rule("group.max.session.timeout.ms", session_ms, at_least=True),
        # A group that was stopped must find its offsets as long as there are events that it has not read.
        Rule("offsets.retention.minutes", kept_ms // 60_000, at_least=True),
        Rule("offsets.topic.replication.factor", copies, at_least=True),
    ]
    if config.kafka.group_protocol == "consumer":
        rules.append(Rule("group.consumer.session.timeout.ms", 10_000, at_least=False))
    timeouts_ms = [
        role.transaction_timeout_ms for role in (config.worker, config.profiles) if role.delivery == "exactly_once"
    ]
    if timeouts_ms:
        rules += [
            Rule("transaction.max.timeout.ms", max(timeouts_ms), at_least=True),
            Rule("transaction.abort.timed.out.transaction.cleanup.interval.ms", CLEANUP_MS_MAX, at_least=False),
            Rule("transaction.state.log.replication.factor", copies, at_least=True),
            Rule("transaction.state.log.min.isr", _in_sync(copies), at_least=True),
        ]
    return rules


def topic_faults(name: str, replicas: int, settings: Settings, copies: int) -> list[str]:
    """What makes a topic lose what it acknowledged."""
    faults = []
    if replicas < copies:
        faults.append(f"{name}: {replicas} copies, wanted {copies}")
    if (in_sync := settings.get("min.insync.replicas")) is not None and int(in_sync) < _in_sync(copies):
        faults.append(f"{name}: min.insync.replicas={in_sync}, wanted {_in_sync(copies)}")
    if settings.get("unclean.leader.election.enable") == "true":
        faults.append(f"{name}: unclean.leader.election.enable=true: a copy that fell behind may become the leader")
    return faults


def examine_durability(config: Config, copies: int) -> list[Check]:
    """Copies, elections and time-outs of a real cluster; what this user may not see is said. Raises `KafkaError`."""
    admin = admin_client(config.kafka)
    try:
        cluster = admin.list_topics(timeout=REQUEST_TIMEOUT_S)
        ours = [config.kafka.topic(name) for name in TOPICS if name not in INPUTS or name not in config.kafka.topics]
        names = [name for name in (*ours, TRANSACTION_LOG, GROUP_LOG) if name in cluster.topics]
        settings = _visible(admin, ResourceType.TOPIC, names)
        brokers = _visible(admin, ResourceType.BROKER, [str(node) for node in cluster.brokers])
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="asking for the settings of brokers and topics") from error
    return [
        _copies(cluster, names, settings, copies),
        _brokers(brokers, broker_rules(config, copies)),
    ]


def _copies(cluster: Any, names: list[str], settings: dict[str, Settings], copies: int) -> Check:
    faults = []
    for name in names:
        parts = cluster.topics[name].partitions.values()
        replicas = min((len(part.replicas) for part in parts), default=0)
        faults += topic_faults(name, replicas, settings.get(name, {}), copies)
    if len(cluster.brokers) < copies:
        faults.insert(0, f"{len(cluster.brokers)} brokers cannot keep {copies} copies")
    if not faults:
        return good("durability", f"{len(names)} topics in {copies} copies, {_in_sync(copies)} of them in sync")
    todo = (
        "three brokers with deploy/kafka/cluster.properties; move topics that exist with kafka-reassign-partitions."
        " On a machine for development: millrace doctor --replication 1"
    )
    return bad("durability", "\n".join(faults), todo)


def _brokers(brokers: dict[str, Settings], rules: list[Rule]) -> Check:
    if not brokers:
        rights = "give its user the operator's rights (`millrace topics acls`) to have them checked"
        return Check(name="broker settings", well=True, found="not visible to this user", todo=rights)
    faults: dict[str, list[str]] = {}
    for node, settings in brokers.items():
        for fault in filter(None, (rule.broken_by(settings) for rule in rules)):
            faults.setdefault(fault, []).append(node)
    if not faults:
        return good("broker settings", f"{len(rules)} as exactly once needs them, on {len(brokers)} brokers")
    found = "\n".join(f"{fault} (broker {', '.join(nodes)})" for fault, nodes in faults.items())
    return bad(
        "broker settings", found, "set them as deploy/kafka/cluster.properties has them, and restart the brokers"
    )


def _visible(admin: AdminClient, kind: ResourceType, names: list[str]) -> dict[str, Settings]:
    """The settings of those resources that we may look at. Raises librdkafka's exception for anything but a refusal."""
    found: dict[str, Settings] = {}
    for name in names:
        # One request each: librdkafka takes one broker at a time.
        (future,) = admin.describe_configs([ConfigResource(kind, name)], request_timeout=REQUEST_TIMEOUT_S).values()
        try:
            entries = future.result(timeout=2 * REQUEST_TIMEOUT_S)
        except confluent_kafka.KafkaException as error:
            if error.args[0].code() not in NO_RIGHT:
                raise
        else:
            found[name] = {key: entry.value for key, entry in entries.items() if entry.value is not None}
    return found


def _in_sync(copies: int) -> int:
    """How many copies must have a record before it counts as written: one may be lost."""
    return max(1, copies - 1)
