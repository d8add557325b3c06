"""What is said of metrics, against the metrics that there are: alert rules, dashboard, README, FAILURES."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from worker.config import WorkerConfig
from worker.kafka.source import STABLE_TIMEOUT_S
from worker.metrics import AlertsMetrics, NotifyMetrics, ProfilesMetrics, WorkerMetrics
from worker.observe import LOOP_STOOD_MAX_S, LOOP_STOOD_SECONDS

ROOT = Path(__file__).resolve().parents[2]
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "millrace.rules.yaml").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = json.loads((ROOT / "deploy" / "prometheus" / "dashboard.json").read_text(encoding="utf-8"))["panels"]
QUERIES = {
    **{rule["alert"]: rule["expr"] for rule in ALERTS},
    **{panel["title"]: target["expr"] for panel in PANELS for target in panel["targets"]},
}
RULE = {rule["alert"]: rule for rule in ALERTS}
FAILURES = (ROOT / "deploy" / "FAILURES.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "README.zh-CN.md", "deploy/FAILURES.md")
SELECTOR = re.compile(r"(millrace_\w+)(?:\{([^}]*)\})?")


def exported() -> Iterator[tuple[str, set[str]]]:
    """Names of series as Prometheus has them, and their labels."""
    yield LOOP_STOOD_SECONDS, set()
    for metrics in (WorkerMetrics, ProfilesMetrics, AlertsMetrics, NotifyMetrics):
        for metric in vars(metrics(CollectorRegistry())).values():
            labels = set(metric._labelnames)
            (family,) = metric.describe()
            if family.type == "histogram":
                yield family.name, labels
                yield from ((family.name + end, labels | {"le"}) for end in ("_bucket", "_sum", "_count"))
            else:
                yield family.name + ("_total" if family.type == "counter" else ""), labels


EXPORTED = dict(exported())


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_asks_for_series_and_labels_that_there_are(name: str) -> None:
    query = QUERIES[name]
    found = SELECTOR.findall(query)
    assert found or name == "MillraceRoleDown", "the only one that asks Prometheus itself"
    labels = {"instance", "job"}
    for series, matchers in found:
        assert series in EXPORTED
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= EXPORTED[series]
        labels |= EXPORTED[series]
    for grouped in re.findall(r"by \(([^)]*)\)", query):
        assert set(re.split(r",\s*", grouped)) <= labels
    assert query.count("(") == query.count(")")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_names_metrics_and_labels_that_there_are(document: str) -> None:
    for series, labels in SELECTOR.findall((ROOT / document).read_text(encoding="utf-8")):
        assert series in EXPORTED, document
        assert set(re.findall(r"[a-z]+(?=$|[,=])", re.sub(r'"[^"]*"', "", labels))) <= EXPORTED[series], document


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_is_wrong_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    for entry in rule["annotations"]["failures"].split("; "):
        assert f"**{entry}" in FAILURES


@pytest.mark.parametrize(("paused", "told"), [(0.98, True), (0.76, True), (0.3, False), (0.0, False)])
def test_reading_that_is_held_back_for_most_of_the_time_is_told_although_it_resumes(paused: float, told: bool) -> None:
    """What the regulator does under steady overload: paused for this share of the scrapes, by eight partitions."""
    found = re.fullmatch(
        r"(avg|min)_over_time\((\(millrace_worker_paused_partitions > bool 0\)|millrace_worker_paused_partitions)"
        r"\[15m(?::15s)?\]\) > ([\d.]+)",
        RULE["MillraceWorkerPaused"]["expr"],
    )
    assert found is not None
    scrapes = [8.0 * (n < paused * 60) for n in range(60)]
    if "bool" in found[2]:
        scrapes = [float(value > 0) for value in scrapes]
    value = min(scrapes) if found[1] == "min" else sum(scrapes) / len(scrapes)
    assert (value > float(found[3])) == told


def test_lag_that_grows_is_told_by_topic_and_shown() -> None:
    assert "deriv(sum by (topic) (millrace_worker_lag_records)" in RULE["MillraceWorkerFallsBehind"]["expr"]
    assert any("millrace_worker_lag_records" in target["expr"] for panel in PANELS for target in panel["targets"])


@pytest.mark.parametrize(("unavailable", "told"), [(2, False), (900, False), (1100, True), (100_000, True)])
def test_a_few_late_answers_of_redis_wake_nobody(unavailable: float, told: bool) -> None:
    rule = RULE["MillraceWorkerWithoutStates"]
    found = re.fullmatch(
        r'sum\(rate\(millrace_worker_state_reads_total\{result="unavailable"\}\[5m\]\)\)'
        r" > (?:([\d.]+) \* sum\(rate\(millrace_worker_state_reads_total\[5m\]\)\)|0)",
        rule["expr"],
    )
    assert found is not None
    assert (unavailable > float(found[1] or 0) * 100_000) == told
    assert rule["labels"]["severity"] == "ticket"
    assert RULE["MillraceRedisAway"]["labels"]["severity"] == "page"


def test_a_loop_that_stands_wakes_somebody_before_it_is_restarted_and_not_while_it_may_wait() -> None:
    rule = RULE["MillraceLoopStands"]
    assert rule["labels"]["severity"] == "page"
    (limit_s,) = {float(limit) for limit in re.findall(r"> (\d+)", rule["expr"])}
    worker = WorkerConfig()
    assert STABLE_TIMEOUT_S + (worker.drain_timeout_ms + worker.device_timeout_ms) / 1000 < limit_s < LOOP_STOOD_MAX_S
