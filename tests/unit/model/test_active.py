"""Active learning: uncertain texts, far apart, none twice."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from model.errors import DataError
from model.scoring import load_scorer
from model.training import unlabelled
from model.training.active import COUNT_MAX, POOL_FACTOR, run_active, spread, uncertainty
from tests.spoken_scorer import RARE, SpokenScorer
from tests.tiny_artifact import make_tiny_artifact


def texts(path: Path, *spoken: str) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in spoken), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_uncertainty_of_known_answers() -> None:
    answers = np.array([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0.6, 0.3, 0.1]], np.float32)
    np.testing.assert_allclose(uncertainty(answers, "margin"), [0, 1, 1, 0.7], atol=1e-6)
    entropy = uncertainty(answers, "entropy")
    np.testing.assert_allclose(entropy, [0, np.log(2) / np.log(3), 1, 0.8173], atol=1e-4)


@given(npst.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(2, 6)), elements=st.floats(0, 1, width=32)))
def test_uncertainty_is_from_nothing_to_one(raw: np.ndarray) -> None:
    answers = (raw + 1e-3) / (raw + 1e-3).sum(1, keepdims=True)
    for measure in ("margin", "entropy"):
        found = uncertainty(answers, measure)
        assert ((found >= 0) & (found <= 1)).all()


@given(
    npst.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(-3, 3).map(float)),
    st.integers(1, 40),
    st.integers(0, 9),
)
def test_a_choice_has_no_two_alike_and_goes_on_to_the_last(vectors: np.ndarray, count: int, seed: int) -> None:
    doubts = np.random.default_rng(seed).random(len(vectors))
    chosen = spread(vectors, doubts, count)
    places = [tuple(place) for place in vectors[chosen].tolist()]
    assert len(set(places)) == len(places) == min(count, len({tuple(place) for place in vectors.tolist()}))
    assert chosen[0] == doubts.argmax()
    assert chosen[: count // 2 + 1] == spread(vectors, doubts, count // 2 + 1)[: len(chosen)]


def test_the_guess_is_what_the_head_answers(tmp_path: Path) -> None:
    path = texts(tmp_path / "t.jsonl", "0.52 0.28 0.20 | 1 1")
    run_active(SpokenScorer(heads=RARE), "sentiment", path, 1, out := tmp_path / "out.jsonl")
    (row,) = read(out)
    assert (row["guess"], row["probability"]) == ("neutral", 0.28)


def test_uncertain_texts_far_apart_come_first(tmp_path: Path) -> None:
    path = texts(
        tmp_path / "t.jsonl",
        "0.98 0.01 0.01 | 0 1",  # sure
        "0.5 0.5 0 | 1 0",  # the most uncertain
        "0.5 0.49 0.01 | 0.99 0.01",  # as uncertain, and the same again
        "0.52 0.48 0 | 0 -1",  # uncertain and elsewhere
        "0.5 0.5 0 |  1 0",  # a repeat
        "0.5  0.5 0.0 | 1 0",  # another text, the same to the model
    )
    summary = run_active(SpokenScorer(), "sentiment", path, 2, tmp_path / "pick.jsonl")
    rows = read(tmp_path / "pick.jsonl")
    assert [row["line"] for row in rows] == [2, 4]
    expected = {"text": "0.5 0.5 0 | 1 0", "line": 2, "guess": "negative", "probability": 0.5, "uncertainty": 1.0}
    assert rows[0] == expected
    json.dumps(summary)
    assert summary["rows"] == 6
    assert summary["repeated_or_labelled"] == 1
    assert summary["chosen"] == 2
    assert summary["by_guess"] == {"negative": 2}
    everything = run_active(SpokenScorer(), "sentiment", path, 6, tmp_path / "all.jsonl", measure="entropy")
    assert everything["chosen"] == 4


def test_rows_keep_their_fields_so_that_the_same_recipe_reads_them(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "a1", "subject": "0.5", "body": "0.5 0 | 1 0", "tags": ["x"], "guess": "ours is another"},
        {"id": "a2", "subject": "0.6", "body": "0.4 0 | 0 1"},
    ]
    path = tmp_path / "tickets.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    fields = ("subject", "body")
    run_active(SpokenScorer(), "sentiment", path, 2, tmp_path / "pick.jsonl", fields=fields)
    first, second = read(tmp_path / "pick.jsonl")
    assert first == rows[0] | {
        "text": "0.5 0.5 0 | 1 0",
        "line": 1,
        "guess": "negative",
        "probability": 0.5,
        "uncertainty": 1.0,
    }
    assert second["id"] == "a2"
    again = run_active(
        *(SpokenScorer(), "sentiment", path, 2, tmp_path / "none.jsonl"),
        fields=fields,
        labelled=[tmp_path / "pick.jsonl"],
    )
    assert again["chosen"] == 0


def test_what_is_labelled_is_not_picked(tmp_path: Path) -> None:
    path = texts(tmp_path / "t.jsonl", "0.5 0.5 0 | 1 0", "0.6 0.4 0 | 0 1")
    known = texts(tmp_path / "known.jsonl", "0.5 0.5 0 | 1 0")
    run_active(SpokenScorer(), "sentiment", path, 2, tmp_path / "pick.jsonl", labelled=[known])
    assert [row["line"] for row in read(tmp_path / "pick.jsonl")] == [2]
    summary = run_active(SpokenScorer(), "sentiment", path, 2, tmp_path / "none.jsonl", labelled=[known, path])
    assert summary["chosen"] == 0
    assert read(tmp_path / "none.jsonl") == []


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.integers(1, 5), st.integers(1, 9))
def test_batches_do_not_matter(spoken: list[int], count: int, batch: int) -> None:
    lines = [f"0.{50 + n // 2} 0.2 0.1 | {n % 7} {n % 5}" for n in spoken]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path, scorer = texts(Path(folder) / "t.jsonl", *lines), SpokenScorer()
        whole = run_active(scorer, "sentiment", path, count, Path(folder) / "whole.jsonl")
        patch.setattr(unlabelled, "BATCH", batch)
        scorer = SpokenScorer()
        parts = run_active(scorer, "sentiment", path, count, Path(folder) / "parts.jsonl")
        assert scorer.largest_batch <= batch
        assert read(Path(folder) / "whole.jsonl") == read(Path(folder) / "parts.jsonl")
    assert whole | {"out": ""} == parts | {"out": ""}
    assert whole["pool"] <= POOL_FACTOR * count
    assert 1 <= whole["chosen"] <= count


def test_what_cannot_be_done_says_why(tmp_path: Path) -> None:
    out, path = tmp_path / "pick.jsonl", texts(tmp_path / "t.jsonl", "0.5 0.5 0")
    with pytest.raises(DataError, match="no head 'mood'"):
        run_active(SpokenScorer(), "mood", path, 1, out)
    with pytest.raises(DataError, match="unknown measure 'luck'; use margin or entropy"):
        run_active(SpokenScorer(), "sentiment", path, 1, out, measure="luck")
    for count in (0, COUNT_MAX + 1):
        with pytest.raises(DataError, match=f"{count} texts cannot be chosen"):
            run_active(SpokenScorer(), "sentiment", path, count, out)
    with pytest.raises(DataError, match=r"t\.jsonl: no row has the text field 'titel'; rows have 'text'"):
        run_active(SpokenScorer(), "sentiment", path, 1, out, fields=("titel", "text"))
    (tmp_path / "broken.jsonl").write_text('{"text": "1 0 0"}\n\n[]\n')
    with pytest.raises(DataError, match=r"broken\.jsonl:3: a JSON list"):
        run_active(SpokenScorer(), "sentiment", tmp_path / "broken.jsonl", 1, out)
    assert not out.exists()


def test_on_a_real_scorer(tmp_path: Path) -> None:
    scorer = load_scorer(make_tiny_artifact(tmp_path / "tiny"), device="cpu")
    path = texts(tmp_path / "t.jsonl", *(f"good movie {i} 退款" for i in range(40)))
    first = run_active(scorer, "intent.banking", path, 7, tmp_path / "pick.jsonl")
    rows = read(tmp_path / "pick.jsonl")
    assert len({row["line"] for row in rows}) == len(rows) == 7
    assert first == run_active(scorer, "intent.banking", path, 7, tmp_path / "pick.jsonl")
