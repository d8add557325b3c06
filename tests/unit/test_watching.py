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

from worker.metrics import AlertsMetrics, NotifyMetrics, ProfilesMetrics, WorkerMetrics

ROOT = Path(__file__).resolve().parents[2]
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "millrace.rules.yaml").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = json.loads((ROOT / "deploy" / "prometheus" / "dashboard.json").read_text(encoding="utf-8"))["panels"]
QUERIES = {
    **{rule["alert"]: rule["expr"] for rule in ALERTS},
    **{panel["title"]: target["expr"] for panel in PANELS for target in panel["targets"]},
}
FAILURES = (ROOT / "deploy" / "FAILURES.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "README.zh-CN.md", "deploy/FAILURES.md")
SELECTOR = re.compile(r"(millrace_\w+)(?:\{([^}]*)\})?")


def exported() -> Iterator[tuple[str, set[str]]]:
    """Names of series as Prometheus has them, and their labels."""
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
