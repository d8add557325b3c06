"""A search is bounded, goes on where it stopped, and refuses a space that it cannot search."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from model.errors import DataError
from model.training.tune import tune
from tests.toy_training import make_workshop

QUIET = Console(quiet=True)


def with_search(folder: Path, search: Any) -> Path:
    content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) | {"search": search}
    path = folder / "searched.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_study_goes_on_up_to_its_bound(tmp_path: Path) -> None:
    folder = make_workshop(tmp_path)
    space = {"head_lr": {"low": 1e-5, "high": 1e-2, "log": True}, "optimiser": {"choices": ["adam", "adamw"]}}
    recipe = with_search(folder, space)
    first = tune(recipe, folder, tmp_path / "study", trials=2, tokens=1500, console=QUIET)
    assert first["trials"] == 2
    again = tune(recipe, folder, tmp_path / "study", trials=4, tokens=1500, console=QUIET)
    assert again["trials"] == 4
    assert again["best"] <= first["best"]
    assert set(again["settings"]) == set(space)
    assert set(again["losses"]) == {"sentiment", "intent.shop"}
    assert tune(recipe, folder, tmp_path / "study", trials=4, tokens=1500, console=QUIET) == again


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({}, "nothing to search"),
        ({"body_rate": {"low": 0.1, "high": 1}}, "search.body_rate"),
        ({"body_lr": {"low": 1.0, "high": 0.1}}, "low must be below high"),
        ({"optimiser": ["adam"]}, "choices"),
        ({"optimiser": {"choices": "adam"}}, "choices"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_by_key(tmp_path: Path, search: Any, says: str) -> None:
    folder = make_workshop(tmp_path)
    with pytest.raises(DataError, match=says):
        tune(with_search(folder, search), folder, tmp_path / "study", trials=1, tokens=100, console=QUIET)
