"""A recipe's click section: its values, its files checked before training, the head put onto an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from model.artifact import Artifact
from model.assess.evaluate import evaluate_files
from model.clicks.dataset import ClickData
from model.clicks.head import ClickHead
from model.clicks.settings import ClickSettings
from model.errors import DataError
from model.scoring import load_scorer
from model.training import train as training
from model.training.newhead import add_heads
from model.training.recipe import load_recipe
from model.training.workshop import furnish
from tests.click_head import action_rows, click_rows
from tests.tiny_artifact import make_tiny_artifact
from tests.toy_training import make_workshop, run


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def write_recipe(folder: Path, **click: Any) -> Path:
    path = folder / "clicks.yaml"
    path.write_text(yaml.safe_dump({"name": "clicks", "click": {"file": "clicks.jsonl"} | click}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    rows = click_rows(700, seed=1)
    write_rows(folder / "clicks.jsonl", rows[:500])
    write_rows(folder / "valid.jsonl", rows[500:])
    write_rows(folder / "actions.jsonl", action_rows(300))
    make_tiny_artifact(folder / "tiny")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": ""}, "click.file: name the file"),
        ({"files": "x"}, "click: unknown key 'files'"),
        ({"actions": 3}, 'click.actions: 3 is not text; write "3"'),
        ({"headlines": ["one.jsonl"]}, "click.headlines: .* are not two files"),
        ({"scales_s": []}, "click.scales_s: .* give those of profiles.scales_s"),
        ({"scales_s": [0, 60]}, "click.scales_s: 0 must be above 0"),
        ({"scales_s": [60, 60]}, "click.scales_s: .* do not rise"),
        ({"scales_s": ["60"]}, "click.scales_s: .* write 60 without quotes"),
        ({"negative_rate": 1.5}, "click.negative_rate: 1.5 is no share"),
        ({"negative_rate": 0}, "click.negative_rate: 0 must be above 0"),
        ({"window_s": -1}, "click.window_s: -1 must be above 0"),
        ({"delay_s": "soon"}, "click.delay_s: 'soon' is not a number"),
        ({"delay_s": -1}, "click.delay_s: -1 must be at least 0"),
        ({"context": {"name": "price"}}, "click: context: a list is expected"),
        ({"context": [{"kind": "numeric"}]}, "click: context feature {'kind': 'numeric'}: write {name"),
        ({"context": ["price"]}, "click: context feature 'price': write {name"),
        ({"context": [{"name": "price", "centre": 3}]}, "click: context feature 'price': unknown key 'centre'"),
        ({"context": [{"name": "price", "kind": "colour"}]}, "click: context feature 'price': kind 'colour'"),
        ({"context": [{"name": "price", "buckets": "many"}]}, "click: context feature 'price': many buckets"),
        ({"context": [{"name": "price"}, {"name": "price"}]}, "click.context: 'price' is named twice"),
    ],
)
def test_a_wrong_value_is_refused_by_file_and_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"clicks\.yaml: {message}"):
        load_recipe(write_recipe(tmp_path, **change))


def test_the_starter_fits_what_it_always_did() -> None:
    found = load_recipe(Path(training.__file__).with_name("starter.yaml")).click
    assert found is not None
    assert (found.file, found.actions) == ("clicks_ml1m.train.jsonl.gz", "tmall_actions.train.jsonl.gz")
    assert list(found.scales_s) == [60, 86400, 94608000]
    assert [(feature.name, feature.kind, feature.neutral) for feature in found.context] == [("year", "numeric", None)]
    assert (found.window_s, found.negative_rate, found.delay.ms) == (None, 1.0, 0)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([{"user_id": 1}], {}, r"clicks\.jsonl:501: field 'ts'"),
        ([], {"actions": "clicks.jsonl"}, r"clicks\.jsonl:1: action None is unknown"),
        ([], {"actions": "none.jsonl"}, r"none\.jsonl: cannot be read"),
        ([], {"context": [{"name": "price"}]}, r"clicks\.jsonl: context feature 'price': no training row has a number"),
        ([], {"context": [{"name": "d", "kind": "categorical"}]}, "context feature 'd': no training row has it"),
        ([], {"file": "empty.jsonl"}, r"empty\.jsonl: no rows"),
        ([], {"valid": "open.jsonl", "window_s": 60.0}, r"open\.jsonl: no impression has a known outcome"),
        ([], {"valid": "broken.jsonl"}, r"broken\.jsonl:1: not JSON"),
        ([], {"headlines": ["clicks.jsonl", "clicks.jsonl"]}, r"clicks\.jsonl:1: headline data need"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_before_training(
    shop: Path, tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    workshop = make_workshop(tmp_path)
    content = (shop / "clicks.jsonl").read_text(encoding="utf-8")
    (workshop / "clicks.jsonl").write_text("\n".join([content, *map(json.dumps, rows)]), encoding="utf-8")
    (workshop / "empty.jsonl").touch()
    write_rows(workshop / "open.jsonl", [{"user_id": 1, "item_id": 1, "ts": 400_001}])
    (workshop / "broken.jsonl").write_text("{", encoding="utf-8")
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["click"] = {"file": "clicks.jsonl"} | settings
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=message):
        training.train(workshop / "recipe.yaml", workshop, out, minutes=1, resume=False, console=Console(quiet=True))
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"purchased": 0}, "too little to learn purchases from"), ({"clicked": 1}, "too little to learn clicks from")],
)
def test_a_log_of_one_outcome_is_refused(shop: Path, tmp_path: Path, change: dict[str, int], message: str) -> None:
    rows = [json.loads(line) for line in (shop / "clicks.jsonl").read_text(encoding="utf-8").splitlines()]
    write_rows(tmp_path / "clicks.jsonl", [row | change for row in rows])
    with pytest.raises(DataError, match=rf"clicks\.jsonl: {message}"):
        ClickData.read(ClickSettings(file="clicks.jsonl"), tmp_path)


def test_a_click_head_is_put_onto_an_artifact_and_replaced(shop: Path, tmp_path: Path) -> None:
    recipe = write_recipe(
        shop, actions="actions.jsonl", valid="valid.jsonl", source="a made-up shop", delay_s=60, negative_rate=0.5
    )
    first = Artifact.load(add_heads(recipe, shop, shop / "tiny", tmp_path / "first"))
    before = Artifact.load(shop / "tiny")
    assert first.manifest["space"] == before.manifest["space"]
    for name, value in before.tensors.items():
        np.testing.assert_array_equal(first.tensors[name], value)
    section = first.manifest["click"]
    assert set(section["files"]) == {"clicks.jsonl", "actions.jsonl", "valid.jsonl"}
    assert section["valid"]["n"] == 200
    late = [(found["delay_s"], found["at_once"]) for found in section["valid_delays"]]
    assert late == [(seconds, at_once) for seconds in (60, 600, 3600) for at_once in (True, False)]
    assert "valid_conversion" not in section
    assert first.manifest["onto"] == before.manifest["version"]
    card = " ".join((tmp_path / "first" / "README.md").read_text(encoding="utf-8").split())
    assert f"`click`, `purchase` came onto `{before.manifest['version']}`; all else is as in that artifact" in card
    assert "emperatures" not in card
    assert "Learned from a made-up shop." in card
    assert "valid.jsonl, progressive at zero delay" in card
    assert card.count("outcomes 600 s late") == 2
    assert "MovieLens" not in card

    plain = write_recipe(shop, context=[{"name": "position", "neutral": 0}])
    with pytest.raises(DataError, match="context feature 'position'"):
        add_heads(plain, shop, tmp_path / "first", tmp_path / "second")
    assert not (tmp_path / "second").exists()
    second = Artifact.load(add_heads(write_recipe(shop), shop, tmp_path / "first", tmp_path / "second"))
    assert not any(name.startswith("click.purchase") for name in second.tensors)
    assert "valid" not in second.manifest["click"]
    head = ClickHead.from_scorer(load_scorer(tmp_path / "second", device="cpu"))
    assert head.scales_s == (60, 86400, 3 * 365 * 86400)


def test_purchases_and_conversions_of_impressions_that_tell_them(shop: Path, tmp_path: Path) -> None:
    rows = [row | {"purchased": int(row["clicked"] and i % 2)} for i, row in enumerate(click_rows(700, seed=1))]
    write_rows(tmp_path / "clicks.jsonl", rows[:500])
    write_rows(tmp_path / "valid.jsonl", rows[500:])
    recipe = write_recipe(tmp_path, valid="valid.jsonl", purchase_delay_s=3600)
    artifact = Artifact.load(add_heads(recipe, tmp_path, shop / "tiny", tmp_path / "out"))
    assert artifact.manifest["click"]["valid_conversion"]["n"] == 200
    assert "click.purchase.mean" in artifact.tensors
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| conversion | valid.jsonl, p(click) p(purchase) of all impressions | 200 |" in card


def test_a_click_trial_is_measured_on_the_finished_artifact(shop: Path, tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    for name in ("clicks.jsonl", "valid.jsonl"):
        (workshop / name).write_bytes((shop / name).read_bytes())
    recipe = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    recipe |= {"click": {"file": "clicks.jsonl"}, "evaluation": [{"task": "click", "file": "valid.jsonl"}]}
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    out = run(workshop, tmp_path / "out", tokens=2000)
    (measured,) = Artifact.load(out).manifest["metrics"]
    with_head = evaluate_files(load_scorer(out, device="cpu"), "click", [workshop / "valid.jsonl"])
    assert measured == with_head | {"files": measured["files"]}
    assert "Learned" not in (out / "README.md").read_text(encoding="utf-8")  # the recipe names no source
    assert "## Click and purchase" in (out / "README.md").read_text(encoding="utf-8")


def test_a_head_of_a_sampled_log_is_evaluated_and_tried_as_when_it_was_fitted(shop: Path, tmp_path: Path) -> None:
    rows, rng = click_rows(3000, seed=1), np.random.default_rng(0)
    kept = [row for row in rows[:2500] if row["clicked"] or rng.random() < 0.1]
    silent = [{name: value for name, value in row.items() if name != "clicked" or value} for row in rows]
    write_rows(tmp_path / "clicks.jsonl", [silent[rows.index(row)] for row in kept])
    write_rows(tmp_path / "valid.jsonl", silent[2500:])
    recipe = write_recipe(tmp_path, valid="valid.jsonl", negative_rate=0.1, window_s=3600)
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    content["evaluation"] = [{"task": "click", "file": "valid.jsonl", "history": ["clicks.jsonl"]}]
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    out = add_heads(recipe, tmp_path, shop / "tiny", tmp_path / "out")
    manifest = Artifact.load(out).manifest
    expected = {"task": "click", **manifest["click"]["valid"]}
    assert 0.5 < expected["predicted_over_observed"] < 2
    history = [tmp_path / "clicks.jsonl"]
    assert evaluate_files(load_scorer(out, device="cpu"), "click", [tmp_path / "valid.jsonl"], history) == expected
    (measured,) = manifest["metrics"]
    assert measured == expected | {"files": measured["files"]}


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        ({"task": "click", "file": "broken.jsonl"}, r"broken\.jsonl:201: field 'ts' is None"),
        ({"task": "purchase", "file": "broken.jsonl"}, r"broken\.jsonl:201: field 'ts' is None"),
        ({"task": "conversion", "file": "valid.jsonl"}, "no row has a known outcome for conversion"),
        ({"task": "click", "file": "valid.jsonl", "history": ["broken.jsonl"]}, r"broken\.jsonl:201: field 'ts'"),
        ({"task": "sentiment", "file": "mood.jsonl", "history": ["torn.jsonl"]}, r"torn\.jsonl:201: not JSON"),
        ({"task": "sentiment", "file": "mood.jsonl", "without": "mood.jsonl"}, "every text with a label stands in"),
    ],
)
def test_a_trial_that_cannot_be_measured_is_refused_before_training(
    shop: Path, tmp_path: Path, trial: dict[str, Any], message: str
) -> None:
    workshop, good = make_workshop(tmp_path), (shop / "valid.jsonl").read_text(encoding="utf-8")
    for name, more in (("valid", ""), ("broken", '{"user_id": 1, "item_id": 1}\n'), ("torn", "{\n")):
        (workshop / f"{name}.jsonl").write_text(f"{good}\n{more}", encoding="utf-8")
    content = yaml.safe_load((workshop / "recipe.yaml").read_text(encoding="utf-8"))
    (workshop / "recipe.yaml").write_text(yaml.safe_dump(content | {"evaluation": [trial]}), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        furnish(load_recipe(workshop / "recipe.yaml"), workshop, tmp_path, Console(quiet=True))


def test_a_trial_of_clicks_is_read_as_the_artifact_says_before_heads_are_put_onto_it(
    shop: Path, tmp_path: Path
) -> None:
    for name in ("clicks", "valid"):
        (tmp_path / f"{name}.jsonl").write_bytes((shop / f"{name}.jsonl").read_bytes())
    open_rows = [{"user_id": 1, "item_id": 1, "ts": 1}, *click_rows(100)]
    write_rows(tmp_path / "open.jsonl", open_rows)
    first = add_heads(write_recipe(tmp_path, window_s=3600), tmp_path, shop / "tiny", tmp_path / "first")
    rows = [{"text": f"{word} {i}", "mood": word} for i in range(30) for word in ("good", "bad")]
    write_rows(tmp_path / "mood.jsonl", rows)
    mood = {"name": "mood", "file": "mood.jsonl", "labels": {"mood": "mood"}}
    more = {"name": "more", "heads": {"mood": {}}, "datasets": [mood], "calibration_share": 0.2}
    more["evaluation"] = [{"task": "click", "file": "open.jsonl"}]
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(more), encoding="utf-8")
    (measured,) = Artifact.load(add_heads(tmp_path / "more.yaml", tmp_path, first, tmp_path / "out")).manifest[
        "metrics"
    ]
    assert measured["n"] == 101
    with pytest.raises(DataError, match=r"open\.jsonl:1: field 'clicked' is missing"):
        add_heads(tmp_path / "more.yaml", tmp_path, shop / "tiny", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_recipe_without_heads_is_no_network(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--onto"):
        training.train(write_recipe(shop), shop, tmp_path, minutes=1, resume=False, console=Console(quiet=True))
    (tmp_path / "empty.yaml").write_text("name: empty\n", encoding="utf-8")
    with pytest.raises(DataError, match="neither `heads` nor `click`"):
        add_heads(tmp_path / "empty.yaml", shop, shop / "tiny", tmp_path / "out")
