"""Topics as the contract wants them: made, looked up and compared with what the cluster has.

The embedded broker has no controller: there, topics appear by asking for them, their partitions are the broker's
own default, and their ids are their names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import confluent_kafka
import msgspec
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from schemas.topics import FEATURES, FOLDS, INPUTS, TOPICS, Topic
from worker.config import KafkaConfig
from worker.errors import ConfigError, TopicError
from worker.kafka.clients import REFUSED, REQUEST_TIMEOUT_S, client_config, translate

_SHARDED: Final = frozenset((*FOLDS.values(), *FEATURES.values()))
_ALREADY_EXISTS: Final = confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS


class TopicReport(msgspec.Struct, frozen=True, kw_only=True):
    """A topic beside what the contract wants of it. ``differences`` is empty where they agree."""

    contract: str
    name: str
    partitions_wanted: int
    partitions: int | None
    replication_wanted: int
    replication: int | None
    differences: list[str]


class Admin(AdminClient):  # type: ignore[misc]
    """An admin client whose failed look at the cluster says why.

    A wrong password or CA shows as a time-out in the call; its cause comes on the side, as an event.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._refused: confluent_kafka.KafkaError | None = None
        super().__init__({**config, "error_cb": self._on_error})

    def list_topics(self, *args: Any, **options: Any) -> Any:
        """As the base class; raises the refusal that a time-out hides."""
        try:
            return super().list_topics(*args, **options)
        except confluent_kafka.KafkaException as error:
            self.poll(0)
            if self._refused is None:
                raise
            raise confluent_kafka.KafkaException(self._refused) from error

    def _on_error(self, error: confluent_kafka.KafkaError) -> None:
        if error.code() in REFUSED:
            self._refused = error


def admin_client(kafka: KafkaConfig) -> Admin:
    """An admin client of the cluster."""
    return Admin(client_config(kafka))


def partition_counts(kafka: KafkaConfig, names: Iterable[str]) -> dict[str, int]:
    """Partitions of each topic, by its cluster name. Raises `TopicError` naming those that are missing."""
    names = list(names)
    admin = admin_client(kafka)
    found = _topics(admin)
    missing = [name for name in names if name not in found]
    if missing:
        _check_rights(admin, kafka, missing)
        raise TopicError(f"topics missing: {', '.join(missing)}. Run `millrace topics create`")
    return {name: len(found[name].partitions) for name in names}


def topic_ids(kafka: KafkaConfig, names: Iterable[str]) -> dict[str, str]:
    """Kafka's id of each topic, by its cluster name; the name itself on the embedded broker.

    A topic deleted and made again has another id, which is how its old offsets are told from its new ones.
    """
    names = list(names)
    if kafka.embedded or not names:
        return {name: name for name in names}
    admin = admin_client(kafka)  # kept in a name: a client that is collected takes its open requests with it
    try:
        futures = admin.describe_topics(confluent_kafka.TopicCollection(names), request_timeout=REQUEST_TIMEOUT_S)
        return {name: str(future.result(timeout=REQUEST_TIMEOUT_S * 2).topic_id) for name, future in futures.items()}
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="looking up topic ids") from error


def create_topics(
    kafka: KafkaConfig,
    *,
    replication: int | None = None,
    contracts: Sequence[str] | None = None,
    update: bool = False,
    partitions: int | None = None,
) -> list[str]:
    """Make the topics that are missing, of ``contracts`` or `all_topics`; returns the cluster names of those made.

    ``replication`` defaults to three copies or as many as there are brokers, ``partitions`` of each input topic to the
    contract's. Topics that exist keep their partitions; with ``update`` their settings (retention, sizes) are set to
    the contract's, but for those that are a shop's own. Raises `ConfigError` for fewer partitions than the contract
    has.
    """
    names = all_topics(kafka) if contracts is None else {kafka.topic(name): name for name in contracts}
    by_contract = {topic.name: topic for topic in contract_topics(set(names.values()), partitions)}
    wanted = {name: by_contract[contract] for name, contract in names.items()}
    admin = admin_client(kafka)
    if kafka.embedded:
        return _create_embedded(kafka, list(wanted))
    copies = replication or _default_replication(admin)
    existing = _topics(admin)
    made = _create(admin, kafka, {name: topic for name, topic in wanted.items() if name not in existing}, copies)
    if update:
        ours = {name: topic for name, topic in wanted.items() if not _a_shops_own(kafka, name, topic)}
        _update_settings(admin, {name: topic for name, topic in ours.items() if name in existing}, copies)
    return made


def all_topics(kafka: KafkaConfig) -> dict[str, str]:
    """Cluster name to contract: every topic of the contract, then those that are added (``kafka.added_topics``)."""
    return {kafka.topic(name): name for name in TOPICS} | kafka.added_topics


def too_narrow(kafka: KafkaConfig, partitions: int) -> dict[str, int]:
    """Input topics that have fewer partitions than that, by cluster name, and how many they have; but for a shop's own,
    which are their owner's to widen."""
    found = _topics(admin_client(kafka))
    names = [name for contract in INPUTS if (name := kafka.topic(contract)) in found and contract not in kafka.topics]
    return {name: n for name in names if (n := len(found[name].partitions)) < partitions}


def describe_topics(kafka: KafkaConfig, *, replication: int | None = None) -> list[TopicReport]:
    """Every one of `all_topics` beside what the cluster has."""
    admin = admin_client(kafka)
    copies = replication or (1 if kafka.embedded else _default_replication(admin))
    found = _topics(admin)
    present = [kafka.topic(name) for name in TOPICS if kafka.topic(name) in found]
    settings = {} if kafka.embedded else _settings(admin, present)
    return [
        _report(kafka, name, TOPICS[contract], found.get(name), settings, copies)
        for name, contract in all_topics(kafka).items()
    ]


def contract_topics(names: Iterable[str], partitions: int | None = None) -> list[Topic]:
    """These topics of the contract, the inputs among them with so many partitions.

    Raises `ConfigError` for fewer than the contract has: the doctor would miss them.
    """
    topics = [TOPICS[name] for name in names]
    if partitions is None:
        return topics
    least = max(TOPICS[name].partitions for name in INPUTS)
    if partitions < least:
        raise ConfigError(f"--partitions {partitions}: the contract has {least} of each input topic at least")
    return [
        msgspec.structs.replace(topic, partitions=partitions) if topic.name in INPUTS else topic for topic in topics
    ]


def wanted_partitions(kafka: KafkaConfig, topic: Topic) -> int:
    """Partitions that a topic of the contract is made with: those of folds and features follow ``fold_shards``."""
    return kafka.fold_shards if topic.name in _SHARDED else topic.partitions


def _a_shops_own(kafka: KafkaConfig, name: str, topic: Topic) -> bool:
    """Whether its owner settles what a topic is like: it may have been there before us."""
    return name in kafka.added_topics or (topic.name in INPUTS and topic.name in kafka.topics)


def _report(
    kafka: KafkaConfig, name: str, topic: Topic, found: Any, settings: dict[str, dict[str, str]], copies: int
) -> TopicReport:
    differences: list[str] = []
    partitions = replicas = None
    if found is None:
        differences.append("missing")
    else:
        partitions = len(found.partitions)
        replicas = min((len(part.replicas) for part in found.partitions.values()), default=0)
        if not _a_shops_own(kafka, name, topic):
            differences = _differences(kafka, topic, partitions, replicas, settings.get(name, {}), copies)
    return TopicReport(
        contract=topic.name,
        name=name,
        partitions_wanted=wanted_partitions(kafka, topic),
        partitions=partitions,
        replication_wanted=min(topic.replication_factor, copies),
        replication=replicas,
        differences=differences,
    )


def _differences(
    kafka: KafkaConfig, topic: Topic, partitions: int, replicas: int, settings: dict[str, str], copies: int
) -> list[str]:
    differences: list[str] = []
    wanted = wanted_partitions(kafka, topic)
    # Events and scores may have any number of partitions; the shard function needs exactly its own.
    if topic.name in _SHARDED and partitions != wanted:
        differences.append(f"{partitions} partitions, kafka.fold_shards is {wanted}")
    elif partitions < wanted and not kafka.embedded:
        differences.append(f"{partitions} partitions, contract {wanted}")
    if not kafka.embedded:
        if replicas < min(topic.replication_factor, copies):
            differences.append(f"{replicas} copies, contract {min(topic.replication_factor, copies)}")
        for key, value in topic.config(min(topic.replication_factor, copies)).items():
            if key in settings and settings[key] != value:
                differences.append(f"{key}={settings[key]}, contract {value}")
    return differences


def _check_rights(admin: AdminClient, kafka: KafkaConfig, names: list[str]) -> None:
    """Raises `KafkaRefusedError` when topics are only hidden from us: Kafka lists none that we may not describe."""
    if kafka.embedded:
        return
    futures = admin.describe_topics(confluent_kafka.TopicCollection(names), request_timeout=REQUEST_TIMEOUT_S)
    for name, future in futures.items():
        try:
            future.result(timeout=REQUEST_TIMEOUT_S * 2)
        except confluent_kafka.KafkaException as error:
            if error.args[0].code() in REFUSED:
                raise translate(error, doing=f"looking for {name}") from error


def _topics(admin: AdminClient) -> dict[str, Any]:
    try:
        return dict(admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics)
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="listing topics") from error


def _default_replication(admin: AdminClient) -> int:
    try:
        return min(3, max(1, len(admin.list_topics(timeout=REQUEST_TIMEOUT_S).brokers)))
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="counting brokers") from error


def _create(admin: AdminClient, kafka: KafkaConfig, topics: dict[str, Topic], copies: int) -> list[str]:
    if not topics:
        return []
    new = [
        NewTopic(
            name,
            num_partitions=wanted_partitions(kafka, topic),
            replication_factor=min(topic.replication_factor, copies),
            config=topic.config(min(topic.replication_factor, copies)),
        )
        for name, topic in topics.items()
    ]
    made = []
    try:
        futures = admin.create_topics(new, request_timeout=REQUEST_TIMEOUT_S, operation_timeout=REQUEST_TIMEOUT_S)
        for name, future in futures.items():
            try:
                future.result(timeout=REQUEST_TIMEOUT_S * 3)
                made.append(name)
            except confluent_kafka.KafkaException as error:
                # Another process made it between our look and our request.
                if error.args[0].code() != _ALREADY_EXISTS:
                    raise
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing=f"creating topics {', '.join(topic.topic for topic in new)}") from error
    _wait_until_listed(admin, made)
    return made


def _wait_until_listed(admin: AdminClient, names: list[str]) -> None:
    # The controller answers before every broker's metadata knows the topic; a client started now would miss it.
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while time.monotonic() < deadline:
        found = _topics(admin)
        if all(name in found and found[name].partitions for name in names):
            return
        admin.poll(0.05)
    raise TopicError(f"topics made but not yet listed after {REQUEST_TIMEOUT_S:.0f} s: {', '.join(names)}")


def _create_embedded(kafka: KafkaConfig, names: list[str]) -> list[str]:
    admin = admin_client(kafka)
    existing = _topics(admin)
    made = [name for name in names if name not in existing]
    try:
        for name in made:
            admin.list_topics(topic=name, timeout=REQUEST_TIMEOUT_S)
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="creating topics on the embedded broker") from error
    _wait_until_listed(admin, made)
    return made


def topic_settings(kafka: KafkaConfig, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Every setting of those topics that exist, as the cluster has them."""
    admin = admin_client(kafka)
    found = _topics(admin)
    return _settings(admin, [name for name in names if name in found])


def _settings(admin: AdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    try:
        futures = admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S)
        return {
            resource.name: {key: entry.value for key, entry in future.result(timeout=REQUEST_TIMEOUT_S * 2).items()}
            for resource, future in futures.items()
        }
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="reading topic settings") from error


def _update_settings(admin: AdminClient, topics: dict[str, Topic], copies: int) -> None:
    if not topics:
        return
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            name,
            incremental_configs=[
                ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                for key, value in topic.config(min(topic.replication_factor, copies)).items()
            ],
        )
        for name, topic in topics.items()
    ]
    try:
        for future in admin.incremental_alter_configs(resources, request_timeout=REQUEST_TIMEOUT_S).values():
            future.result(timeout=REQUEST_TIMEOUT_S * 2)
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing="updating topic settings") from error
