"""The notify role against Apache Kafka: killed in the middle, shared by two processes, mutes from another process."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.topics import ALERTS_CONTROL, ALERTS_OPINION, EVENTS_DEAD
from tests import roles
from tests.alerts_made import made
from tests.embedded.test_notify import (  # noqa: F401 a test that pytest finds here by name
    Receiver,
    finished,
    publish,
    test_letters_of_two_sinks_are_told_apart_and_sent_again_each_to_its_own_and_once,
)
from tests.opinions import WAIT_S, wait_until
from worker.config import Config, KafkaConfig
from worker.kafka.admin import create_topics, describe_topics
from worker.tools.silencing import mute

pytestmark = pytest.mark.real


def config_of(kafka: dict[str, Any], url: str, folder: Path) -> Config:
    tree = {
        "kafka": kafka,
        "observe": {"log_level": "warning"},
        "notify": {"retry_min_ms": 50, "sinks": {"hook": {"kind": "webhook", "url": url, "max_per_minute": 600}}},
    }
    (folder / "config.json").write_bytes(msgspec.json.encode(tree))
    config = msgspec.convert(tree, Config)
    create_topics(config.kafka, contracts=[ALERTS_OPINION, ALERTS_CONTROL, EVENTS_DEAD])
    return config


@pytest.fixture
def kafka(kafka_config: dict[str, Any]) -> KafkaConfig:
    """For the embedded tests, on a real broker."""
    kafka = msgspec.convert(kafka_config, KafkaConfig)
    create_topics(kafka, contracts=[ALERTS_OPINION, ALERTS_CONTROL, EVENTS_DEAD])
    return kafka


process = partial(roles.process, roles.program("worker.notify.role"))


def test_a_kill_loses_no_message_and_repeats_bear_the_same_id(kafka_config: dict[str, Any], tmp_path: Path) -> None:
    alerts = [made(f"item:{number % 20}", minute=number // 20) for number in range(200)]
    held, killed = threading.Event(), threading.Event()

    def answer(number: int) -> int:
        """The first thirty at once; whoever comes later hears nothing until the process is dead."""
        if number >= 30:
            held.set()
            assert killed.wait(WAIT_S)
        return 200

    with Receiver(answer) as receiver:
        config = config_of(kafka_config, receiver.url, tmp_path)
        publish(config.kafka, *alerts)
        with process(tmp_path) as role:
            assert held.wait(WAIT_S), "not thirty told"
            role.send_signal(signal.SIGKILL)
            role.wait(WAIT_S)
        killed.set()
        with process(tmp_path):
            wait_until(lambda: finished(config), "all told")
        ids = [each["id"] for each in receiver.got]
    assert set(ids) == {f"{alert.alert_id}.opened.{alert.window_end_ms}.warning" for alert in alerts}
    assert len(ids) > len(alerts), "what was taken and not answered did not come again"


def test_two_processes_share_the_alerts_and_one_takes_over(kafka_config: dict[str, Any], tmp_path: Path) -> None:
    with Receiver() as receiver:
        config = config_of(kafka_config, receiver.url, tmp_path)
        mute(config.kafka, "item:1?", 3600)
        with process(tmp_path) as first, process(tmp_path):
            publish(config.kafka, *[made(f"item:{number}") for number in range(40)])
            wait_until(lambda: finished(config), "first half told")
            first.send_signal(signal.SIGKILL)
            first.wait(WAIT_S)
            publish(config.kafka, *[made(f"item:{number}", "resolved", minute=1) for number in range(40)])
            wait_until(lambda: finished(config), "second half told by the one that is left")
        taken = set(receiver.taken)
    loud = [f"item:{number}" for number in range(40) if not 10 <= number < 20]
    assert taken == {f"{subject} {status}" for subject in loud for status in ("opened", "resolved")}


def test_the_control_topic_is_compacted_and_cut_by_age(kafka_config: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(kafka_config, "http://127.0.0.1:9/", tmp_path)
    report = next(each for each in describe_topics(config.kafka) if each.contract == ALERTS_CONTROL)
    assert (report.partitions, report.differences) == (1, [])
