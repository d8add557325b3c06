"""The task that a person names, and the head that is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from model.scoring import Scorer
from tests.spoken_scorer import RARE, SpokenScorer
from tests.tiny_artifact import make_tiny_artifact
from worker.config import ModelConfig
from worker.errors import InputError, ModelLoadError
from worker.tools import one_text
from worker.tools.assessed import assessment_view
from worker.tools.measure import measure
from worker.tools.one_text import load, score_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return load(ModelConfig(device="cpu"), str(folder))


def labelled(path: Path, labels: list[str]) -> Path:
    rows = [{"text": f"please cancel my order {i}", "intent": label} for i, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_family_is_measured_on_the_head_that_knows_the_labels(scorer: Scorer, tmp_path: Path) -> None:
    shop = labelled(tmp_path / "shop.jsonl", ["cancel_order", "get_refund"])
    banking = labelled(tmp_path / "banking.jsonl", ["banking_3"])
    assert measure(scorer, "intent", [shop], [])["task"] == "intent.shop"
    figures = measure(scorer, "intent", [banking, banking], [])
    assert (figures["task"], figures["n"]) == ("intent.banking", 2)
    assert json.loads(json.dumps(figures)) == figures


def test_labels_that_no_head_knows_are_refused(scorer: Scorer, tmp_path: Path) -> None:
    file = labelled(tmp_path / "odd.jsonl", ["make_tea", "cancel_order"])
    with pytest.raises(InputError, match=r"intent\.banking, .*intent\.shop knows all labels"):
        measure(scorer, "intent", [file], [])


def test_slices_labels_and_detail_are_asked_for(scorer: Scorer, tmp_path: Path) -> None:
    shop = labelled(tmp_path / "shop.jsonl", ["cancel_order", "get_refund"])
    plain = measure(scorer, "intent", [shop], [])
    assert "slices" not in plain
    full = measure(scorer, "intent", [shop], [], fields=["intent"])
    assert {name: full[name] for name in plain} == plain
    assert full["slices"][-1]["by"] == "intent"
    assert "classes" in measure(scorer, "intent.shop", [shop], [], detail=True)
    wide = measure(scorer, "intent", [shop], [], among=["cancel_order", "get_refund", "track_order"], detail=True)
    assert wide["labels"] == ["cancel_order", "track_order", "get_refund"]
    with pytest.raises(InputError, match="no row has this field"):
        measure(scorer, "intent", [shop], [], fields=["colour"])


def test_one_text_is_answered_by_one_head_a_family_or_all(folder: Path, scorer: Scorer) -> None:
    model = ModelConfig(artifact=str(folder), device="cpu")
    (answer,) = score_text(model, "cancel my order", task="sentiment")
    assert set(answer.probabilities) == set(scorer.labels["sentiment"])
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert answer.probability == max(answer.probabilities.values()) == answer.probabilities[answer.label]
    assert {each.task for each in score_text(model, "取消订单", task="intent")} == {
        head for head in scorer.labels if head.startswith("intent.")
    }
    assert {each.task for each in score_text(model, "取消订单")} == set(scorer.labels)
    with pytest.raises(InputError, match="sentiment"):
        score_text(model, "a", task="mood")


def test_the_answer_is_the_heads_which_is_not_always_the_likeliest_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_text, "load", lambda *_: SpokenScorer(heads=RARE))
    (answer,) = score_text(ModelConfig(), "0.52 0.28 0.20", task="sentiment")
    assert (answer.label, answer.probability) == ("neutral", pytest.approx(0.28))
    assert list(answer.probabilities) == ["negative", "neutral", "positive"]


def test_an_intent_below_its_threshold_is_out_of_scope(folder: Path, scorer: Scorer) -> None:
    for answer in score_text(ModelConfig(artifact=str(folder), device="cpu"), "银行", task="intent"):
        assert answer.threshold == scorer.threshold(answer.task)
        assert (answer.label == "oos") == (answer.threshold is not None and answer.probability < answer.threshold)


def test_a_model_that_reads_no_text_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="null"):
        load(ModelConfig(artifact="null"), None)


def test_an_assessment_is_shown_with_intervals_classes_and_slices(scorer: Scorer, tmp_path: Path) -> None:
    shop = labelled(tmp_path / "shop.jsonl", ["cancel_order", "get_refund"] * 40)
    console = Console(width=100, record=True)
    full = measure(scorer, "intent", [shop], [], fields=["intent"])
    console.print(assessment_view(full))
    shown = console.export_text()
    low, high = full["intervals"]["accuracy"]
    assert f"{low:.4f} to {high:.4f}" in shown
    assert ("below the whole" in shown) == any(s["flagged"] for cut in full["slices"] for s in cut["slices"])
    for told in ("classes", "precision", "cancel_order", "gap"):
        assert told in shown
    console.print(assessment_view(measure(scorer, "intent", [shop], [])))  # flat figures have neither
