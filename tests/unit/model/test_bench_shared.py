"""The bench of shared against single models: its draw of fewer labels, and that the report reads what it writes."""

import argparse
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.assess.report_sharing import sharing_section
from model.assess.sharing import learning_curve, read_sharing
from model.encoder import build_encoder
from model.errors import DataError
from model.scoring import Prepared
from model.training.recipe import Dataset, Head, Recipe, Trial
from tests.bench.bench_shared import encoder_work, summary
from tests.bench.paired import Judged, digest, fewer_labels, judged_rows, remembered
from tests.tiny_training import CONFIG, make_corpus


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_as_many_training_rows_are_kept_as_was_asked_for(seed: int) -> None:
    corpus = make_corpus(rows=6000, held=0)
    held = np.array([zlib.crc32(p.ids.tobytes()) % 10007 < 600 for p in corpus.prepared])  # as the corpus holds them
    corpus = replace(corpus, held=held)
    kept: set[bytes] = set()
    for share in (0.01, 0.1, 0.3, 1.0):
        some = fewer_labels(corpus, share, seed)
        assert some.held.sum() == held.sum()
        rows = {p.ids.tobytes() for p, own in zip(some.prepared, some.held, strict=True) if not own}
        assert (~some.held).sum() == pytest.approx(share * (~held).sum(), abs=4 * np.sqrt(share * 6000))
        assert kept <= rows
        kept = rows


def test_the_report_reads_what_the_bench_writes(tmp_path: Path) -> None:
    """With a tenth of the labels the shared model is right on one row in ten more; with all of them both are alike."""
    rng, shares, seeds = np.random.default_rng(0), [1.0, 0.1], 2
    right = {}
    for share in shares:
        for seed in range(seeds):
            single = {head: rng.random(2000) < (0.8 if share == 1 else 0.6) for head in ("mood", "stars")}
            shared = {head: own | (rng.random(2000) < (0 if share == 1 else 0.25)) for head, own in single.items()}
            right[share, seed] = {"shared": shared, "single": single}
    result = summary(right, argparse.Namespace(shares=shares, seeds=seeds, tokens=1))
    (tmp_path / "sharing.json").write_text(json.dumps(result), encoding="utf-8")
    curve = learning_curve(*read_sharing(tmp_path / "sharing.json"))
    assert curve is not None
    assert curve["tasks"] == ["mood", "stars"]
    few, all_ = curve["shares"]
    assert few["interval"] == next(whole["difference_interval"] for whole in result["shares"] if whole["share"] == 0.1)
    assert few["interval"][0] > 0.05
    assert all_["difference"] == 0
    assert 0.2 < few["single_needs"] < 0.5  # half of the way from 0.6 to 0.8, on a logarithmic scale
    assert "Yes, with 10 % of the labels." in curve["answer"]


def test_a_result_is_measured_once_and_read_back_as_it_was(tmp_path: Path) -> None:
    measured = {"shared": {"mood": np.array([True, False, True])}, "seconds": 1.5}
    path = tmp_path / "runs" / "one.json"
    for measure in (lambda: measured, lambda: pytest.fail("measured again")):
        found = remembered(path, measure)
        assert found["shared"]["mood"].dtype == bool
        assert found["shared"]["mood"].tolist() == [True, False, True]
        assert found["seconds"] == 1.5
    assert [each.name for each in path.parent.iterdir()] == ["one.json"]


def kinds_shop(texts: list[str]) -> Any:
    """A workshop that knows the head ``kind``, of ten classes, and keeps a text as the number that it is."""

    def prepare(given: list[str]) -> list[Prepared]:
        texts.extend(given)
        return [Prepared(np.array([int(text)], np.int32), np.zeros(0, np.int32)) for text in given]

    heads = {"kind": [f"class {kind}" for kind in range(10)]}
    return SimpleNamespace(corpus=SimpleNamespace(heads=heads, files={}), codec=SimpleNamespace(prepare=prepare))


def test_rows_are_spread_over_a_file_that_is_sorted_by_class(tmp_path: Path) -> None:
    rows = [{"text": str(10 * kind + i), "label": f"class {kind}"} for kind in range(10) for i in range(10)]
    (tmp_path / "kinds.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    dataset = Dataset("kinds", file="kinds.jsonl", labels={"kind": "label"})
    recipe = Recipe("kinds", heads={"kind": Head()}, datasets=[dataset], evaluation=[Trial("kind", "kinds.jsonl")])

    def judged(most: int) -> tuple[Judged, list[str], str]:
        texts: list[str] = []
        shop = kinds_shop(texts)
        (found,) = judged_rows(recipe, shop, tmp_path, most)
        return found, texts, digest(recipe, shop, [found])

    found, texts, known = judged(60)
    assert sorted(set(texts), key=int) == texts
    assert (len(texts), texts[0], texts[-1]) == (60, "0", "99")
    assert np.bincount(found.truth).tolist() == [6] * 10
    first = replace(found, texts=kinds_shop([]).codec.prepare([str(i) for i in range(60)]), truth=np.arange(60) // 10)
    assert digest(recipe, kinds_shop([]), [first]) != known  # what was remembered of other rows is not these rows'
    whole, texts, _ = judged(100)
    assert texts == [str(i) for i in range(100)]
    assert len(whole.truth) == len(judged(1000)[0].truth) == 100


def summary_of(gaps: Mapping[float, list[float]]) -> dict[str, Any]:
    """The bench's result where, by share and seed, the shared model is right on this part of the rows and the single
    ones on none."""
    rows = np.arange(1000)
    right = {
        (share, seed): {"shared": {"mood": rows < 1000 * gap}, "single": {"mood": rows < 0}}
        for share, by_seed in gaps.items()
        for seed, gap in enumerate(by_seed)
    }
    return summary(right, argparse.Namespace(shares=[*gaps], seeds=len(next(iter(gaps.values()))), tokens=1))


def test_the_interval_is_over_the_seeds_too() -> None:
    (whole,) = summary_of({1.0: [0.1, 0.5, 0.6]})["shares"]
    low, high = whole["difference_interval"]
    assert low < 0.15
    assert high > 0.55
    assert whole["by_seed"] == [0.1, 0.5, 0.6]


def test_answer_and_page_say_what_the_intervals_are_over(tmp_path: Path) -> None:
    path = tmp_path / "sharing.json"

    def told(result: Mapping[str, Any]) -> tuple[str, str]:
        path.write_text(json.dumps(result), encoding="utf-8")
        points, intervals = read_sharing(path)
        curve = learning_curve(points, intervals)
        assert curve is not None
        return curve["answer"], sharing_section(points, curve)

    result = summary_of({1.0: [0.1, 0.3, 0.2], 0.1: [0.3, 0.4, 0.5]})
    for text in told(result):
        assert "Intervals are at 95 % over 3 seeds and the rows." in text
    for text in told(summary_of({1.0: [0.1], 0.1: [0.3]})):
        assert "over the rows of one seed: another may say otherwise" in text
    earlier = [{key: value for key, value in point.items() if key != "seeds"} for point in result["points"]]
    answer, page = told(result | {"points": earlier})
    assert "95 %" not in answer
    assert "those of earlier benches leave the seeds out" in page
    result["points"][0]["seeds"] = 0
    with pytest.raises(DataError, match="point 0: seeds"):
        told(result)


def test_encoder_work_is_that_of_streams_with_several_heads() -> None:
    torch.manual_seed(0)
    heads = {head: ["1", "2"] for head in ("sentiment", "stars", "intent.shop")}
    shop: Any = SimpleNamespace(encoder=build_encoder(CONFIG), corpus=SimpleNamespace(heads=heads))
    texts = make_corpus().prepared
    judged = {head: Judged(head, f"{head}.jsonl", texts, np.zeros(len(texts), np.int64)) for head in heads}
    found = encoder_work(shop, judged)
    assert [*found] == ["reviews"]
    assert (found["reviews"]["heads"], found["reviews"]["passes"]) == (2, 0.5)
    assert found["reviews"]["time"] > 0
    assert encoder_work(shop, {"stars": judged["stars"]}) == {}  # one head, and a stream of none
