"""The model card: what any recipe's says, what only the starter's, and what it owes to the manifest."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.artifact import MANIFEST, STARTER
from model.training import card
from model.training.recipe import Card, Head, load_recipe
from tests.tiny_training import make_recipe

RECIPES = Path(card.__file__).parent
STARTERS_OWN = ("starter", "Weibo", "musical", "Chinese", "commercial")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((STARTER / MANIFEST).read_text(encoding="utf-8"))
    return content


@pytest.fixture
def own(manifest: dict[str, Any]) -> dict[str, Any]:
    heads = {name: {"labels": head.labels, "temperature": 1.0, "threshold": None} for name, head in HEADS.items()}
    bare = {name: value for name, value in manifest.items() if name != "click"}
    text = manifest["text"] | {"lower": False}
    return bare | {"version": "mine-1", "heads": heads, "metrics": [], "text": text, "bag_columns": 0}


HEADS = {"mood": Head(["bad", "good"]), "rating": Head(["1", "2"], kind="score")}


def section(text: str, name: str) -> str:
    return text.split(f"## {name}\n")[1].split("\n## ")[0]


def test_the_starters_recipe_renders_the_tables_of_its_card(manifest: dict[str, Any]) -> None:
    shipped = (STARTER / "README.md").read_text(encoding="utf-8")
    rendered = card.render(load_recipe(RECIPES / "starter-gpu.yaml"), manifest)
    for name in ("Data and Licences", "Figures", "Heads"):
        assert section(rendered, name) == section(shipped, name)
    assert all(word in rendered for word in STARTERS_OWN)
    assert "make starter-gpu" in rendered
    assert "make starter`" in card.render(load_recipe(RECIPES / "starter.yaml"), manifest)


def test_heads_put_onto_an_artifact_leave_its_click_head_to_its_own_card(manifest: dict[str, Any]) -> None:
    text = card.render(replace(make_recipe(), heads=HEADS), manifest | {"onto": "shop-1"})
    assert section(text, "Click and purchase") == "\nAs in `shop-1`: its card has the figures.\n"


def test_a_recipe_of_ones_own_has_nothing_of_the_starters(own: dict[str, Any]) -> None:
    recipe = replace(make_recipe(frozen_layers=2), heads=HEADS)
    text = card.render(recipe, own)
    assert not [word for word in STARTERS_OWN if word in text]
    assert "made with the recipe `tiny`" in text
    assert "| n-gram channel | none |" in text
    assert "lower case" not in text
    assert "## Use" not in text
    assert "None: no file" in section(text, "Figures")
    assert "Never measured on a file of their own: `mood`, `rating`." in section(text, "Limits")
    assert "first 2 layers" in section(text, "Limits")
    assert "threshold" not in section(text, "Limits")


def test_what_a_recipe_says_of_itself_stands_first_and_figures_tell_the_measured(own: dict[str, Any]) -> None:
    own["metrics"] = [{"task": "mood", "files": {"valid.jsonl": "0"}, "n": 5, "accuracy": 0.5, "mae": 0.25}]
    said = Card(intro="For mails. " * 20, use="Ours alone.", limits=["Mails of one year.", "Short ones."])
    recipe = replace(make_recipe(), heads=HEADS | {"mood": replace(HEADS["mood"], threshold=True)}, card=said)
    text = card.render(recipe, own)
    assert text.index("For mails.") < text.index("One encoder") < text.index("Ours alone.") < text.index("Mails of one")
    assert max(map(len, text.split("For mails.", 1)[1].split("One encoder")[0].splitlines())) <= 120
    assert "| `mood` | valid.jsonl | 5 | 0.500 |  |  |  | 0.250 |  |  |  |\n" in text
    assert "linear machine" not in text
    assert "Never measured on a file of their own: `rating`." in text
    assert "by a threshold" in section(text, "Limits")


def test_heads_that_came_onto_an_artifact_are_told_apart(own: dict[str, Any]) -> None:
    text = card.render(
        replace(make_recipe(frozen_layers=2), heads={"mood": HEADS["mood"]}, body=""), own | {"onto": "old-7"}
    )
    assert "`mood` came onto `old-7`; all else is as in that artifact, whose own card" in " ".join(text.split())
    assert "as in `old-7`; 20000 pieces" in text
    assert "nothing else was trained" in text
    assert "first 2 layers" not in text
