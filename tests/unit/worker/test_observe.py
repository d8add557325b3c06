"""Metrics and health over HTTP."""

from __future__ import annotations

import json
import logging
import socket
import struct
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from worker import observe
from worker.config import Config, KafkaConfig, ObserveConfig
from worker.errors import ConfigError
from worker.kafka.clients import consumer_config
from worker.kafka.source import STABLE_TIMEOUT_S
from worker.metrics import AlertsMetrics, NotifyMetrics, ProfilesMetrics, WorkerMetrics
from worker.observe import LOOP_STOOD_MAX_S, LOOP_STOOD_SECONDS, REQUESTS_MAX, Observer


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 our own server
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_and_health_are_served_on_loopback_while_the_context_is_open() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    metrics.events.labels("events.click").inc(3)
    state: dict[str, Any] = {"well": True}
    with Observer(ObserveConfig(), registry, lambda: (state["well"], {"lag": 4})) as observer:
        address = observer.address
        assert address.startswith("http://127.0.0.1:")
        status, body = get(address + "/metrics")
        assert status == 200
        assert 'millrace_worker_events_total{topic="events.click"} 3.0' in body
        status, body = get(address + "/healthz?verbose=1")
        assert (status, json.loads(body)) == (200, {"status": "ready", "lag": 4})
        state["well"] = False
        status, body = get(address + "/healthz")
        assert (status, json.loads(body)["status"]) == (503, "not ready")
        assert get(address + "/etc/passwd")[0] == 404
    with pytest.raises(urllib.error.URLError):
        get(address + "/healthz")


def test_liveness_is_of_the_loop_alone() -> None:
    now_s = [100.0]
    with Observer(ObserveConfig(), CollectorRegistry(), lambda: (False, {}), clock=lambda: now_s[0]) as observer:
        assert get(observer.address + "/healthz")[0] == 503
        assert get(observer.address + "/livez") == (200, '{"status": "alive", "loop_stood_s": 0.0}')
        now_s[0] += LOOP_STOOD_MAX_S - 1
        assert get(observer.address + "/livez")[0] == 200
        now_s[0] += 1
        status, body = get(observer.address + "/livez")
        assert (status, json.loads(body)) == (503, {"status": "stuck", "loop_stood_s": LOOP_STOOD_MAX_S})
        assert f"{LOOP_STOOD_SECONDS} {LOOP_STOOD_MAX_S}" in get(observer.address + "/metrics")[1]
        observer.turned()
        assert get(observer.address + "/livez")[0] == 200
        assert f"{LOOP_STOOD_SECONDS} 0.0" in get(observer.address + "/metrics")[1]


def connect(observer: Observer) -> socket.socket:
    host, _, port = observer.address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_a_client_that_dawdles_holds_up_nobody_and_is_dropped_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "REQUEST_TIMEOUT_S", 2.0)
    with Observer(ObserveConfig(), CollectorRegistry(), lambda: (True, {})) as observer, connect(observer) as slow:
        began = time.monotonic()
        assert get(observer.address + "/livez")[0] == 200
        assert time.monotonic() - began < 1.5
        with suppress(OSError):  # a broken pipe: dropped
            while time.monotonic() - began < 8:
                slow.sendall(b"G")
                time.sleep(0.1)
        assert 1.5 < time.monotonic() - began < 6


def test_of_too_many_clients_the_oldest_give_way() -> None:
    with Observer(ObserveConfig(), CollectorRegistry(), lambda: (True, {})) as observer, ExitStack() as stack:
        idle = [stack.enter_context(connect(observer)) for _ in range(REQUESTS_MAX)]
        assert get(observer.address + "/healthz")[0] == 200
        idle[0].settimeout(1)
        assert idle[0].recv(1) == b"", "it was closed"
        idle[1].sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert idle[1].recv(100).startswith(b"HTTP/1.0 200")


def test_a_client_that_goes_away_is_no_news_and_its_address_is_nowhere(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "worker.observe")
    with Observer(ObserveConfig(), CollectorRegistry(), lambda: (True, {})) as observer:
        caplog.clear()
        with connect(observer) as gone:
            gone.sendall(b"GET /livez HTT")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at its end
        until = time.monotonic() + 10
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.01)
    assert [each.levelname for each in caplog.records] == ["DEBUG"]
    assert "127.0.0.1" not in caplog.text + capfd.readouterr().err


def test_a_request_that_ends_on_a_defect_of_ours_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with Observer(ObserveConfig(), CollectorRegistry(), lambda: (True, {"share": 1 / 0})) as observer:
        with pytest.raises((OSError, urllib.error.URLError)):
            get(observer.address + "/healthz")
        assert get(observer.address + "/livez")[0] == 200
    assert [each.levelname for each in caplog.records if each.exc_info] == ["ERROR"]
    assert "ZeroDivisionError" in caplog.text


def test_a_loop_is_stuck_no_sooner_than_kafka_takes_its_partitions() -> None:
    """And no sooner than the longest wait in a loop: for a killed worker's transaction, for a drain, for a device."""
    poll_interval_ms = consumer_config(KafkaConfig(), "any").get("max.poll.interval.ms", 300_000)
    worker = Config().worker
    assert poll_interval_ms <= LOOP_STOOD_MAX_S * 1000
    assert STABLE_TIMEOUT_S + (worker.drain_timeout_ms + worker.device_timeout_ms) / 1000 < LOOP_STOOD_MAX_S


def test_a_taken_port_is_an_error_that_names_the_key() -> None:
    with Observer(ObserveConfig(), CollectorRegistry(), lambda: (True, {})) as first:
        port = int(first.address.rpartition(":")[2])
        with pytest.raises(ConfigError, match=r"observe\.port"):
            Observer(ObserveConfig(port=port), CollectorRegistry(), lambda: (True, {}))


@pytest.mark.parametrize(
    ("metrics", "prefix"),
    [
        (WorkerMetrics, "millrace_worker_"),
        (ProfilesMetrics, "millrace_profiles_"),
        (AlertsMetrics, "millrace_alerts_"),
        (NotifyMetrics, "millrace_notify_"),
    ],
)
def test_every_metric_is_registered_under_its_roles_name(metrics: Any, prefix: str) -> None:
    registry = CollectorRegistry()
    made = metrics(registry)
    families = list(registry.collect())
    assert len(families) == len(vars(made))
    assert all(family.name.startswith(prefix) and family.documentation.endswith(".") for family in families)
