"""One's own routing: read whole, told by file and line, held against the labels of the heads that are served."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from model.null import NullScorer
from worker.config import Config, ModelConfig, WorkerConfig, load_config
from worker.errors import ConfigError
from worker.scoring import models, pipeline
from worker.scoring.models import load_model
from worker.scoring.routing import SHIPPED, load_routing

HEAD = "heads: [intent.shop]\nhuman: people\ndefault: rest\n"
NULL = ModelConfig(artifact="null")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def test_a_file_named_in_the_configuration_is_the_one_that_is_read(mine: Path) -> None:
    mine.write_text(f"{HEAD}intents:\n  complaint: {{queue: 投诉, zh: 抱歉}}\n", encoding="utf-8")
    config = load_config(flags=[f"worker.routing={mine}"])
    routing = load_routing(config.worker.routing)
    assert routing.route("complaint", "太慢了") == ("投诉", "抱歉")
    assert routing.route("complaint", "slow") == ("投诉", None)
    assert routing.route("get_refund", "refund") == ("rest", None)
    assert load_routing(Config().worker.routing) == load_routing(SHIPPED)


def test_the_worker_starts_with_the_configured_file(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "check_topics", lambda kafka: None)
    mine.write_text(f"{HEAD}intents: {{complain: {{queue: q}}}}\n", encoding="utf-8")
    config = Config(model=NULL, worker=WorkerConfig(routing=str(mine)))
    with pytest.raises(ConfigError, match=r"worker\.routing .*mine\.yaml: complain: .*\(is it complaint\?\)"):
        pipeline.run(config, threading.Event())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a list", "mine.yaml: expected heads"),
        ("", "mine.yaml: expected heads"),
        ("heads: &x [*x]", "mine.yaml, line 1: "),
        ("heads: [x", "mine.yaml, line 1: not valid YAML"),
        ("heads: []\nhuman: h\ndefault: d\nintents: {}", "mine.yaml, line 1: Expected `array` of length >= 1"),
        (f"{HEAD}", "mine.yaml, line 1: Object missing required field `intents`"),
        (f"{HEAD}intents: []", "mine.yaml, line 4: Expected `object`, got `array`"),
        (f"{HEAD}intents: {{}}\ndefaults: x", "mine.yaml, line 5: Object contains unknown field `defaults`"),
        (f"{HEAD}intents: {{}}\nhuman: x", "mine.yaml, line 5: a second `human`"),
        (f"{HEAD}intents:\n  a: {{queue: q}}\n  a: {{queue: r}}", "mine.yaml, line 6: a second `a`"),
        (f"{HEAD}intents:\n  a:\n    queue: q\n    queue: r", "mine.yaml, line 7: a second `queue`"),
        (
            f"{HEAD}intents:\n  a:\n    queue: q\n    cn: r",
            "mine.yaml, intent a, line 7: Object contains unknown field",
        ),
        (f"{HEAD}intents:\n  a:\n    en: 5\n    queue: q", "mine.yaml, intent a, line 6: Expected `str | null`"),
        (f"{HEAD}intents:\n  a: q", "mine.yaml, intent a, line 5: Expected `object`, got `str`"),
        (f"{HEAD}intents:\n  a: {{queue: ''}}", "mine.yaml, intent a, line 5: Expected `str` of length >= 1"),
        (f"{HEAD}intents:\n  no: {{queue: q}}", "mine.yaml, line 5: `no` is no text to YAML: put it in quotes"),
        (f"{HEAD}intents:\n  <<: {{}}", "mine.yaml, line 5: `<<` is no text to YAML"),
    ],
)
def test_a_file_that_is_no_routing_is_told_by_line_and_key(mine: Path, text: str, says: str) -> None:
    mine.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_routing(str(mine))
    assert str(caught.value).startswith("worker.routing ")
    assert says in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(mine: Path) -> None:
    with pytest.raises(ConfigError, match=r"worker\.routing .*mine\.yaml: No such file"):
        load_routing(str(mine))
    mine.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not UTF-8"):
        load_routing(str(mine))


def test_heads_share_a_file_and_a_label_of_either_will_do(mine: Path) -> None:
    both = "{banking_3: {queue: bank}, complaint: {queue: sorry}}"
    mine.write_text(f"heads: [intent.shop, intent.banking]\nhuman: h\ndefault: d\nintents: {both}")
    load_model(NULL, load_routing(str(mine)))
    mine.write_text(f"{HEAD}intents: {both}")
    with pytest.raises(ConfigError, match=r"banking_3: no intent of intent\.shop in the artifact null"):
        load_model(NULL, load_routing(str(mine)))


def test_out_of_scope_is_no_intent_to_be_listed(mine: Path) -> None:
    mine.write_text("heads: [intent.general]\nhuman: h\ndefault: d\nintents: {}")
    general = NullScorer.labels["intent.general"]
    assert load_routing(str(mine)).unlisted(NullScorer.labels) == [label for label in general if label != "oos"]
    mine.write_text("heads: [intent.general]\nhuman: h\ndefault: d\nintents: {oos: {queue: q}}")
    assert load_routing(str(mine)).unknown(NullScorer.labels) == ["oos"], "it would have no effect"


def test_an_intent_is_known_by_what_it_looks_like(mine: Path) -> None:
    mine.write_text(f"{HEAD}intents: {{退款（未收到）: {{queue: refunds}}}}\n", encoding="utf-8")
    routing = load_routing(str(mine))
    for label in ("退款(未收到)", "退款（未收到）"):  # as artifacts of this release have it, and as older ones may
        assert routing.route(label, "在哪")[0] == "refunds"
        assert routing.unknown({"intent.shop": [label]}) == routing.unlisted({"intent.shop": [label]}) == []


def test_labels_without_an_entry_are_told_once(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with capture_logs() as logs:
        load_model(NULL, load_routing())
    assert logs == []
    mine.write_text(f"{HEAD}intents: {{complaint: {{queue: q}}}}\n", encoding="utf-8")
    with capture_logs() as logs:
        load_model(NULL, load_routing(str(mine)))
    (line,) = logs
    assert (line["log_level"], line["intents"], line["queue"]) == ("warning", 26, "rest")
    assert line["names"].startswith("cancel_order, change_order, ")
    assert line["names"].endswith(" and 21 more")

    class Chinese(NullScorer):
        labels = NullScorer.labels | {"intent.shop": ("退款", "催单")}  # type: ignore[operator]

    monkeypatch.setattr(models, "NullScorer", Chinese)
    with capture_logs() as logs:
        load_model(NULL, load_routing())  # shipped: no mistake of anybody's, so no error
    (line,) = logs
    assert (line["intents"], line["names"], line["routing"]) == (2, "退款, 催单", "shipped")
