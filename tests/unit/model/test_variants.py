"""The comparison of a recipe's options, on toy data: all variants run, in pairs; what is done is not done again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml

from model.assess.report_variants import read_variants
from model.assess.sharing import read_sharing
from model.data import Example
from model.errors import DataError, DivergedError
from model.training.recipe import Dataset, Recipe
from tests.bench import bench_shared, bench_variants, paired
from tests.bench.variants import BASE, FULL, NAMES, Translators, Variant, chosen, recipe_of, variants
from tests.tiny_training import make_corpus
from tests.toy_training import make_workshop

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--tokens", "800", "--rows", "30")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training toy with a body of one layer, a generated data set and both of its tasks judged."""
    folder = make_workshop(tmp_path_factory.mktemp("toy"))
    content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    content["datasets"].append({"name": "outside", "templates": "outside", "outside": {"intent.shop": []}})
    content["evaluation"] = [
        {"task": "sentiment", "file": "mood.jsonl"},
        {"task": "intent.shop", "file": "shop.jsonl"},
        {"task": "sentiment", "file": "absent.jsonl"},
    ]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content | {"warm_rows": 4}), encoding="utf-8")
    return folder


def compared(toy: Path, out: Path, *more: str) -> int:
    return bench_variants.main(["--recipe", str(toy / "recipe.yaml"), "--data", str(toy), "--out", str(out), *more])


def test_every_variant_is_trained_and_compared(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(toy, tmp_path, *SMALL, "--seeds", "1") == 0
    told, errors = capsys.readouterr()
    result = json.loads(told.splitlines()[-1])
    assert json.loads((tmp_path / "variants.json").read_text()) == result
    assert (tmp_path / "variants.png").stat().st_size > 1000
    assert "left out: back-translation" in errors
    assert "famo, seed 0: mean " in errors
    found = {entry["name"]: entry for entry in result["variants"]}
    assert [*found] == [name for name in NAMES if name != "back-translation"]
    assert result["rows"] == {"sentiment mood": 30, "intent.shop shop": 30}
    for entry in found.values():
        assert entry["mean"] == pytest.approx(np.mean([*entry["tasks"].values()]), abs=1e-4)
        assert ("difference" in entry) == (entry["name"] != BASE)
    assert found["lora"]["against"] == found["frozen"]["against"] == FULL
    assert found["lora"]["parameters"] < found["full"]["parameters"]
    assert found["frozen"]["parameters"] < found["lora"]["parameters"]  # one layer, frozen: heads alone
    assert found[BASE]["parameters"] < found["towers"]["parameters"] < found["ple"]["parameters"]
    assert found[FULL]["difference"] == [0, 0, 0]  # the toy freezes nothing: the same recipe, the same answers
    assert read_variants(tmp_path / "variants.json")["variants"] == result["variants"]


def test_a_difference_is_over_the_seeds_and_rows_that_both_have() -> None:
    def run(*right: list[int], memory_mb: float = 7.4) -> dict[str, Any]:
        bits = {name: np.array(own) == 1 for name, own in zip(("a", "b"), right, strict=True)}
        return {"parameters": 5.0, "tokens": 100, "seconds": 2.0, "memory_mb": memory_mb, "right": bits}

    runs = {
        (BASE, 0): run([1, 0, 0, 0], [1, 1]),
        ("famo", 0): run([1, 1, 0, 0], [1, 1], memory_mb=20),
        (BASE, 1): run([0, 0, 0, 0], [0, 1]),
        ("famo", 1): run([1, 1, 1, 0], [1, 1]),
        (BASE, 2): run([1, 1, 1, 1], [1, 1]),
    }
    found = bench_variants.entry(named("famo"), runs)
    assert found["tasks"] == {"a": 0.625, "b": 1.0}
    assert found["mean"] == 0.8125
    assert (found["seeds"], found["seconds"], found["tokens_per_second"], found["memory_mb"]) == (2, 2.0, 50, 7)
    assert found["by_seed"] == [0.125, 0.625]
    assert found["differences"]["a"] == [0.5, 0, 1]  # of one seed a quarter, of the other three
    assert found["differences"]["b"][0] == 0.25
    assert found["difference"][0] == 0.375
    assert "difference" not in bench_variants.entry(named("towers"), {("towers", 0): runs[BASE, 0]})


def watched(before: Callable[[Recipe], None]) -> Any:
    """Trainings as they are, with ``before`` told of each."""

    def train(recipe: Recipe, *args: Any, **more: Any) -> Any:
        before(recipe)
        return paired.train(recipe, *args, **more)

    return mock.patch.object(bench_variants, "train", train)


def test_what_is_done_is_not_done_again(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = list[str]()

    def kept(recipe: Recipe) -> None:
        done.append(recipe.training.weighting + str(recipe.seed))

    def stopped(recipe: Recipe) -> None:
        if recipe.training.weighting == "famo":
            raise KeyboardInterrupt
        kept(recipe)

    asked = ("--only", "famo", "uncertainty", *SMALL, "--seeds", "2")
    with watched(stopped), pytest.raises(KeyboardInterrupt):
        compared(toy, tmp_path, *asked)
    assert done == ["equal3", "uncertainty3"]  # seed by seed, with what they are compared with
    so_far = json.loads((tmp_path / "variants.json").read_text())
    assert [entry["name"] for entry in so_far["variants"]] == [BASE, "uncertainty"]
    with watched(kept):
        compared(toy, tmp_path, *asked)
        assert done[2:] == ["famo3", "equal4", "uncertainty4", "famo4"]
        first = capsys.readouterr().out
        compared(toy, tmp_path, *asked)
        assert len(done) == 6
        assert capsys.readouterr().out == first
        compared(toy, tmp_path, *asked, "--tokens", "700", "--only", BASE)  # of other tokens: another training
        assert done[6:] == ["equal3", "equal4"]


def test_a_variant_that_diverges_is_told_and_tried_again(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverging(recipe: Recipe) -> None:
        if recipe.training.optimiser == "adam":
            raise DivergedError("training broke down")

    asked = ("--only", "adam", "sgd", *SMALL, "--seeds", "1")
    with watched(diverging):
        assert compared(toy, tmp_path, *asked) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["failed"] == {"adam": "training broke down"}
    assert [entry["name"] for entry in result["variants"]] == [BASE, "sgd"]
    assert compared(toy, tmp_path, *asked) == 0


def test_variants_begin_at_the_same_weights_and_are_trained_on_what_they_say(toy: Path, tmp_path: Path) -> None:
    seen = dict[str, Any]()

    def noted(recipe: Recipe, shop: Any, tokens: float, console: Any, **more: Any) -> Any:
        corpus = more["corpus"]
        seen["augment" if recipe.datasets[0].augment else str(recipe.datasets[2].weight)] = shop.corpus, corpus
        return paired.train(recipe, shop, tokens, console, **more)

    with mock.patch.object(bench_variants, "train", noted):
        compared(toy, tmp_path, "--only", "edits", "no-templates", "--share", "0.5", *SMALL, "--seeds", "1")
    (start, base), (same, more), (without, less) = seen["1.0"], seen["augment"], seen["0.0"]
    assert start.texts == base.texts == same.texts
    own = len(base.texts)
    assert len(more.texts) > own + 20
    assert {text for text, made in zip(more.texts, more.origin, strict=True) if made < own} >= set(base.texts)
    assert 2 in base.dataset
    assert 2 not in less.dataset
    assert without is less
    everything = sum(len((toy / name).read_text().splitlines()) for name in ("mood.jsonl", "shop.jsonl"))
    assert (base.dataset < 2).sum() < 0.75 * everything  # half of the rows that are not held


def test_a_row_goes_with_what_was_made_from_it() -> None:
    plain = make_corpus(rows=24, held=6)
    corpus = replace(plain, origin=np.array([*range(12), *range(12)]), held=np.zeros(24, bool))
    kept = paired.fewer_labels(corpus, 0.5, seed=1)
    texts = {int(text.split()[1]) for text in kept.texts}
    assert 0 < len(texts) < 24
    assert {text % 12 for text in texts} == {text for text in texts if text < 12}
    assert all(text + 12 in texts for text in texts if text < 12)


def test_the_interval_is_of_the_mean_over_tasks() -> None:
    better, same = np.ones((2, 50)), np.zeros((2, 400))
    assert paired.interval(paired.resampled([better, same]).mean(0)) == pytest.approx((0.5, 0.5))
    rng = np.random.default_rng(3)
    rows = rng.choice([-1.0, 0.0, 1.0], (1, 1000))
    low, high = paired.interval(paired.resampled([rows])[0])
    assert low < rows.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * (2 / 3 / 1000) ** 0.5, rel=0.1)


def test_the_interval_knows_that_seeds_differ() -> None:
    seeds = np.repeat([[0.0], [0.1], [0.2]], 300, axis=1)  # all rows alike: what is left is the seeds' own
    low, high = paired.interval(paired.resampled([seeds, seeds]).mean(0))
    assert (low, high) == pytest.approx((0.0, 0.2), abs=0.04)


def test_memory_is_what_was_taken_since() -> None:
    memory = paired.Memory()
    assert memory.peak_mb() < 20
    np.ones(8_000_000).sum()  # 64 MB, gone again
    assert 55 < memory.peak_mb() < 110


def named(name: str) -> Variant:
    (found,) = (variant for variant in variants(Recipe("any"), 12) if variant.name == name)
    return found


def test_back_translation_goes_from_the_language_of_the_rows() -> None:
    recipe = Recipe(
        "any", datasets=[Dataset("zh", file="a"), Dataset("en", file="b"), Dataset("made", templates="shop")]
    )
    rows = [[Example("我的快递", {})], [Example("my parcel", {})], [Example("退款", {})]]
    changed = recipe_of(named("back-translation"), recipe, rows, Translators("zh-en", "en-zh", ("zh", "en")))
    asked = [d.augment.back_translation for d in changed.datasets if d.augment and d.augment.back_translation]
    assert [(a.there, a.back, a.languages) for a in asked] == [
        ("zh-en", "en-zh", ["zh", "en"]),
        ("en-zh", "zh-en", ["en", "zh"]),
    ]
    assert recipe_of(named("no-templates"), recipe, rows, None).datasets[2].weight == 0


def test_those_named_come_with_what_they_are_compared_with() -> None:
    every = variants(Recipe("any"), 12)
    assert [variant.name for variant in chosen(every, ["lora"])] == [BASE, FULL, "lora"]
    assert chosen(every, []) == every
    assert named("frozen").training == {"frozen_layers": 8}
    with pytest.raises(KeyError):
        chosen(every, ["unheard"])


@pytest.mark.parametrize(
    "change",
    [
        {"variants": []},
        {"tokens": "many"},
        {"variants": [{"seconds": 1}]},
        {"variants": [{"name": "a", "seconds": 1}]},
        {"variants": [{**dict.fromkeys(("parameters", "seconds", "tokens_per_second", "memory_mb", "mean"), 1)}]},
    ],
)
def test_malformed_results_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "variants.json"
    path.write_text(json.dumps({"tokens": 1, "share": 1, "metric": "accuracy"} | change), encoding="utf-8")
    with pytest.raises(DataError, match="variant"):
        read_variants(path)


def test_shared_against_single_runs_on_the_same_ground(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--recipe", str(toy / "recipe.yaml"), "--data", str(toy), "--out", str(tmp_path)]
    bench_shared.main([*paths, *SMALL, "--seeds", "1", "--shares", "1.0", "0.5"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(p["task"], p["share"]) for p in result["points"]] == [
        (task, share) for share in (1.0, 0.5) for task in ("sentiment", "intent.shop")
    ]
    assert all(
        s["difference_interval"][0] <= s["shared"] - s["single"] <= s["difference_interval"][1]
        for s in result["shares"]
    )


def test_results_are_kept_whatever_follows_the_trainings(toy: Path, tmp_path: Path) -> None:
    paths = ["--recipe", str(toy / "recipe.yaml"), "--data", str(toy), "--out", str(tmp_path)]
    broken = mock.patch.object(bench_shared, "encoder_work", side_effect=ZeroDivisionError)
    with broken, pytest.raises(ZeroDivisionError):
        bench_shared.main([*paths, *SMALL, "--seeds", "1", "--shares", "1.0"])
    assert read_sharing(tmp_path / "sharing.json")[1].keys() == {1.0}
