"""Self-training: which texts are labelled, and that a recipe reads what is written."""

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from model.scoring import load_scorer
from model.training import unlabelled
from model.training.examples import read_corpus
from model.training.recipe import load_recipe
from model.training.selftrain import run_selftrain
from tests.spoken_scorer import LABELS, RARE, SpokenScorer
from tests.tiny_artifact import make_tiny_artifact


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(path: Path, *spoken: str) -> Path:
    return write(path, [{"text": text} for text in spoken])


def test_sure_texts_are_labelled_and_the_rest_is_counted(tmp_path: Path) -> None:
    known = write(tmp_path / "known.jsonl", [{"text": "0.96 0.02 0.02", "sentiment": "negative"}])
    path = texts(
        tmp_path / "t.jsonl",
        *(
            "0.9 0.05 0.05",
            "0.01 0.02 0.97",
            "0.5 0.3 0.2",
            " ",
            "0.01  0.02 0.97 ",
            "0.96 0.02 0.02",
            "0.00 0.01 0.99",
        ),
    )
    out = tmp_path / "guessed.jsonl"
    summary = run_selftrain(SpokenScorer(), "sentiment", path, out, confidence=0.9, labelled=[known])
    assert read(out) == [
        {"text": text, "sentiment": label, "confidence": top, "line": line, "model": "spoken"}
        for text, label, top, line in (
            ("0.9 0.05 0.05", "negative", 0.9, 1),
            ("0.01 0.02 0.97", "positive", 0.97, 2),
            ("0.00 0.01 0.99", "positive", 0.99, 7),
        )
    ]
    json.dumps(summary)
    assert summary["rows"] == 7
    assert summary["blank"] == 1
    assert summary["repeated_or_labelled"] == 2
    assert summary["unsure"] == 1
    assert summary["written"] == 3
    assert summary["by_class"] == {"negative": 1, "positive": 2}


def test_what_a_head_answers_is_the_label_and_its_probability_what_must_be_sure(tmp_path: Path) -> None:
    path = texts(tmp_path / "t.jsonl", "0.52 0.28 0.20", "0.4 0.6 0.0", "0.9 0.1 0.0")
    run_selftrain(SpokenScorer(heads=RARE), "sentiment", path, out := tmp_path / "guessed.jsonl", confidence=0.5)
    assert [(row["sentiment"], row["confidence"]) for row in read(out)] == [("neutral", 0.6), ("negative", 0.9)]


def test_a_recipe_reads_what_was_written(tmp_path: Path) -> None:
    path = texts(tmp_path / "t.jsonl", "0.95 0.03 0.02", "0.01 0.02 0.97")
    summary = run_selftrain(SpokenScorer(), "intent.shop", path, tmp_path / "g.jsonl")
    entry = {"name": "g", "file": "g.jsonl", "labels": {"intent.shop": "intent"}, "weight": 0.3, "guessed": True}
    assert summary["dataset"] == entry
    recipe = {"name": "r", "body": "b", "heads": {"intent.shop": {}}, "datasets": [summary["dataset"]]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    read = load_recipe(tmp_path / "r.yaml")
    assert read.datasets[0].guessed
    assert [e.labels["intent.shop"] for e in read_corpus(read, tmp_path)[0]] == ["refund", "oos"]


def test_the_surest_of_a_class_are_kept(tmp_path: Path) -> None:
    tops = [0.95, 0.99, 0.96, 0.99, 0.98]
    path = texts(tmp_path / "t.jsonl", *(f"{top} {1 - top:.4f} 0.000{i}" for i, top in enumerate(tops)))
    summary = run_selftrain(SpokenScorer(), "sentiment", path, tmp_path / "g.jsonl", per_class_max=3)
    assert [row["line"] for row in read(tmp_path / "g.jsonl")] == [2, 4, 5]
    assert summary["over_the_cap"] == 2


def test_an_intent_must_be_in_scope(tmp_path: Path) -> None:
    path = texts(tmp_path / "t.jsonl", "0.95 0.03 0.02", "0.99 0.005 0.005")
    summary = run_selftrain(SpokenScorer(threshold=0.97), "intent.shop", path, tmp_path / "g.jsonl", confidence=0.9)
    assert summary["written"] == 1
    assert summary["confidence"] == 0.97


@given(
    st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any), min_size=1, max_size=40),
    st.floats(0.34, 1),
    st.integers(1, 4),
)
def test_no_unsure_text_no_repeat_no_class_over_its_cap(counts: list[list[int]], confidence: float, cap: int) -> None:
    spoken = [" ".join(f"{n / sum(row):.5f}" for n in row) for row in counts]
    with TemporaryDirectory() as folder:
        path, out = texts(Path(folder) / "t.jsonl", *spoken), Path(folder) / "g.jsonl"
        sure = {text for text in spoken if max(map(float, text.split())) >= confidence + 1e-6}
        try:
            run_selftrain(SpokenScorer(), "sentiment", path, out, confidence=confidence, per_class_max=cap)
        except DataError:
            assert not sure
            return
        rows = read(out)
    assert all(max(map(float, str(row["text"]).split())) >= confidence - 1e-5 for row in rows)
    assert len({row["text"] for row in rows}) == len(rows)
    assert all(n <= cap for n in Counter(row["sentiment"] for row in rows).values())
    for row in rows:
        p = [float(x) for x in str(row["text"]).split()]
        assert p[LABELS["sentiment"].index(str(row["sentiment"]))] == max(p)


def test_memory_is_bounded_by_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlabelled, "BATCH", 8)
    scorer = SpokenScorer()
    path = texts(tmp_path / "t.jsonl", *(f"0.97 0.02 0.{i:05}" for i in range(50)))
    assert run_selftrain(scorer, "sentiment", path, tmp_path / "g.jsonl")["written"] == 50
    assert scorer.largest_batch == 8


def test_what_cannot_be_done_says_why(tmp_path: Path) -> None:
    out = tmp_path / "g.jsonl"
    sure = texts(tmp_path / "sure.jsonl", "0.97 0.02 0.01")

    def refused(message: str, path: Path = sure, head: str = "sentiment", **settings: object) -> None:
        with pytest.raises(DataError, match=message):
            run_selftrain(SpokenScorer(), head, path, settings.pop("out", out), **settings)  # type: ignore[arg-type]
        assert not out.exists()

    refused("no head 'mood'; its heads: sentiment", head="mood")
    refused(r"confidence 1\.5", confidence=1.5)
    refused("at most 0 rows", per_class_max=0)
    refused("none of 1 texts reaches 0.980 on head sentiment .the surest: 0.970", confidence=0.98)
    refused("all are blank or known", labelled=[sure])
    refused(r"broken\.jsonl:2: not JSON", write(tmp_path / "broken.jsonl", [{"text": "1 0 0"}, "{"]))
    refused(r"number\.jsonl:1: field 'text' is int", write(tmp_path / "number.jsonl", [{"text": 5}]))
    refused(r"known\.jsonl:1: field 'text' is missing", labelled=[write(tmp_path / "known.jsonl", [{}])])
    refused(r"sure\.jsonl: no row has the text field 'titel'; rows have 'text'", fields=("titel", "text"))
    refused(r"empty\.jsonl: no rows", texts(tmp_path / "empty.jsonl"))
    refused(r"absent\.jsonl: cannot be read", tmp_path / "absent.jsonl")
    refused("cannot be written", out=tmp_path / "no folder" / "g.jsonl")


def test_on_a_real_scorer(tmp_path: Path) -> None:
    scorer = load_scorer(make_tiny_artifact(tmp_path / "tiny"), device="cpu")
    path = texts(tmp_path / "t.jsonl", "good movie", "bad card", "退款 快递", "\ud800 好", "late order")
    run_selftrain(scorer, "sentiment", path, tmp_path / "g.jsonl", confidence=0.34)
    rows = read(tmp_path / "g.jsonl")
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[3]["text"] == "\ud800 好"
