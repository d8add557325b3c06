"""The floor: a linear machine learns from the recipe's labelled rows and guesses among the labels that occur."""

import json
from pathlib import Path

import pytest

from model.training import floor
from model.training.examples import read_corpus
from model.training.floor import LinearFloor, drawn, fit_floor
from model.training.recipe import Dataset, Head, Recipe

SAID = {"negative": ["坏了", "broken 退货"], "positive": ["很好", "great 满意"], "neutral": ["一般", "so so"]}
TEXTS = [f"{words} {i}" for several in SAID.values() for words in several for i in range(10)]
LABELS = [label for label, several in SAID.items() for _ in several for _ in range(10)]


def test_it_tells_apart_what_ngrams_tell_apart() -> None:
    texts, labels = ["东西坏了", "GREAT thing", "so so"], ["negative", "positive", "neutral"]
    found = LinearFloor(TEXTS, LABELS).figures(texts, labels)
    assert found == {"linear_accuracy": 1.0, "linear_macro_f1": 1.0}


def test_it_guesses_among_the_labels_that_occur_and_cannot_guess_one_it_never_saw() -> None:
    machine = LinearFloor(TEXTS, LABELS)
    assert machine.figures(["一般", "很好"], ["negative", "positive"])["linear_accuracy"] == 1.0
    found = machine.figures(["一般", "很好", "??"], ["neutral", "positive", "furious"])
    assert found["linear_accuracy"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["linear_macro_f1"] < 2 / 3


def test_on_rows_of_one_label_it_guesses_among_all_of_its_own() -> None:
    assert LinearFloor(TEXTS, LABELS).figures(["一般", "很好"], ["positive"] * 2)["linear_accuracy"] == 0.5


def test_two_labels_make_one_plane_and_are_told_apart_all_the_same() -> None:
    some = [i for i, label in enumerate(LABELS) if label != "neutral"]
    machine = LinearFloor([TEXTS[i] for i in some], [LABELS[i] for i in some])
    assert machine.figures(["broken", "great"], ["negative", "positive"])["linear_accuracy"] == 1.0


def test_of_too_many_characters_rows_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "CHARACTERS_MAX", sum(map(len, TEXTS)) // 2)
    rows = drawn([*zip(TEXTS, LABELS, strict=True), ("x" * 10_000, "never drawn")], 0)
    found = LinearFloor([text for text, _ in rows], [label for _, label in rows])
    assert set(found.classes) == set(SAID)


def test_it_learns_from_the_labelled_rows_of_the_recipe_but_not_from_guessed_ones(tmp_path: Path) -> None:
    heads = {"mood": Head(["bad", "good"]), "other": Head(["a", "b"])}
    rows = [{"text": f"bad {i}", "mood": "bad", "other": "a"} for i in range(9)] + [{"text": "good", "mood": "good"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    guess = [{"text": "guess", "other": "b"}]
    (tmp_path / "guess.jsonl").write_text("\n".join(map(json.dumps, guess)), encoding="utf-8")
    labels = {"mood": "mood", "other": "other"}
    datasets = [
        Dataset("rows", file="rows.jsonl", labels=labels),
        Dataset("guess", file="guess.jsonl", labels={"other": "other"}, guessed=True),
    ]
    recipe = Recipe("own", heads=heads, datasets=datasets)
    corpus = read_corpus(recipe, tmp_path)
    machine = fit_floor(recipe, "mood", corpus)
    assert machine is not None
    assert machine.figures(["bad", "good"], ["bad", "good"])["linear_accuracy"] == 1.0
    assert fit_floor(recipe, "other", corpus) is None
