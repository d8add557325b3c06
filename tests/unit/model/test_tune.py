"""A search is bounded, goes on where it stopped, and refuses a space that it cannot search."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from rich.console import Console

from model.errors import DataError, DivergedError, ModelError
from model.training import tune as tuning
from model.training.recipe import Recipe
from model.training.tune import STUDY, tune
from tests.toy_training import make_workshop

QUIET = Console(quiet=True)


def with_search(folder: Path, search: Any, seed: int = 3) -> Path:
    content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) | {"search": search, "seed": seed}
    content["evaluation"] = [{"task": "nobody's", "file": "mood.jsonl"}]  # refused, if a search looked at valid files
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
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path / 'study' / STUDY}")
    assert len({trial.params["head_lr"] for trial in study.trials}) == 4  # not the first two once more
    with pytest.raises(ModelError, match=r"study\.db was made from .*changed: --tokens\)"):
        tune(recipe, folder, tmp_path / "study", trials=5, tokens=2000, console=QUIET)
    narrower = with_search(folder, space | {"head_lr": {"low": 1e-4, "high": 1e-2, "log": True}})
    with pytest.raises(ModelError, match=r"changed: search\.head_lr\)"):
        tune(narrower, folder, tmp_path / "study", trials=5, tokens=1500, console=QUIET)
    recipe = with_search(folder, space)
    rows = (folder / "mood.jsonl").read_text(encoding="utf-8")
    (folder / "mood.jsonl").write_text(rows.replace("negative", "awful"), encoding="utf-8")
    with pytest.raises(ModelError, match=r"changed: mood\.jsonl\)"):
        tune(recipe, folder, tmp_path / "study", trials=5, tokens=1500, console=QUIET)


def test_a_trial_that_diverges_is_survived_and_counted(tmp_path: Path) -> None:
    folder = make_workshop(tmp_path)
    recipe = with_search(folder, {"head_lr": {"choices": [1.0e-2, 1.0e30]}}, seed=4)  # which draws both
    found = tune(recipe, folder, tmp_path / "study", trials=6, tokens=1500, console=QUIET)
    assert found["trials"] == 6
    assert 0 < found["failed"] < 6
    assert found["settings"] == {"head_lr": 1.0e-2}
    again = tune(recipe, folder, tmp_path / "study", trials=6, tokens=1500, console=QUIET)
    assert again == found  # what failed is not tried again and again
    hopeless = with_search(folder, {"head_lr": {"choices": [1.0e30]}})
    with pytest.raises(ModelError, match="all 2 trials failed, the last one so: training broke down"):
        tune(hopeless, folder, tmp_path / "hopeless", trials=2, tokens=1500, console=QUIET)


def test_the_search_learns_from_trials_that_broke_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_workshop(tmp_path)
    recipe = with_search(folder, {"head_lr": {"low": 1.0e-5, "high": 1.0, "log": True}})

    def held_losses(recipe: Recipe, *_: Any) -> dict[str, float]:
        if recipe.training.head_lr > 1.0e-4:
            raise DivergedError("training broke down")
        return {"sentiment": 1.0 - recipe.training.head_lr}

    monkeypatch.setattr(tuning, "held_losses", held_losses)
    found = tune(recipe, folder, tmp_path / "study", trials=30, tokens=1500, console=QUIET)
    assert found["trials"] == 30
    assert found["failed"] < 20  # a search that forgets them fails 25 times
    assert found["settings"]["head_lr"] <= 1.0e-4
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{tmp_path / 'study' / STUDY}")
    old = study.ask()
    old.set_user_attr("failed", "as it was told before")
    study.tell(old, state=optuna.trial.TrialState.FAIL)
    again = tune(recipe, folder, tmp_path / "study", trials=31, tokens=1500, console=QUIET)
    assert again == found | {"trials": 31, "failed": found["failed"] + 1}


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({}, "nothing to search"),
        ({"body_rate": {"low": 0.1, "high": 1}}, "search.body_rate"),
        ({"body_lr": {"low": 1.0, "high": 0.1}}, "low must be below high"),
        ({"optimiser": ["adam"]}, "choices"),
        ({"optimiser": {"choices": "adam"}}, "choices"),
        ({"optimiser": {"choices": []}}, "choices"),
        ({"optimiser": {"choices": ["adam", "lion"]}}, r"searched\.yaml: search\.optimiser: 'lion' is unknown"),
        ({"optimiser": {"low": "adam", "high": "sgd"}}, "low and high are for numbers"),
        ({"body_lr": {"low": "1e-5", "high": "1e-4"}}, "search.body_lr: '1e-5' is no number; YAML .* write 1.0e-4"),
        ({"body_lr": {"low": -1.0, "high": 1.0}}, r"search.body_lr: -1\.0 must be at least 0"),
        ({"body_lr": {"low": 0, "high": 1.0, "log": True}}, "with log: true low must be above 0"),
        ({"accumulate": {"low": 1, "high": 2.5}}, "search.accumulate: 2.5 is no whole number"),
        ({"lora": {"choices": [{"rank": 4}, {"rank": 8}]}}, "search.lora cannot be searched"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_by_key(tmp_path: Path, search: Any, says: str) -> None:
    folder = make_workshop(tmp_path)
    with pytest.raises(DataError, match=says):
        tune(with_search(folder, search), folder, tmp_path / "study", trials=1, tokens=100, console=QUIET)
