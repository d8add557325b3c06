"""Training end to end on a toy that can be learned, and on again after it was stopped."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from model.artifact import WEIGHTS, Artifact
from model.assess.evaluate import evaluate_texts
from model.errors import DataError, ModelError
from model.golden import verify
from model.scoring import load_scorer
from model.training import train as training
from model.training.recipe import load_recipe
from tests.tiny_training import make_network
from tests.toy_training import make_workshop, run, sentence, write_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def test_a_separable_toy_is_learned(workshop: Path, tmp_path: Path) -> None:
    folder = run(workshop, tmp_path)
    assert verify(folder, device="cpu") < 0.01
    scorer, rng = load_scorer(folder, device="cpu"), random.Random(99)
    for head, labels in (("sentiment", ("negative", "positive")), ("intent.shop", ("refund", "track"))):
        truth = list(labels) * 50
        figures = evaluate_texts(scorer, head, [sentence(label, rng) for label in truth], truth)
        assert figures["accuracy"] >= 0.95, (head, figures)
    manifest = Artifact.load(folder).manifest
    assert [m["task"] for m in manifest["metrics"]] == ["sentiment"]
    assert set(manifest["data"]) == {"mood.jsonl", "shop.jsonl"}
    with pytest.raises(ModelError, match="--resume"):
        run(workshop, tmp_path)


def test_a_damaged_checkpoint_is_refused(workshop: Path, tmp_path: Path) -> None:
    run(workshop, tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ModelError, match="no readable checkpoint"):
        run(workshop, tmp_path, resume=True)


def test_a_malformed_file_is_refused_before_training(workshop: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("mood.jsonl", "shop.jsonl"):
        (data / name).write_bytes((workshop / name).read_bytes() + b'\n{"text": 5}\n')
    with pytest.raises(DataError, match=r"mood\.jsonl:301"):
        training.train(
            workshop / "recipe.yaml", data, tmp_path / "out", minutes=1, resume=False, console=Console(quiet=True)
        )
    assert training.main(["--recipe", "none.yaml", "--data", str(data), "--out", str(tmp_path / "o")]) == 2


def test_measuring_the_rate_leaves_the_weights_alone(workshop: Path, tmp_path: Path) -> None:
    first = run(workshop, tmp_path / "given")
    (tmp_path / "measured").mkdir()
    recipe = workshop / "recipe.yaml"
    training.train(recipe, workshop, tmp_path / "measured", minutes=0.005, resume=False, console=Console(quiet=True))
    plan = json.loads((tmp_path / "measured" / "plan.json").read_text())
    assert plan["tokens"] > 0
    assert plan["rate"] > 0
    assert (
        Artifact.load(first).manifest["encoder"]
        == Artifact.load(tmp_path / "measured" / "artifact").manifest["encoder"]
    )


def test_a_student_learns_from_teachers_and_goes_on_where_it_was_stopped(workshop: Path, tmp_path: Path) -> None:
    recipe = write_recipe(workshop, "taught.yaml", teachers=2, token_drop=0.1, body_dropout=0.1)
    plan = json.dumps({"half": False, "tokens": 6000})
    for number in range(2):
        (tmp_path / f"teacher-{number}").mkdir()
        (tmp_path / f"teacher-{number}" / "plan.json").write_text(plan)
    folder = run(workshop, tmp_path, recipe=recipe.name)
    scorer, rng = load_scorer(folder, device="cpu"), random.Random(99)
    truth = ["negative", "positive"] * 50
    figures = evaluate_texts(scorer, "sentiment", [sentence(label, rng) for label in truth], truth)
    assert figures["accuracy"] >= 0.95
    teachers = [(tmp_path / f"teacher-{number}" / "checkpoint.safetensors").read_bytes() for number in range(2)]
    assert teachers[0] != teachers[1]
    weights = (folder / WEIGHTS).read_bytes()
    (tmp_path / "checkpoint.safetensors").unlink()  # stopped before the student began
    with pytest.raises(ModelError, match="--resume"):
        run(workshop, tmp_path, recipe=recipe.name)
    again = run(workshop, tmp_path, recipe=recipe.name, resume=True)
    assert (again / WEIGHTS).read_bytes() == weights
    assert [(tmp_path / f"teacher-{n}" / "checkpoint.safetensors").read_bytes() for n in range(2)] == teachers


def test_students_are_averaged(workshop: Path, tmp_path: Path) -> None:
    recipe = write_recipe(workshop, "students.yaml", students=2)
    (tmp_path / "student-0").mkdir()
    (tmp_path / "student-0" / "plan.json").write_text(json.dumps({"half": False, "tokens": 6000}))
    folder = run(workshop, tmp_path, recipe=recipe.name, tokens=6000)
    name = "network.heads.intent/shop.bias"
    one, other = (load_file(out / "checkpoint.safetensors")[name] for out in (tmp_path, tmp_path / "student-0"))
    assert not np.array_equal(one, other)
    exported = Artifact.load(folder).tensors["heads.intent.shop.bias"]
    np.testing.assert_allclose(exported, (one + other) / 2, rtol=1e-3, atol=1e-4)


def test_a_recipe_may_say_only_what_differs_from_another(workshop: Path) -> None:
    (workshop / "more.yaml").write_text(
        "base: recipe.yaml\ntraining: {students: 3}\ndatasets: [{name: mood, weight: 2.0}]\n", encoding="utf-8"
    )
    base, more = (load_recipe(workshop / name) for name in ("recipe.yaml", "more.yaml"))
    assert more.training == replace(base.training, students=3)
    assert more.datasets == [replace(base.datasets[0], weight=2.0), base.datasets[1]]
    assert more.heads == base.heads
    (workshop / "lost.yaml").write_text("base: none.yaml\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none\.yaml"):
        load_recipe(workshop / "lost.yaml")


def test_a_kept_share_moves_the_body_back_and_nothing_else() -> None:
    network, pretrained = make_network(), make_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    heads = [parameter.clone() for parameter in network.heads.parameters()]
    training._keep(network, pretrained.encoder, 0.25)
    for own, before in zip(network.encoder.parameters(), pretrained.encoder.parameters(), strict=True):
        torch.testing.assert_close(own, before + 0.75)
    assert all(map(torch.equal, network.heads.parameters(), heads))
