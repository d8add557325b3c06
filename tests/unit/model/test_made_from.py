"""No file of a run is taken for another's: corrected labels, another recipe, other minutes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from model.artifact import WEIGHTS
from model.calibrate import ScopeCost
from model.clicks.settings import ClickSettings
from model.errors import ModelError
from model.training import train as training
from model.training.made_from import MadeFrom, file_digests
from model.training.recipe import Card, Dataset, SpaceTexts, Teacher, Trial, load_recipe
from tests.tiny_training import make_recipe
from tests.toy_training import make_workshop, run, write_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
FILES = {"rows.jsonl": "a", "texts.jsonl": "b"}
LEFT = ("bag.safetensors", "plan.json")  # of a run that was stopped before its first checkpoint


def changed(before: MadeFrom, after: MadeFrom) -> set[str]:
    names = {*before.parts, *after.parts}
    return {name for name in names if before.parts.get(name) != after.parts.get(name)}


def test_each_change_is_found_by_its_name_and_what_is_only_told_is_none() -> None:
    recipe = make_recipe()
    before = MadeFrom.of(recipe, FILES)
    bag = replace(recipe.bag, c=0.7)
    training = replace(recipe.training, body_lr=1e-3)
    others = {"name": "b", "seed": 1, "bag": bag, "training": training, "heads": dict(reversed(recipe.heads.items()))}
    found = {key: changed(before, MadeFrom.of(replace(recipe, **{key: value}), FILES)) for key, value in others.items()}
    assert found == {
        "name": set(),
        "seed": {"seed"},
        "bag": {"bag.c"},
        "training": {"training.body_lr"},
        "heads": {"order"},
    }
    licensed = [replace(recipe.datasets[0], source="CC0")]
    told = replace(recipe, datasets=licensed, card=Card(intro="Ours."), evaluation=[Trial("mood", "valid.jsonl")])
    told = replace(told, click=ClickSettings("clicks.jsonl"))  # fitted afterwards
    heads = {name: replace(head, decide="macro_f1", threshold=not head.threshold) for name, head in told.heads.items()}
    told = replace(told, heads=heads, scope_cost=ScopeCost(share=0.5))  # act on what is trained
    told = replace(told, search={"body_lr": {"low": 1e-5, "high": 1e-4}})
    watched = {"tensorboard": True, "held_every": 9, "held_rows": 9, "conflict_every": 9}
    watched |= {"valid_every": 9, "valid_rows": 9}
    told = replace(told, training=replace(recipe.training, **watched))
    assert MadeFrom.of(told, FILES) == before
    taught, more = (replace(recipe, teachers=[Teacher(training=own.training)]) for own in (recipe, told))
    assert MadeFrom.of(taught, FILES) == MadeFrom.of(more, FILES)
    assert changed(before, MadeFrom.of(recipe, FILES | {"rows.jsonl": "c"})) == {"rows.jsonl"}


def test_texts_of_the_vector_space_count_where_they_have_a_say_in_the_vocabulary() -> None:
    spread = replace(make_recipe(), space=[SpaceTexts("texts.jsonl", ["text"], 5)])
    assert MadeFrom.of(spread, FILES) == MadeFrom.of(spread, FILES | {"texts.jsonl": "c"})
    cut = replace(spread, vocabulary=100)
    assert changed(MadeFrom.of(cut, FILES), MadeFrom.of(cut, FILES | {"texts.jsonl": "c"})) == {"texts.jsonl"}


def test_templates_count_where_rows_are_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_recipe()
    made = replace(plain, datasets=[Dataset("made", templates="shop")])
    before = [MadeFrom.of(recipe, {}) for recipe in (plain, made)]
    monkeypatch.setattr("model.training.made_from.templates", lambda: {"shop": {}})
    assert MadeFrom.of(plain, {}) == before[0]
    assert changed(MadeFrom.of(made, {}), before[1]) == {"templates.yaml"}


def with_other_labels(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "mood.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows[::3]:
        row["sentiment"] = "positive" if row["sentiment"] == "negative" else "negative"
    (folder / "mood.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def with_other_grams(folder: Path) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["bag"] |= {"c": 0.1, "keep": 64}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "names"), [(with_other_labels, r"mood\.jsonl"), (with_other_grams, r"bag\.c, bag\.keep")]
)
def test_what_a_stopped_run_left_is_made_anew_or_refused_with_what_changed(
    tmp_path: Path, change: object, names: str
) -> None:
    workshop, out = make_workshop(tmp_path), tmp_path / "out"
    run(workshop, out, tokens=2000)
    (out / "checkpoint.safetensors").unlink()
    assert callable(change)
    change(workshop)
    with pytest.raises(ModelError, match=rf"bag\.safetensors was made from .*changed: {names}\)"):
        run(workshop, out, tokens=2000, resume=True)
    (out / "bag.safetensors").rename(tmp_path / "bag")
    with pytest.raises(ModelError, match=rf"plan\.json was made from .*changed: {names}\)"):
        run(workshop, out, tokens=2000, resume=True)
    (tmp_path / "bag").rename(out / "bag.safetensors")
    again, fresh = run(workshop, out, tokens=2000), run(workshop, tmp_path / "fresh", tokens=2000)
    assert (again / WEIGHTS).read_bytes() == (fresh / WEIGHTS).read_bytes()


def test_labels_that_were_corrected_are_told_to_whoever_resumes_or_exports(tmp_path: Path) -> None:
    workshop, out = make_workshop(tmp_path), tmp_path / "out"
    run(workshop, out, tokens=2000)
    kept = {name: (out / name).read_bytes() for name in LEFT}
    with_other_labels(workshop)
    for name in LEFT:
        (out / name).unlink()
    with pytest.raises(ModelError, match=r"checkpoint\.safetensors was made from .*changed: mood\.jsonl\)"):
        run(workshop, out, tokens=2000, resume=True)
    for name, content in kept.items():
        (out / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"changed: mood\.jsonl"):
        training.train(
            *(workshop / "recipe.yaml", workshop, out),
            minutes=0,
            resume=True,
            console=Console(quiet=True),
            further=False,
        )


def test_a_run_that_begins_plans_for_the_minutes_it_is_given(tmp_path: Path) -> None:
    workshop, out = make_workshop(tmp_path), tmp_path / "out"
    for tokens in (3000, 5000):
        run(workshop, out, tokens=tokens)
        (out / "checkpoint.safetensors").unlink()
        assert json.loads((out / "plan.json").read_text())["tokens"] == pytest.approx(tokens)
    run(workshop, out, tokens=9000, resume=True)  # one that goes on keeps what it had
    assert json.loads((out / "plan.json").read_text())["tokens"] == pytest.approx(5000)


@pytest.mark.parametrize("name", LEFT)
def test_a_damaged_file_is_made_anew_or_refused(tmp_path: Path, name: str) -> None:
    workshop, out = make_workshop(tmp_path), tmp_path / "out"
    run(workshop, out, tokens=2000)
    (out / "checkpoint.safetensors").unlink()
    (out / name).write_bytes((out / name).read_bytes()[:20])
    with pytest.raises(ModelError, match=name):
        run(workshop, out, tokens=2000, resume=True)
    run(workshop, out, tokens=2000)


def test_teachers_answers_of_other_data_are_refused(tmp_path: Path) -> None:
    workshop, out = make_workshop(tmp_path), tmp_path / "out"
    settings = {"teachers": [{}], "teacher_folds": 2}
    write_recipe(workshop, **settings)
    run(workshop, out, tokens=4000)
    write_recipe(workshop, **settings, taught_share=0.3)
    (out / "checkpoint.safetensors").unlink()
    for name in LEFT:
        (out / name).unlink()
    run(workshop, out, tokens=4000, resume=True)  # the share is no affair of the teachers'
    with_other_labels(workshop)
    for name in (*LEFT, "checkpoint.safetensors"):
        (out / name).unlink()
    with pytest.raises(ModelError, match=r"teacher-0-0/answers\.safetensors was made from .*changed: mood\.jsonl\)"):
        run(workshop, out, tokens=4000, resume=True)


def test_digests_are_of_the_files_bytes(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    recipe = load_recipe(workshop / "recipe.yaml")
    before = file_digests(recipe, workshop)
    with_other_labels(workshop)
    after = file_digests(recipe, workshop)
    assert set(before) == {"mood.jsonl", "shop.jsonl"}
    assert {name for name in before if before[name] != after[name]} == {"mood.jsonl"}
