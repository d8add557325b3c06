"""A head is added to an artifact by a recipe alone; everything that was there stays to the bit."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from structlog.testing import capture_logs

from model.artifact import Artifact
from model.assess.evaluate import evaluate_texts
from model.data import fingerprint
from model.errors import DataError
from model.golden import verify
from model.scoring import load_scorer
from model.training.loss import OUTSIDE, row_losses, score_loss
from model.training.newhead import Lesson, add_heads, fit_linear
from tests.tiny_artifact import make_tiny_artifact

RECIPE = """
name: more
calibration_share: 0.2
heads: {urgency: {labels: [calm, urgent], threshold: true}}
datasets: [{name: urgency, file: urgency.jsonl, labels: {urgency: urgency}, outside: {}, source: our desk}]
evaluation: [{task: urgency, file: urgency.jsonl}]
"""
WORDS = {"calm": ["please", "thank", "good"], "urgent": ["late", "bad", "refund"]}
FILLER = ["the", "order", "my", "card", "guitar", "movie"]


def sentence(label: str, rng: random.Random) -> str:
    words = [*rng.choices(WORDS[label], k=3), *rng.choices(FILLER, k=3)]
    rng.shuffle(words)
    return " ".join(words)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("shop"), random.Random(1)
    make_tiny_artifact(folder / "tiny")
    rows = [{"text": sentence(label, rng), "urgency": label} for label in ["calm", "urgent"] * 300]
    (folder / "urgency.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder


def test_the_new_head_learns_and_the_rest_stays(shop: Path, tmp_path: Path) -> None:
    out = add_heads(shop / "recipe.yaml", shop, shop / "tiny", tmp_path / "more")
    before, after = Artifact.load(shop / "tiny"), Artifact.load(out)
    assert after.manifest["space"] == before.manifest["space"]
    assert set(after.manifest["heads"]) == {*before.manifest["heads"], "urgency"}
    for name, value in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], value)
    assert verify(out, device="cpu") < 1e-3
    scorer, rng = load_scorer(out, device="cpu"), random.Random(2)
    truth = ["calm", "urgent"] * 60
    figures = evaluate_texts(scorer, "urgency", [sentence(label, rng) for label in truth], truth)
    assert figures["accuracy"] >= 0.9
    assert scorer.threshold("urgency") is not None


def test_the_larger_artifact_tells_its_data_figures_and_card(shop: Path, tmp_path: Path) -> None:
    make_tiny_artifact(tmp_path / "old")
    old = Artifact.load(tmp_path / "old")
    measured = [{"task": task, "n": 1, "files": {"old.jsonl": "0"}} for task in ("topic", "urgency")]
    manifest = old.manifest | {"data": {"old.jsonl": "0"}, "metrics": measured}
    old = Artifact.save(tmp_path / "old", manifest, old.tensors, old.tokenizer_json)
    out = add_heads(shop / "recipe.yaml", shop, tmp_path / "old", tmp_path / "more")
    new = Artifact.load(out).manifest
    assert new["onto"] == old.manifest["version"]
    assert new["data"] == {"old.jsonl": "0", "urgency.jsonl": fingerprint(shop / "urgency.jsonl")}
    assert [(found["task"], found["n"]) for found in new["metrics"]] == [("topic", 1), ("urgency", 600)]
    assert (new["heads"]["urgency"]["text"], new["heads"]["urgency"]["field"]) == (["text"], "urgency")
    assert new["heads"]["topic"] == old.manifest["heads"]["topic"]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"`urgency` came onto `{old.manifest['version']}`" in card
    assert "our desk" in card
    assert "temperatures of `urgency` were fitted on answers to rows that the answering fit had not seen" in card


def test_a_trial_that_cannot_be_judged_is_refused_before_the_fit(shop: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("task: urgency, file", "task: urgency, label: mood, file"), encoding="utf-8")
    with pytest.raises(DataError, match=r"urgency\.jsonl: label field 'mood'"):
        add_heads(recipe, shop, shop / "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_training_file_that_a_trial_leaves_out_may_lack_labels(shop: Path, tmp_path: Path) -> None:
    lines = (shop / "urgency.jsonl").read_text(encoding="utf-8").splitlines()
    seen = [json.dumps({"text": json.loads(line)["text"]}) for line in lines[::2]]
    (tmp_path / "urgency.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "seen.jsonl").write_text("\n".join(seen), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("task: urgency,", "task: urgency, without: seen.jsonl,"), encoding="utf-8")
    metrics = Artifact.load(add_heads(recipe, tmp_path, shop / "tiny", tmp_path / "out")).manifest["metrics"]
    assert [(found["n"], found.get("rows")) for found in metrics] == [(600, None), (300, "texts not in train")]


def test_a_head_of_few_rows_is_no_surer_than_it_is_right(shop: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [{"text": sentence(label, rng), "urgency": label} for label in ["calm", "urgent"] * 14]
    for row in rows[:6]:  # one label in five is wrong
        row["urgency"] = "calm" if row["urgency"] == "urgent" else "urgent"
    (tmp_path / "urgency.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with capture_logs() as logs:
        out = add_heads(shop / "recipe.yaml", tmp_path, shop / "tiny", tmp_path / "few")
    entry = Artifact.load(out).manifest["heads"]["urgency"]
    assert entry["calibration_rows"] == len(rows)  # those that the folds learned from too
    assert [log["rows"] for log in logs if log["event"] == "few calibration rows"] == [len(rows)]
    scorer = load_scorer(out, device="cpu")
    texts = [sentence(label, rng) for label in ["calm", "urgent"] * 60]
    sure = scorer.classify("urgency", scorer.encode(scorer.prepare(texts))).max(1)
    assert sure.mean() < 0.95


def test_a_malformed_row_is_refused_with_its_line(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "urgency.jsonl").write_bytes((shop / "urgency.jsonl").read_bytes() + b'\n{"text": "x"}')
    with pytest.raises(DataError, match=r"urgency\.jsonl:601"):
        add_heads(shop / "recipe.yaml", tmp_path, shop / "tiny", tmp_path / "out")


def lesson(labels: np.ndarray, classes: int, worth: np.ndarray | None = None, **settings: Any) -> Lesson:
    ones = torch.ones(len(labels))
    return Lesson(
        labels=torch.from_numpy(labels),
        allowed=torch.ones(len(labels), classes, dtype=torch.bool),
        weights=ones,
        worth=ones if worth is None else torch.from_numpy(worth.astype(np.float32)),
        levels=settings.pop("levels", torch.tensor([])),
        **settings,
    )


def test_the_fit_is_the_regression_it_claims() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 5)).astype(np.float32) * [1, 10, 0.1, 1, 1]
    true = rng.normal(size=(3, 5)) / [1, 10, 0.1, 1, 1]
    logits = x @ true.T
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    weight, bias = fit_linear(x.astype(np.float32), lesson(labels, 3), strength=1e-6)
    centred = true - true.mean(0)
    np.testing.assert_allclose((weight - weight.mean(0)) * x.std(0), centred * x.std(0), atol=0.15)
    np.testing.assert_allclose(bias - bias.mean(), 0, atol=0.15)


def test_a_row_counts_as_its_data_set_whatever_its_label() -> None:
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 3, 60)
    labels[:6] = OUTSIDE
    twice = np.concatenate([np.arange(60), np.arange(0, 60, 3)])  # of every third row two
    worth = np.where(np.arange(60) % 3 == 0, 2.0, 1.0)
    logits = torch.from_numpy(rng.normal(size=(60, 3)))
    repeated = lesson(labels[twice], 3).loss(logits[twice])
    torch.testing.assert_close(lesson(labels, 3, worth / worth.mean()).loss(logits), repeated, check_dtype=False)
    assert fit_linear(x, lesson(labels, 3, worth / worth.mean()), strength=1e-2)[0].shape == (3, 4)


def test_the_error_of_a_score_joins_the_fit_as_it_joins_the_training() -> None:
    rng = np.random.default_rng(2)
    levels, labels = torch.tensor([1.0, 2.0, 5.0]), rng.integers(0, 3, 50)
    own = lesson(labels, 3, levels=levels, error_weight=0.7)
    logits = torch.from_numpy(rng.normal(size=(50, 3)).astype(np.float32))
    alone = row_losses(logits, own.labels, own.allowed, own.weights).mean()
    error = score_loss(logits, own.labels, levels, own.weights)
    torch.testing.assert_close(own.loss(logits), alone + 0.7 * error)


def fitted(folder: Path, tiny: Path, rows: dict[str, list[dict[str, Any]]], settings: dict[str, Any]) -> np.ndarray:
    """The weights of a head `urgency` that is put onto an artifact from data sets of these rows."""
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)), encoding="utf-8")
    datasets = [{"name": n, "file": f"{n}.jsonl", "labels": {"urgency": "urgency"}} | settings.get(n, {}) for n in rows]
    content = {"name": "more", "calibration_share": 0.2, "datasets": datasets}
    content["heads"] = {"urgency": settings.get("urgency", {})}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return Artifact.load(add_heads(folder / "recipe.yaml", folder, tiny, folder / "out")).tensors[
        "heads.urgency.weight"
    ]


def test_the_weight_of_a_data_set_and_of_the_error_are_heeded(shop: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    good = [{"text": sentence(label, rng), "urgency": label} for label in ["calm", "urgent"] * 40]
    wrong = [row | {"text": row["text"] + " the", "urgency": "calm"} for row in good[:40]]
    rows = {"good": good, "guessed": wrong}
    alone = fitted(tmp_path, shop / "tiny", {"good": good}, {})
    np.testing.assert_array_equal(fitted(tmp_path, shop / "tiny", {"good": good}, {"good": {"weight": 18}}), alone)
    none, some, full = (
        fitted(tmp_path, shop / "tiny", rows, {"guessed": {"weight": weight, "guessed": True}})
        for weight in (0, 0.3, 1)
    )
    np.testing.assert_array_equal(none, alone)
    assert np.abs(some - alone).max() < np.abs(full - alone).max()
    stars = [row | {"urgency": 1 + 4 * (row["urgency"] == "urgent")} for row in good]
    plain, erring = (
        fitted(tmp_path, shop / "tiny", {"good": stars}, {"urgency": {"kind": "score", "error_weight": weight}})
        for weight in (0, 1)
    )
    assert np.abs(plain - erring).max() > 1e-3


def test_a_head_of_which_only_data_sets_of_weight_0_know_is_refused(shop: Path, tmp_path: Path) -> None:
    recipe = RECIPE.replace("source: our desk", "weight: 0").replace("heads: {", "heads: {mood: {}, ")
    recipe = recipe.replace("datasets: [", "datasets: [{name: mood, file: urgency.jsonl, labels: {mood: urgency}}, ")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(DataError, match="head urgency has 0 labelled rows to learn from; give more, of a weight above"):
        add_heads(tmp_path / "recipe.yaml", shop, shop / "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
