"""Topics as they are to be made."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.topics import EVENTS_CLICK, INPUTS, TOPICS
from worker.config import KafkaConfig
from worker.errors import ConfigError
from worker.kafka import admin
from worker.kafka.admin import contract_topics, create_topics, describe_topics, too_narrow

OLD = KafkaConfig(
    topics={EVENTS_CLICK: "shop.clicks"},
    further_topics={"app.clicks": EVENTS_CLICK},
    backfill={"clicks.2025": EVENTS_CLICK, "events.click": EVENTS_CLICK},
)
"""A shop with topics of its own, one of which bears a name of the contract."""


def test_partitions_are_of_the_inputs_alone() -> None:
    made = {topic.name: topic.partitions for topic in contract_topics(TOPICS, 24)}
    assert made == {name: 24 if name in INPUTS else topic.partitions for name, topic in TOPICS.items()}
    assert contract_topics(TOPICS) == list(TOPICS.values())


def test_fewer_partitions_than_the_contract_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--partitions 6: .* 12 "):
        contract_topics(TOPICS, 6)


class Cluster:
    """A cluster as the admin client shows it: topics with partitions of so many copies, and what is asked of it."""

    def __init__(self, **partitions: int) -> None:
        self.topics = {name.replace("_", "."): self.topic(n) for name, n in partitions.items()}
        self.made: dict[str, Any] = {}
        self.altered: list[str] = []
        self.brokers = [1, 2, 3]

    @staticmethod
    def topic(partitions: int, copies: int = 3) -> Any:
        return SimpleNamespace(partitions={n: SimpleNamespace(replicas=[0] * copies) for n in range(partitions)})

    def list_topics(self, **_: Any) -> Any:
        return self

    def poll(self, _: float) -> None:
        pass

    def create_topics(self, topics: list[Any], **_: Any) -> dict[str, Future[None]]:
        answers = {}
        for each in topics:
            answers[each.topic] = answered(None if each.topic not in self.topics else KafkaError.TOPIC_ALREADY_EXISTS)
            self.topics[each.topic] = self.topic(each.num_partitions, each.replication_factor)
            self.made[each.topic] = each
        return answers

    def describe_configs(self, resources: list[Any], **_: Any) -> dict[Any, Future[dict[str, Any]]]:
        return {each: answered(None, {}) for each in resources}

    def incremental_alter_configs(self, resources: list[Any], **_: Any) -> dict[Any, Future[None]]:
        self.altered += [each.name for each in resources]
        return {each: answered(None) for each in resources}


def answered(code: int | None, value: Any = None) -> Future[Any]:
    future: Future[Any] = Future()
    if code is None:
        future.set_result(value)
    else:
        future.set_exception(KafkaException(KafkaError(code)))
    return future


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    def of(**partitions: int) -> Cluster:
        found = Cluster(**partitions)
        monkeypatch.setattr(admin, "admin_client", lambda _: found)
        return found

    return of


def test_added_topics_are_made_as_what_they_carry_and_never_altered(cluster: Callable[..., Cluster]) -> None:
    there = cluster()
    made = create_topics(OLD, partitions=24)
    assert set(made) == {"app.clicks", *OLD.backfill, *(OLD.topic(name) for name in TOPICS)}
    for name in ("clicks.2025", "events.click", "shop.clicks", "app.clicks"):
        assert there.made[name].num_partitions == 24
        assert there.made[name].config == {k: str(v) for k, v in TOPICS[EVENTS_CLICK].config(3).items()}
    assert create_topics(OLD, update=True) == []
    assert set(there.altered) == set(TOPICS) - {EVENTS_CLICK}
    assert create_topics(OLD, contracts=["opinions"]) == []


def test_a_topic_of_backfill_that_is_missing_is_told_and_one_that_is_there_is_its_owners(
    cluster: Callable[..., Cluster],
) -> None:
    there = cluster()
    create_topics(KafkaConfig())
    there.topics["old"] = there.topic(2, copies=1)
    kafka = KafkaConfig(backfill={"old": EVENTS_CLICK, "older": "events.review"})
    told = {report.name: report for report in describe_topics(kafka)}
    assert list(told) == [*TOPICS, "old", "older"]
    assert [name for name, report in told.items() if report.differences] == ["older"]
    assert told["older"].differences == ["missing"]
    assert told["older"].contract == "events.review"
    assert told["old"].partitions == 2


def test_input_topics_with_fewer_partitions_than_asked_for_are_named(cluster: Callable[..., Cluster]) -> None:
    cluster(shop_clicks=1, events_review=24, events_service=12)
    assert too_narrow(OLD, 24) == {"events.service": 12}, "a shop's own topics are its own to widen"
    assert too_narrow(OLD, 12) == {}
