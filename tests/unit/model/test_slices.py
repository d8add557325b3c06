"""Intervals, classes, calibration and slices: against plain resampling, scikit-learn and rows known by hand."""

import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from model import metrics
from model.assess import detail, slices
from model.assess.detail import assess_files, assess_texts
from model.assess.evaluate import evaluate_texts
from model.errors import DataError
from model.warmth import EARLIER, NOBODY, by_warmth, earlier_events, earlier_rows
from tests.spoken_scorer import SpokenScorer

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=80)


def arrays(found: list[tuple[int, int]]) -> tuple[metrics.Array, metrics.Array]:
    return np.array([t for t, _ in found]), np.array([g for _, g in found])


@given(pairs)
def test_confusion_and_classes_are_scikit_learns(found: list[tuple[int, int]]) -> None:
    truth, guess = arrays(found)
    matrix = metrics.confusion(truth, guess, 4)
    assert (matrix == confusion_matrix(truth, guess, labels=range(4))).all()
    expected = precision_recall_fscore_support(truth, guess, labels=range(4), zero_division=0)
    columns = metrics.per_class(matrix)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert columns[name] == pytest.approx(column)


@given(pairs)
def test_intervals_are_repeatable_ordered_and_within_bounds(found: list[tuple[int, int]]) -> None:
    matrix = metrics.confusion(*arrays(found), 4)
    intervals = metrics.bootstrap(matrix, resamples=200)
    assert intervals == metrics.bootstrap(matrix, resamples=200)
    for low, high in intervals.values():
        assert 0 <= low <= high <= 1


def test_the_bootstrap_is_that_of_rows_drawn_one_by_one() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 150)
    guess = np.where(rng.random(150) < 0.7, truth, rng.integers(0, 3, 150))
    intervals = metrics.bootstrap(metrics.confusion(truth, guess, 3), resamples=4000)
    draws = rng.integers(0, 150, (2000, 150))
    plain = [(metrics.accuracy(truth[i], guess[i]), metrics.macro_f1(truth[i], guess[i], 3)) for i in draws]
    for name, values in zip(("accuracy", "macro_f1"), np.array(plain).T, strict=True):
        assert intervals[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.012)


def test_ninety_five_percent_of_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(200):
        right = int((rng.random(200) < 0.8).sum())
        low, high = metrics.bootstrap(np.array([[right, 200 - right], [0, 0]]), seed=seed, resamples=300)["accuracy"]
        held += low <= 0.8 <= high
    assert 178 <= held <= 199


@given(st.integers(0, 40), st.integers(0, 40))
def test_wilson_is_scipys(hits: int, misses: int) -> None:
    n = hits + misses
    ((low, high),) = metrics.wilson(np.array([hits]), np.array([n]))
    expected = binomtest(hits, n).proportion_ci(0.95, "wilson") if n else (0, 1)
    assert (low, high) == pytest.approx(tuple(expected), abs=1e-9)


@given(pairs)
def test_class_intervals_hold_their_figures_and_have_a_width(found: list[tuple[int, int]]) -> None:
    matrix = metrics.confusion(*arrays(found), 4)
    figures, intervals = metrics.per_class(matrix), metrics.class_intervals(matrix)
    assert intervals.keys() == {"precision", "recall", "f1"}
    for name, ends in intervals.items():
        assert ends.shape == (4, 2)
        assert (ends[:, 0] <= figures[name] + 1e-12).all()
        assert (figures[name] <= ends[:, 1] + 1e-12).all()
        assert (ends[:, 1] - ends[:, 0] > 0.01).all()  # of at most eighty rows, also where all of them are right
        assert (ends >= 0).all()
        assert (ends <= 1).all()


def test_ninety_five_percent_of_class_intervals_hold_the_truth() -> None:
    """Rows drawn from a known confusion: truth 0.6 / 0.3 / 0.1, each right with its own chance."""
    cells = np.array([[0.54, 0.05, 0.01], [0.06, 0.21, 0.03], [0.02, 0.02, 0.06]])
    truth = {"precision": np.diag(cells) / cells.sum(0), "recall": np.diag(cells) / cells.sum(1)}
    truth["f1"] = 2 * np.diag(cells) / (cells.sum(0) + cells.sum(1))
    draws = np.random.default_rng(4).multinomial(300, cells.ravel(), size=1000).reshape(-1, 3, 3)
    held = {name: np.zeros(3) for name in truth}
    for matrix in draws:
        for name, ends in metrics.class_intervals(matrix).items():
            held[name] += (ends[:, 0] <= truth[name]) & (truth[name] <= ends[:, 1])
    for name, counts in held.items():
        assert (counts > 925).all(), (name, counts)
        assert (counts < 985).all(), (name, counts)


def test_the_interval_of_auc_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(5), 0
    for _ in range(300):
        truth = np.repeat([0, 1], [90, 60])
        scores = np.round(rng.normal(truth * 1.0, 1), 1)  # with ties; the true AUC is that of the normal difference
        low, high = metrics.auc_interval(scores, truth)
        assert low < metrics.auc(scores, truth) < high
        held += low <= norm.cdf(1 / np.sqrt(2)) <= high
    assert 274 <= held <= 297
    for truth in ([0, 0, 0], [1, 0, 0], [1, 1, 0, 0]):  # one kind, one of a kind, perfectly apart
        assert metrics.auc_interval(np.array(truth, float), np.array(truth)) == (0, 1)


def test_an_empty_matrix_has_no_interval() -> None:
    with pytest.raises(ValueError, match="no rows"):
        metrics.bootstrap(np.zeros((2, 2), np.int64))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=100))
def test_reliability_points_hold_every_row_and_give_the_ece(found: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([c for c, _ in found]), np.array([r for _, r in found])
    points = metrics.reliability(confidence, right)
    assert points[:, 2].sum() == len(found)
    assert points[:, 2].max() - points[:, 2].min() <= 1
    assert (np.diff(points[:, 0]) >= -1e-9).all()
    assert metrics.ece(confidence, right) == pytest.approx(
        np.average(np.abs(points[:, 0] - points[:, 1]), weights=points[:, 2])
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("屏幕碎了，客服不回复", "Chinese"),
        ("The screen broke.", "English"),
        ("这个iPhone很好", "mixed"),
        ("我在这家店买过很多次东西，客服每次都特别耐心，VIP价格也好", "Chinese"),
        ("it says 好 on the box, whatever that may mean to you or me", "English"),
        ("12345 👍", "neither"),
        ("", "neither"),
    ],
)
def test_language_is_told_by_script(text: str, expected: str) -> None:
    assert slices.language(text) == expected


@given(st.lists(st.integers(0, 50), min_size=1, max_size=100))
def test_quartiles_part_by_size(values: list[int]) -> None:
    names, order = slices.quartiles(np.array(values), "characters")
    assert set(names) == set(order)
    assert 1 <= len(order) <= 4
    owned = [[v for v, own in zip(values, names, strict=True) if own == name] for name in order]
    assert all(max(a) < min(b) for a, b in itertools.pairwise(owned))
    if len(set(values)) == len(values) >= 8:
        assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_fields_give_values_the_rest_together_and_numbers_by_quartile() -> None:
    rows: list[dict[str, Any]] = [{"shop": f"s{min(i, 30)}", "price": i * 1.5, "new": i % 2 == 0} for i in range(60)]
    names, order = slices.by_field([*rows, {}], "shop")
    assert order[0] == "s30"
    assert order[-1] == slices.OTHER
    assert len(order) == slices.VALUES_MAX + 1
    assert len(names) == 61
    assert slices.by_field([*rows, {}], "new")[1] == ["True", "False", slices.MISSING]
    assert slices.by_field(rows, "price")[1] == ["0–21", "22.5–43.5", "45–66", "67.5–88.5"]
    with pytest.raises(DataError, match="no row has this field; the rows have new, price, shop"):
        slices.by_field(rows, "colour")


alike = [st.integers(10**17, 10**17 + 99), st.integers(0, 99).map(lambda k: 1e9 + k / 128)]
different = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.one_of(st.lists(kind, min_size=40, max_size=80, unique=True) for kind in (*alike, different)))
def test_quartiles_of_numbers_that_differ_have_names_that_do(values: list[float]) -> None:
    names, order = slices.by_field([{"id": value} for value in values], "id")
    assert len(order) == len(set(order)) == 4
    n = len(values)
    found = slices.slice_figures(np.zeros(n, np.int64), np.zeros(n, np.int64), 2, names, order)
    assert sum(part["n"] for part in found) == n


def rows_of(parts: list[tuple[str, int, int]]) -> tuple[metrics.Array, metrics.Array, list[str]]:
    """Truth all 0, guesses right or wrong, names: of (name, right, wrong)."""
    guess = [k for _, right, wrong in parts for k in [0] * right + [1] * wrong]
    names = [name for name, right, wrong in parts for _ in range(right + wrong)]
    return np.zeros(len(guess), np.int64), np.array(guess), names


def test_a_slice_clearly_below_the_whole_is_flagged_if_it_has_the_rows() -> None:
    truth, guess, names = rows_of([("well", 900, 100), ("badly", 30, 30), ("few", 10, 30), ("like", 88, 12)])
    found = {s["value"]: s for s in slices.slice_figures(truth, guess, 2, names, ["well", "badly", "few", "like"])}
    assert {name for name, s in found.items() if s["flagged"]} == {"badly"}
    whole = (900 + 30 + 10 + 88) / 1200
    assert found["badly"]["gap"] == pytest.approx(0.5 - whole, abs=1e-5)
    assert found["few"]["interval"][1] < whole  # below as well, but on 40 rows
    assert found["well"]["n"] == 1000


TEXTS = ["0.3 0.5 0.2", "0.1 0.8 0.102", "0.4 0.4 0.2", "0.5 0.0 0.5"]
LABELS = ["negative", "positive", "positive", "negative"]


def test_an_assessment_holds_the_flat_figures_as_they_are() -> None:
    figures, full = (f(SpokenScorer(), "sentiment", TEXTS, LABELS) for f in (evaluate_texts, assess_texts))
    assert {name: full[name] for name in figures} == figures
    assert full["labels"] == ["negative", "positive"]
    assert full["confusion"] == [[2, 0], [1, 1]]
    assert [c["recall"] for c in full["classes"]] == [1, 0.5]
    recalls = [c["intervals"]["recall"] for c in full["classes"]]
    assert recalls == [[pytest.approx(end, abs=1e-5) for end in ends] for ends in ((0.34238, 1), (0.09453, 0.90547))]
    low, high = full["intervals"]["accuracy"]
    assert low < figures["accuracy"] == 0.75 <= high
    assert json.loads(json.dumps(full)) == full


def test_many_labels_tell_their_most_frequent_mistakes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = [*TEXTS, "0.9 0 0.1", "0.8 0 0.2", "0.1 0.8 0.1"], [*LABELS, "positive", "positive", "negative"]
    ask = {"among": ["negative", "neutral", "positive"]}
    whole = assess_texts(SpokenScorer(), "sentiment", texts, labels, **ask)
    assert whole["confusion"] == [[1, 2, 0], [0, 0, 0], [3, 1, 0]]
    monkeypatch.setattr(detail, "CONFUSION_LABELS_MAX", 2)
    monkeypatch.setattr(detail, "CELLS_MAX", 2)
    few = assess_texts(SpokenScorer(), "sentiment", texts, labels, **ask)
    mistakes = [["positive", "negative", 3], ["negative", "neutral", 2]]
    assert few == whole | {"confusion": {"mistakes": mistakes, "left_out": 1}}


def test_thousands_of_labels_stay_small() -> None:
    rng, size = np.random.default_rng(0), 2000
    matrix = metrics.confusion(rng.integers(0, size, 4000), rng.integers(0, size, 4000), size)
    tracemalloc.start()
    metrics.bootstrap(matrix, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # an indicator of rows by classes alone would be 64 MB
    told = detail._mistakes([f"label {i}" for i in range(size)], matrix)
    assert len(told["mistakes"]) == detail.CELLS_MAX
    assert sum(n for *_, n in told["mistakes"]) + told["left_out"] == matrix.sum() - np.trace(matrix)


def test_labels_of_the_caller_are_guessed_among() -> None:
    every = ["negative", "neutral", "positive"]
    assert evaluate_texts(SpokenScorer(), "sentiment", TEXTS, LABELS)["accuracy"] == 0.75
    figures = assess_texts(SpokenScorer(), "sentiment", TEXTS, LABELS, among=every)
    assert figures["labels"] == every
    assert figures["accuracy"] == 0.25
    assert "auc" not in figures
    with pytest.raises(DataError, match="lacks 'positive'"):
        evaluate_texts(SpokenScorer(), "sentiment", TEXTS, LABELS, among=["negative"])
    with pytest.raises(DataError, match="'great' is unknown"):
        evaluate_texts(SpokenScorer(), "sentiment", TEXTS, LABELS, among=["great"])
    one = evaluate_texts(SpokenScorer(), "sentiment", TEXTS[:1], LABELS[:1], among=["negative", "positive"])
    assert "auc" not in one  # undefined with one class: no NaN in the figures


def test_the_scope_curve_goes_from_all_to_almost_nothing() -> None:
    texts = ["0.9 0.1 0.0", "0.6 0.3 0.1", "0.2 0.7 0.1", "0.4 0.3 0.3", "0.1 0.1 0.8"]
    labels = ["refund", "refund", "track", "oos", "oos"]
    curve = assess_texts(SpokenScorer(threshold=0.5), "intent.shop", texts, labels)["scope"]
    assert curve[0] == {"threshold": 0, "in_scope_accuracy": 1, "oos_recall": 0.5}
    assert curve[-1]["threshold"] == pytest.approx(0.9)
    assert curve[-1]["in_scope_accuracy"] == pytest.approx(1 / 3, abs=1e-5)
    assert all(a["oos_recall"] <= b["oos_recall"] for a, b in itertools.pairwise(curve))
    assert all(a["in_scope_accuracy"] >= b["in_scope_accuracy"] for a, b in itertools.pairwise(curve))


def test_files_are_sliced_by_a_field_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"text": text, "sentiment": label, "shop": shop}
        for text, label, shop in zip(TEXTS, LABELS, ["a", "b", "b", "a"], strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = assess_files(SpokenScorer(), "sentiment", [path], fields=["shop"])
    (cut,) = [cut for cut in found["slices"] if cut["by"] == "shop"]
    assert {(s["value"], s["accuracy"]) for s in cut["slices"]} == {("a", 1), ("b", 0.5)}
    with pytest.raises(DataError, match="--slice shop: slices by a field are for tasks on texts"):
        assess_files(SpokenScorer(), "click", [path], fields=["shop"])
    with pytest.raises(DataError, match="no row has this field"):
        assess_files(SpokenScorer(), "sentiment", [path], fields=["colour"])
    passed = assess_files(SpokenScorer(), "sentiment", [path], fields=["colour", "shop"], lenient=True)
    assert passed == found
    with pytest.raises(DataError, match="--delay-s is for clicks"):
        assess_files(SpokenScorer(), "sentiment", [path], delays_s=[60])


def test_users_who_are_new_stand_apart_from_those_with_many_events(tmp_path: Path) -> None:
    """Ann is right always, new users never; what came before, and what is earlier in the file, makes ann warm."""
    data, before = tmp_path / "rows.jsonl", tmp_path / "before.jsonl"
    users = ["ann"] * 80 + [f"new{i}" for i in range(60)]
    lines = [
        {"text": "0.9 0.0 0.1", "sentiment": "negative" if user == "ann" else "positive", "user_id": user, "ts": i}
        for i, user in enumerate(users)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]), encoding="utf-8")
    before.write_text('{"user_id": "ann"}\n' * 3 + '{"user_id": null}\n', encoding="utf-8")

    def by_user(*history: Path) -> dict[str, Any]:
        cuts = assess_files(SpokenScorer(), "sentiment", [data], history)["slices"]
        return {part["value"]: part for cut in cuts if cut["by"] == EARLIER for part in cut["slices"]}

    found = by_user()
    assert {name: (part["n"], part["accuracy"], part["flagged"]) for name, part in found.items()} == {
        "none": (61, round(1 / 61, 5), True),
        "1–4": (4, 1, False),
        "5–19": (15, 1, False),
        "20 and more": (60, 1, False),
    }
    assert {name: part["n"] for name, part in by_user(before).items()} == {
        "none": 60,
        "1–4": 2,
        "5–19": 15,
        "20 and more": 63,
    }
    data.write_text("".join(json.dumps(line | {"user_id": None}) + "\n" for line in lines), encoding="utf-8")
    assert by_user() == {}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=40))
def test_earlier_events_are_those_of_the_user_before_the_moment(events: list[tuple[int, int]]) -> None:
    found = earlier_events(*(np.array([e[k] for e in events], np.int64) for k in (0, 1)))
    assert found.tolist() == [sum(u == user and t < time for u, t in events) for user, time in events]


def test_rows_without_times_come_as_they_stand_and_rows_without_users_are_nobodys() -> None:
    rows: list[dict[str, Any]] = [{"user_id": 7}, {"user_id": "7", "ts": 5}, {}, {"user_id": True}, {"user_id": "7"}]
    assert earlier_rows(rows).tolist() == [0, 1, NOBODY, NOBODY, 2]
    assert earlier_rows(rows, ["7", None, "8"]).tolist() == [1, 2, NOBODY, NOBODY, 3]
    timed = [{"user_id": "a", "event_time_ms": time} for time in (30, 10, 10)]
    assert earlier_rows(timed).tolist() == [2, 0, 0]
    assert earlier_rows([]).tolist() == []
    assert by_warmth(np.array([0, NOBODY, 4, 5, 19, 20]))[1] == ["none", "1–4", "5–19", "20 and more", "(missing)"]
