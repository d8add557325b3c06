"""The alerts role against the broker in the process: what it publishes, and what a restart changes: nothing."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.topics import ALERTS_OPINION, OPINIONS
from tests.opinions import (
    Role,
    burst_on_lamp,
    counted_to_the_end,
    expected,
    opinion,
    plain,
    produce,
    published,
    running,
    stream,
    wait_until,
)
from worker.alerts.role import STOP_TIMEOUT_S
from worker.config import AlertsConfig, Config, KafkaConfig, ObserveConfig
from worker.demo.embedded import EmbeddedBroker
from worker.errors import TopicError
from worker.kafka.admin import create_topics


@pytest.fixture
def config(embedded_broker: str, tmp_path: Path) -> Config:
    config = Config(
        kafka=KafkaConfig(bootstrap=embedded_broker, embedded=True),
        alerts=AlertsConfig(data_dir=str(tmp_path / "alerts")),
        observe=ObserveConfig(log_level="warning"),
    )
    create_topics(config.kafka, contracts=[OPINIONS, ALERTS_OPINION])
    return config


def test_a_restart_in_the_burst_changes_nothing(config: Config) -> None:
    opinions = stream(60, 10, burst_on_lamp)
    middle = 43 * 10 * 3
    produce(config, opinions[:middle])
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "first half counted")
    opened = published(config)
    assert next(alert.status for alert in opened) == "opened"
    with running(config):
        produce(config, opinions[middle:])
        wait_until(lambda: counted_to_the_end(config), "second half counted")
    assert published(config)[: len(opened)] == opened
    assert plain(published(config)) == plain(expected(config))


def test_a_burst_opens_one_alert_which_resolves_and_repeats_change_nothing(config: Config) -> None:
    opinions = stream(60, 10, burst_on_lamp)
    tail = opinions[-600:]
    produce(config, opinions)
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "all counted")
        alerts = published(config)
        # A worker that died before its commit writes the same opinions again.
        produce(config, [*tail, *tail])
        wait_until(lambda: counted_to_the_end(config), "repeats read")
    assert published(config) == alerts
    assert plain(alerts) == plain(expected(config))
    assert {alert.subject for alert in alerts} == {"item:lamp"}
    statuses = [alert.status for alert in alerts]
    assert statuses[0] == "opened"
    assert statuses[-1] == "resolved"
    assert statuses.count("opened") == statuses.count("resolved") == 1
    assert len({alert.alert_id for alert in alerts}) == 1


def test_what_is_no_opinion_is_skipped_and_counted(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.alerts import role as alerts

    seen: list[str] = []

    class Recorder(alerts.Observer):
        def __exit__(self, *error: object) -> None:
            for path in ("/metrics", "/healthz"):
                with urllib.request.urlopen(self.address + path, timeout=5) as answer:  # noqa: S310
                    seen.append(answer.read().decode())
            super().__exit__(*error)  # type: ignore[arg-type]

    monkeypatch.setattr(alerts, "Observer", Recorder)
    opinions = stream(60, 10, burst_on_lamp)
    producer = Producer({"bootstrap.servers": config.kafka.bootstrap, "log_level": 0})
    bad = [b"", b"\xff\xfe", b"[]", b'{"subject": 3}', b"null"]
    future = opinion("item:lamp", 4_000_000_000_000, 1.0, 10**9)
    for value in bad:
        producer.produce(config.kafka.topic(OPINIONS), value, key="item:lamp")
    producer.produce(config.kafka.topic(OPINIONS), None, key="item:lamp")
    assert producer.flush(10) == 0
    produce(config, [future, *opinions])
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "all read")
    assert [alert.status for alert in published(config)][-1] == "resolved"
    metrics, health = seen
    assert f'millrace_alerts_skipped_total{{reason="malformed"}} {len(bad) + 2:.1f}' in metrics
    assert f"millrace_alerts_opinions_total {len(opinions):.1f}" in metrics
    assert 'millrace_alerts_alerts_total{status="opened"} 1.0' in metrics
    details = json.loads(health)
    assert details["status"] == "ready"
    assert details["subjects"] == 3


def test_a_missing_topic_is_said_at_once(embedded_broker: str, tmp_path: Path) -> None:
    config = Config(
        kafka=KafkaConfig(bootstrap=embedded_broker, embedded=True),
        alerts=AlertsConfig(data_dir=str(tmp_path)),
    )
    with pytest.raises(TopicError, match="millrace topics create"), running(config):
        pass


def test_nothing_is_written_into_the_current_folder(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    produce(config, stream(3, 2, burst_on_lamp))
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "all counted")
    assert list(here.iterdir()) == []


def test_it_stops_in_time_when_the_broker_is_gone(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        config = Config(
            kafka=KafkaConfig(bootstrap=broker.bootstrap, embedded=True),
            alerts=AlertsConfig(data_dir=str(tmp_path / "alerts")),
        )
        create_topics(config.kafka, contracts=[OPINIONS, ALERTS_OPINION])
        produce(config, stream(3, 3, burst_on_lamp))
        role = Role(config)
        wait_until(lambda: counted_to_the_end(config), "all counted")
    started = time.monotonic()
    role.stop()
    assert time.monotonic() - started < 2 * STOP_TIMEOUT_S + 5
