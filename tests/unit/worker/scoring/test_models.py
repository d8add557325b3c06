"""The configured model loads, or is refused with what to do; the null model needs no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.null import NullScorer
from tests.tiny_artifact import make_tiny_artifact
from worker.config import Config, ModelConfig, ProfilesConfig
from worker.errors import ModelLoadError
from worker.scoring.models import click_head, load_model, on_gpu
from worker.scoring.routing import load_routing


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny")


def test_the_null_model_is_always_there() -> None:
    scorer = load_model(ModelConfig(artifact="null"), load_routing())
    assert isinstance(scorer, NullScorer)
    assert not on_gpu(scorer)


def test_the_worker_with_the_null_model_never_imports_torch() -> None:
    code = (
        "import sys, worker.scoring.pipeline as p; from worker.config import ModelConfig;"
        "p.load_model(ModelConfig(artifact='null'), p.load_routing()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_artifact_loads(artifact: Path) -> None:
    scorer = load_model(ModelConfig(artifact=str(artifact), device="cpu"), load_routing())
    assert "intent.shop" in scorer.labels
    assert not on_gpu(scorer)
    assert click_head(scorer, Config()).scales_s == Config().profiles.scales_s


def test_a_missing_artifact_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        load_model(ModelConfig(artifact=str(tmp_path / "nowhere")), load_routing())


def test_a_damaged_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    damaged = make_tiny_artifact(tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelLoadError, match="damaged"):
        load_model(ModelConfig(artifact=str(damaged), device="cpu"), load_routing())


def test_an_intent_head_that_the_model_lacks_is_named(artifact: Path) -> None:
    import msgspec

    routing = msgspec.structs.replace(load_routing(), heads=["intent.plumbing"])
    with pytest.raises(ModelLoadError, match=r"intent\.plumbing"):
        load_model(ModelConfig(artifact=str(artifact), device="cpu"), routing)


@pytest.mark.parametrize("labels", [["positive", "neutral"], ["bad", "good"], ["negative", "mixed", "positive"]])
def test_a_sentiment_head_that_alerts_cannot_be_made_of_is_refused(tmp_path: Path, labels: list[str]) -> None:
    folder = make_tiny_artifact(tmp_path / "own", sentiments=labels)
    with pytest.raises(ModelLoadError, match=f"own: the head sentiment has the labels {', '.join(labels)}; it needs"):
        load_model(ModelConfig(artifact=str(folder), device="cpu"), load_routing())


@pytest.mark.parametrize("labels", [["positive", "neutral", "negative"], ["positive", "negative"]])
def test_a_sentiment_head_in_an_order_of_its_own_loads(tmp_path: Path, labels: list[str]) -> None:
    folder = make_tiny_artifact(tmp_path / "own", sentiments=labels)
    scorer = load_model(ModelConfig(artifact=str(folder), device="cpu"), load_routing())
    assert list(scorer.labels["sentiment"]) == labels


def test_counts_alone_serve_any_scales() -> None:
    config = Config(profiles=ProfilesConfig(scales_s=(60.0,)))
    assert click_head(NullScorer(), config).scales_s == (60.0,)


def test_every_shop_intent_has_a_route_and_both_replies() -> None:
    routing = load_routing()
    assert set(routing.intents) == set(NullScorer.labels["intent.shop"])
    assert all(route.zh and route.en for route in routing.intents.values())
