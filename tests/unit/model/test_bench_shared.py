"""The bench of shared against single models: its draw of fewer labels, and that the report reads what it writes."""

import argparse
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.assess.sharing import learning_curve, read_sharing
from tests.bench.bench_shared import summary
from tests.bench.paired import fewer_labels, remembered
from tests.tiny_training import make_corpus


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
