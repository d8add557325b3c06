"""Figures against scikit-learn, and the rules of evaluation on a scorer whose answers are known."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.metrics import log_loss as sk_log_loss

from model import metrics
from model.assess.detail import assess_files
from model.assess.evaluate import evaluate_files, evaluate_texts
from model.data import Columns
from model.errors import DataError
from model.scoring import Floats, Prepared

tied = st.lists(st.tuples(st.sampled_from([0.3, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=100)
rng = np.random.default_rng(3)
EVERY = ["negative", "neutral", "positive"]


def test_metrics_equal_scikit_learn() -> None:
    truth, probabilities = rng.integers(0, 4, 500), rng.dirichlet(np.ones(4), 500)
    guess = probabilities.argmax(1)
    assert metrics.macro_f1(truth, guess, 4) == pytest.approx(f1_score(truth, guess, average="macro"))
    assert metrics.log_loss(probabilities, truth) == pytest.approx(sk_log_loss(truth, probabilities))
    scores, binary = rng.integers(0, 20, 300) / 20, rng.integers(0, 2, 300)  # with ties
    assert metrics.auc(scores, binary) == pytest.approx(roc_auc_score(binary, scores))
    assert np.isnan(metrics.auc(scores, np.ones(300)))


def test_macro_f1_of_a_class_never_guessed_is_zero() -> None:
    truth, guess = np.array([0, 0, 1]), np.array([0, 0, 0])
    assert metrics.macro_f1(truth, guess, 3) == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=100))
def test_ece_is_bounded_and_zero_when_exact(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    assert 0 <= metrics.ece(confidence, right) <= 1
    assert metrics.ece(right.astype(float), right) == pytest.approx(0)


@given(tied.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_rows_changes_no_calibration(orders: tuple[list[tuple[float, bool]], ...]) -> None:
    given_, other = ([np.array(column) for column in zip(*rows, strict=True)] for rows in orders)
    assert (metrics.reliability(*given_) == metrics.reliability(*other)).all()
    assert metrics.ece(*given_) == metrics.ece(*other)


def test_rows_of_one_confidence_that_is_right_have_no_ece() -> None:
    confidence, right = np.full(1000, 0.3), np.arange(1000) < 300
    assert metrics.ece(confidence, right) == pytest.approx(0)
    assert metrics.reliability(confidence, right)[:, 2].sum() == 1000


def test_ece_of_one_bin() -> None:
    assert metrics.ece(np.array([0.9, 0.9]), np.array([True, False]), bins=1) == pytest.approx(0.4)


class KnownScorer:
    """Answers with the probabilities spelt in the text: '0.1 0.2 0.7'. ``heads``: what its manifest says of them."""

    version, space, hidden = "known", "known", 3

    def __init__(self, threshold: float | None = None, **heads: Mapping[str, Any]) -> None:
        self.labels = {
            "sentiment": ["negative", "neutral", "positive"],
            "intent.general": ["pay", "fly", "oos"],
            "stars": ["1", "2", "3"],
        }
        self._threshold = threshold
        self._heads = heads

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        return [
            Prepared(np.array([round(float(x) * 1000) for x in t.split()], np.int32), np.zeros(0, np.int32))
            for t in texts
        ]

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        return np.array([p.ids / 1000 for p in prepared], np.float32)

    def classify(self, head: str, encoded: Floats) -> Floats:
        assert head in self.labels
        return encoded

    def vectors(self, encoded: Floats) -> Floats:
        return encoded

    def threshold(self, head: str) -> float | None:
        return self._threshold if head.startswith("intent") else None

    def head(self, name: str) -> Mapping[str, Any]:
        return self._heads.get(name, {})

    def tensor(self, name: str) -> Floats:
        raise KeyError(name)


def evaluate(scorer: KnownScorer, task: str, rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
    texts, labels = zip(*rows, strict=True)
    return evaluate_texts(scorer, task, texts, labels)


def test_decision_weights_choose_the_answer_and_leave_the_probabilities_as_they_are() -> None:
    rows = [("0.6 0.3 0.1", "neutral"), ("0.6 0.1 0.3", "positive"), ("0.9 0.05 0.05", "negative")]
    plain = evaluate(KnownScorer(), "sentiment", rows)
    weighted = evaluate(KnownScorer(sentiment={"decision_weights": [1.0, 3.0, 2.5]}), "sentiment", rows)
    assert (plain["accuracy"], weighted["accuracy"]) == (0.33333, 1.0)
    assert plain["log_loss"] == weighted["log_loss"]
    assert weighted["ece"] == pytest.approx(
        np.mean([0.7, 0.7, 0.1])
    )  # three bins of one row: what was said of the answer
    two = evaluate(KnownScorer(sentiment={"decision_weights": [1.0, 3.0, 2.5]}), "sentiment", rows[1:])
    assert two["accuracy"] == 1.0  # among negative and positive, with the weights of those


def test_labels_of_an_older_artifact_are_known_in_the_words_that_rows_are_read_as(tmp_path: Path) -> None:
    scorer = KnownScorer()
    scorer.labels["sentiment"] = ["差（评）", "neutral", "positive"]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "0.6 0.3 0.1", "sentiment": "差（评）"}), encoding="utf-8")
    figures = evaluate_files(scorer, "sentiment", [tmp_path / "rows.jsonl"])
    assert (figures["n"], figures["accuracy"]) == (1, 1.0)


def test_labels_that_are_typed_and_those_of_older_scores_are_known_by_what_they_look_like(tmp_path: Path) -> None:
    scorer = KnownScorer(stars={"kind": "score"})
    scorer.labels |= {"sentiment": ["好评(带图)", "中", "差"], "stars": ["1.0", "2.0", "3.0"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "0.6 0.3 0.1", "stars": "1.0"}), encoding="utf-8")
    assert evaluate_files(scorer, "stars", [tmp_path / "rows.jsonl"])["accuracy"] == 1.0
    found = evaluate_texts(scorer, "sentiment", ["0.6 0.3 0.1"], ["好评(带图)"], among=["好评（带图）", "差 "])
    assert found["accuracy"] == 1.0
    with pytest.raises(DataError, match="--labels: label '坏' is unknown to head 'sentiment'"):
        evaluate_texts(scorer, "sentiment", ["0.6 0.3 0.1"], ["差"], among=["坏"])


def test_a_file_of_two_classes_is_judged_on_two() -> None:
    rows = [
        ("0.3 0.5 0.2", "negative"),
        ("0.1 0.8 0.102", "positive"),
        ("0.4 0.4 0.2", "positive"),
        ("0.5 0.0 0.5", "negative"),
    ]
    figures = evaluate(KnownScorer(), "sentiment", rows)
    assert figures["accuracy"] == 0.75
    assert figures["n"] == 4
    assert figures["auc"] == pytest.approx(roc_auc_score([0, 1, 1, 0], [0.4, 0.505, 1 / 3, 0.5]), abs=1e-5)
    conditional = [[0.6, 0.4], [0.1 / 0.202, 0.102 / 0.202], [2 / 3, 1 / 3], [0.5, 0.5]]
    assert figures["log_loss"] == pytest.approx(sk_log_loss([0, 1, 1, 0], conditional), abs=1e-4)


def test_a_file_of_one_label_is_judged_on_all() -> None:
    rows = [("0.1 0.2 0.7", "positive")] * 3 + [("0.6 0.2 0.2", "positive")]
    figures = evaluate(KnownScorer(), "sentiment", rows)
    assert figures["accuracy"] == 0.75
    assert figures["log_loss"] == pytest.approx(-(3 * math.log(0.7) + math.log(0.2)) / 4, abs=1e-5)
    chosen = evaluate_texts(KnownScorer(), "sentiment", *zip(*rows, strict=True), among=["positive"])
    assert chosen["accuracy"] == 1
    assert math.copysign(1, chosen["log_loss"]) == 1  # no -0.0


def test_figures_of_rows_in_scope_alone_say_how_many_these_are() -> None:
    scorer = KnownScorer(threshold=0.6)
    scorer.labels["intent.bank"] = ["pay", "lend", "ask"]
    rows = [("0.9 0.1 0.0", "pay"), ("0.2 0.7 0.1", "lend"), *[("0.2 0.3 0.5", "oos")] * 3]
    assert (evaluate(scorer, "intent.bank", rows)["n"], evaluate(scorer, "intent.bank", rows)["judged"]) == (5, 2)
    assert evaluate(scorer, "intent.bank", rows[2:])["judged"] == 0
    assert "judged" not in evaluate(scorer, "intent.bank", rows[:2])
    assert "judged" not in evaluate(KnownScorer(threshold=0.5), "intent.general", [("0.2 0.3 0.5", "oos")])


def test_scope_is_judged_with_the_threshold() -> None:
    rows = [
        ("0.9 0.1 0.0", "pay"),  # right and sure
        ("0.4 0.35 0.25", "pay"),  # right but turned away
        ("0.1 0.8 0.1", "pay"),  # wrong and sure
        ("0.4 0.3 0.3", "oos"),  # turned away by the threshold
        ("0.1 0.1 0.8", "oos"),  # by its own class
        ("0.7 0.2 0.1", "oos"),  # let in
    ]
    figures = evaluate(KnownScorer(threshold=0.5), "intent.general", rows)
    assert figures["in_scope_accuracy"] == pytest.approx(1 / 3, abs=1e-5)
    assert figures["oos_recall"] == pytest.approx(2 / 3, abs=1e-5)
    assert "oos_recall" not in evaluate(KnownScorer(threshold=0.5), "intent.general", rows[:3])
    assert "in_scope_accuracy" not in evaluate(KnownScorer(), "intent.general", rows)


def test_rows_out_of_scope_are_judged_by_a_threshold_or_a_label_of_their_own_alone(tmp_path: Path) -> None:
    rows = [("0.9 0.1 0.0", "negative"), *[("0.2 0.3 0.5", "oos")] * 8]
    with pytest.raises(DataError, match="'sentiment' has neither a threshold nor that label"):
        evaluate(KnownScorer(threshold=0.5), "sentiment", rows)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "sentiment": label}) for t, label in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: label 'oos' is for heads that turn messages away"):
        evaluate_files(KnownScorer(), "sentiment", [path])
    scorer = KnownScorer(threshold=0.6)
    scorer.labels["intent.bank"] = ["pay", "lend", "ask"]
    figures = evaluate(scorer, "intent.bank", [("0.9 0.1 0.0", "pay"), ("0.2 0.3 0.5", "oos")])
    assert (figures["n"], figures["oos_recall"]) == (2, 1)


def test_a_score_is_judged_by_its_expectation_on_the_rows_that_have_one() -> None:
    rows = [("0.5 0.5 0.0", "2"), ("0 0 1", "1")]
    assert evaluate(KnownScorer(), "stars", rows)["mae"] == pytest.approx((0.5 + 2) / 2)
    assert "mae" not in evaluate(KnownScorer(stars={"kind": "classes"}), "stars", rows)
    scorer = KnownScorer(rating={"kind": "score"})
    scorer.labels["rating"] = ["10", "2", "3"]
    assert evaluate(scorer, "rating", rows[:1] * 2)["mae"] == pytest.approx(4)


def test_rows_are_read_as_given_else_as_in_training_else_as_the_public_data_sets_have_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"subject": "0.9", "body": "0.1 0.0", "text": "0.0 0.1 0.9"}
    row |= {"mood": "negative", "sentiment": "positive", "stars": "neutral"}
    path.write_text(json.dumps(row), encoding="utf-8")

    def right(scorer: KnownScorer, columns: Columns | None = None) -> tuple[float, float]:
        figures = evaluate_files(scorer, "sentiment", [path], columns=columns, among=EVERY)
        return figures["accuracy"], figures["log_loss"]

    told = KnownScorer(sentiment={"text": ["subject", "body"], "field": "mood"})
    assert right(told) == right(KnownScorer()) == (1, pytest.approx(-math.log(0.9), abs=1e-4))
    assert right(KnownScorer(), Columns(("subject", "body")))[0] == 0
    assert right(told, Columns(label="stars"))[0] == 0
    with pytest.raises(DataError, match=r"rows\.jsonl: label field 'gone' is missing"):
        right(told, Columns(label="gone"))
    own = KnownScorer()
    own.labels["mood"] = own.labels["sentiment"]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: label 'negative' is unknown to head 'stars'"):
        evaluate_files(own, "stars", [path], columns=Columns(label="mood"))
    assert evaluate_files(own, "mood", [path])["n"] == 1


def test_bad_requests_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no head 'emotion'"):
        evaluate(KnownScorer(), "emotion", [("1 0 0", "happy")])
    with pytest.raises(DataError, match="label 'great' is unknown"):
        evaluate(KnownScorer(), "sentiment", [("1 0 0", "great")])
    with pytest.raises(DataError, match="no head 'emotion'"):  # before any file is looked at
        evaluate_files(KnownScorer(), "emotion", [tmp_path / "none.jsonl"])
    with pytest.raises(DataError, match="click have their own"):
        evaluate_files(KnownScorer(), "click", [], columns=Columns(("subject",)))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "1 0 0", "sentiment": "negative"}\n{"sentiment": "positive"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: field 'text' is missing"):
        evaluate_files(KnownScorer(), "sentiment", [path])


def test_rows_without_the_label_asked_for_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"text": "0.9 0.1 0.0", "sentiment": "negative", "stars": None},
        {"text": "0.1 0.8 0.1", "sentiment": None, "stars": 2},
        {"text": "0.8 0.1 0.1", "stars": 1},
        {"text": "0.2 0.1 0.7", "sentiment": "positive", "stars": 3},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = {task: evaluate_files(KnownScorer(), task, [path]) for task in ("sentiment", "stars")}
    assert {task: (figures["n"], figures["unlabelled"]) for task, figures in found.items()} == {
        "sentiment": (2, 2),
        "stars": (3, 1),
    }
    assert found["sentiment"]["accuracy"] == found["stars"]["accuracy"] == 1
    assert assess_files(KnownScorer(), "stars", [path])["unlabelled"] == 1
    path.write_text(json.dumps(lines[0]), encoding="utf-8")
    assert "unlabelled" not in evaluate_files(KnownScorer(), "sentiment", [path])
    with pytest.raises(DataError, match="label field 'stars' is missing or null in every row"):
        evaluate_files(KnownScorer(), "stars", [path])
