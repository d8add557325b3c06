"""The training section of a recipe: defaults that are the starter's, and mistakes named by file and key."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.errors import DataError
from model.training.recipe import load_recipe
from model.training.settings import Lora, Training, build_training

RECIPE: dict[str, Any] = {
    "name": "r",
    "body": "b",
    "heads": {"mood": {}},
    "datasets": [{"name": "d", "file": "d.jsonl", "labels": {"mood": "mood"}}],
}


def test_defaults_train_as_before_there_were_choices() -> None:
    settings = build_training({}, "r.yaml: training")
    assert settings == Training()
    assert (settings.optimiser, settings.weighting, settings.experts) == ("adamw", "equal", "none")
    assert settings.accumulate == 1
    assert (settings.lora.rank, settings.r_drop, settings.fairness_weight, settings.tensorboard) == (0, 0.0, 0.0, False)


def test_sections_are_read() -> None:
    settings = build_training({"lora": {"rank": 8, "targets": ["query"]}, "weighting": "famo"}, "w")
    assert settings.lora == Lora(rank=8, targets=["query"])
    assert settings.weighting == "famo"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": "adam"}, "unknown key 'optimizer'"),
        ({"optimiser": "lion"}, r"training\.optimiser: 'lion' is unknown; use adamw, adam, sgd"),
        ({"weighting": "gradnorm"}, r"training\.weighting: .*equal, uncertainty, famo"),
        ({"experts": "moe"}, r"training\.experts: .*towers, mmoe, ple"),
        ({"penalty": "l1"}, r"training\.penalty"),
        ({"body_lr": "1e-4"}, r"training\.body_lr: '1e-4' is no number; YAML reads 1e-4 as text, write 1\.0e-4"),
        ({"body_lr": -1.0}, r"training\.body_lr: -1\.0 must be at least 0"),
        ({"accumulate": 0}, r"training\.accumulate: 0 must be above 0"),
        ({"accumulate": 1.5}, r"training\.accumulate: 1\.5 is no whole number"),
        ({"dropout": 1.0}, r"training\.dropout: 1\.0 must be in \[0, 1\)"),
        ({"r_drop": float("nan")}, r"training\.r_drop: nan"),
        ({"tensorboard": "yes please"}, r"training\.tensorboard: .*neither true nor false"),
        ({"lora": 8}, r"training\.lora: keys with values are expected, not int"),
        ({"lora": {"r": 8}}, r"training\.lora: unknown key 'r'; known: alpha, dropout, rank, targets"),
        ({"lora": {"rank": -8}}, r"training\.lora\.rank: -8 must be at least 0"),
        ({"lora": {"rank": 8, "targets": "query"}}, r"training\.lora\.targets: 'query' is no list"),
        ({"fairness_weight": 0.5}, r"training\.fairness_weight needs a data set that names its groups"),
    ],
)
def test_mistakes_are_named(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"training": content}))
    with pytest.raises(DataError, match=rf"^{path}.*{message}"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"decide": "f1"}, r"\.decide: 'f1' is unknown; use accuracy or macro_f1"),
        ({"decide": "macro_f1", "threshold": True}, r"\.decide: macro_f1 is for heads of kind classes without"),
        ({"decide": "macro_f1", "kind": "score"}, r"\.decide: macro_f1 is for heads of kind classes without"),
    ],
)
def test_what_a_head_cannot_be_decided_for_is_named(head: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, (name, *_) = tmp_path / "recipe.yaml", RECIPE["heads"]
    path.write_text(yaml.safe_dump(RECIPE | {"heads": {name: head}}))
    with pytest.raises(DataError, match=rf"^{path}: heads\.{name}{message}"):
        load_recipe(path)


def test_every_setting_has_a_word_in_the_starters_recipe() -> None:
    text = (Path(__file__).parents[3] / "model" / "training" / "starter.yaml").read_text()
    for entry in [*fields(Training), *fields(Lora)]:
        assert f"{entry.name}" in text, entry.name
