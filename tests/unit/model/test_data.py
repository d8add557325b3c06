"""Malformed files are refused with file, line and reason; recipes with the key."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model.data import (
    Columns,
    Fallback,
    as_label,
    check_label,
    columns_of,
    fingerprint,
    own_label,
    read_labelled,
    read_rows,
    read_split,
)
from model.errors import DataError
from model.training.recipe import Head, Recipe, load_recipe

SENTIMENT = Columns(("title", "text"), "sentiment")
GOOD = b'{"title": "Loud", "text": "but clear", "stars": 4.0, "sentiment": "positive"}\n'


def test_plain_and_gzipped_read_alike(tmp_path: Path) -> None:
    plain, zipped = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(GOOD + b"\n" + GOOD)
    zipped.write_bytes(gzip.compress(GOOD + b"\n" + GOOD))
    assert list(read_rows(plain)) == list(read_rows(zipped))
    assert [number for number, _ in read_rows(plain)] == [1, 3]
    found = read_labelled([plain], Columns(("title", "text"), "stars"))
    assert [(row.place, row.text, row.label) for row in found] == [
        (f"{plain}:{line}", "Loud but clear", "4") for line in (1, 3)
    ]
    assert fingerprint(plain) != fingerprint(zipped)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json}", "not JSON"),
        (b"[" * 100_000, "not JSON (maximum recursion depth"),
        (b"[1, 2]", "a JSON list"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"sentiment": "positive"}', "field 'text' is missing"),
        (b'{"text": 3, "sentiment": "positive"}', "field 'text' is int"),
        (
            b'{"text": null, "title": "x", "sentiment": "positive"}',
            "text is expected; the row has 'title', 'sentiment'",
        ),
        (b'{"text": "x", "title": 3, "sentiment": "positive"}', "field 'title' is int"),
        (b'{"text": "x", "sentiment": ""}', "label field 'sentiment' is str ''"),
        (b'{"text": "x", "sentiment": " "}', "for no label write null, or leave the field out"),
        (b'{"text": "x", "sentiment": true}', "label field 'sentiment' is bool"),
        (b'{"text": "x", "sentiment": 0.5}', "label field 'sentiment' is float"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError, match=r"bad\.jsonl:2: .*") as caught:
        read_labelled([path], SENTIMENT)
    assert reason in str(caught.value)


def test_a_text_field_that_is_null_is_as_one_that_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b'{"title": null, "text": "x", "sentiment": "negative"}\n')
    assert [row.text for row in read_labelled([path], SENTIMENT)] == ["Loud but clear", "x"]


@pytest.mark.parametrize("title", [b"", b'"title": null, '])
def test_a_text_field_that_no_row_of_a_file_has_is_refused_where_it_is_named(tmp_path: Path, title: bytes) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    whole.write_bytes(GOOD)
    path.write_bytes(b"{%b" % title + b'"text": "x", "sentiment": "negative"}\n{"title": "y"}\n')
    with pytest.raises(
        DataError, match=r"rows\.jsonl: no row has the text field 'title'; rows have 'text', 'sentiment'"
    ):
        read_split([whole, path], SENTIMENT)
    (row,) = read_labelled([path], Columns(Fallback(SENTIMENT.text), SENTIMENT.label))  # as other files have them
    assert row.text == "x"


def test_an_artifact_s_head_says_where_rows_may_have_text_and_whether_labels_are_numbers(tmp_path: Path) -> None:
    path, head = tmp_path / "rows.jsonl", {"kind": "score", "text": ["title", "text"], "field": "grade"}
    path.write_text('{"text": "x", "grade": "4.50"}\n{"text": "y", "grade": 4}\n', encoding="utf-8")
    found = read_labelled([path], columns_of("rating", head))
    assert [(row.text, row.label) for row in found] == [("x", "4.5"), ("y", "4")]
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has the text field 'titel'"):
        read_labelled([path], columns_of("rating", head, Columns(("titel", "text"))))
    path.write_text('{"text": "y", "grade": 4}\n{"text": "x", "grade": 4.5}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .* is float '4\.5', .*; other numbers are labels of heads of"):
        read_labelled([path], columns_of("rating", head | {"kind": "classes"}))


def test_of_rows_that_each_have_other_fields_a_few_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "x", "sentiment": "a", "f{i}": 1}}\n' for i in range(99)), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows have 'text', .* and 1 more: mend") as caught:
        read_labelled([path], SENTIMENT)
    assert len(str(caught.value)) < len(str(path)) + 200


def test_what_a_spreadsheet_writes_is_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "excel.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + GOOD)
    assert [number for number, _ in read_rows(path)] == [1, 2]
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + b"text,sentiment\nx,positive\n")
        with pytest.raises(DataError, match=r"excel\.jsonl:1: not JSON Lines; is it CSV\?"):
            list(read_rows(path))


@pytest.mark.parametrize(
    ("values", "label", "score"),
    [
        ([4.5, "4.5", "4.50", " ４.５"], "4.5", True),
        ([1, 1.0, "1", "1.0", "１"], "1", True),
        ([-0.0, 0], "0", True),
        (["calm"], "calm", True),  # its head tells of it
        ([1, 1.0, "1"], "1", False),
        (["1.0"], "1.0", False),
        (["物流", "物流 ", "\u3000物流"], "物流", False),
        (["Q", "Ｑ"], "Q", False),
        (["", " ", True, [1], None], None, False),
        ([float("nan"), float("inf"), "inf", "", False], None, True),
        ([0.5, float("nan")], None, False),
    ],
)
def test_labels_that_look_the_same_are_the_same(values: list[Any], label: str | None, score: bool) -> None:
    assert [as_label(value, score=score) for value in values] == [label] * len(values)


def test_of_many_labels_the_closest_are_shown() -> None:
    known = [f"category {i}" for i in range(2000)]
    with pytest.raises(DataError, match=r"the closest of its 2000 labels: .*category 1234") as caught:
        check_label("categry 1234", "topic", known, "rows.jsonl:7")
    assert len(str(caught.value)) < 200
    with pytest.raises(DataError, match="its labels: calm, urgent"):
        check_label("x" * 10_000, "urgency", ["calm", "urgent"], "rows.jsonl:7")


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    some, none = tmp_path / "some.jsonl", tmp_path / "none.jsonl"
    some.write_bytes(GOOD + b'{"text": "x"}\n{"text": "y", "sentiment": null}\n{"sentiment": null}\n' + GOOD)
    found, unlabelled = read_split([some], SENTIMENT)
    assert [row.place for row in found] == [f"{some}:1", f"{some}:5"]
    assert unlabelled == 3
    assert read_labelled([some], SENTIMENT) == found
    none.write_bytes(b'{"text": "x"}\n{"text": "y", "sentiment": null}\n')
    for paths in ([none], [some, none]):  # a file that has none at all is the wrong one, or its field is
        with pytest.raises(DataError, match=r"none\.jsonl: label field 'sentiment' is missing or null in every row"):
            read_split(paths, SENTIMENT)


def test_absent_empty_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        read_labelled([tmp_path / "none.jsonl"], SENTIMENT)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no rows"):
        read_labelled([tmp_path / "empty.jsonl"], SENTIMENT)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(GOOD * 1000)[:-20])
    with pytest.raises(DataError, match="cut"):
        read_labelled([tmp_path / "cut.jsonl.gz"], SENTIMENT)
    with pytest.raises(DataError, match="no file"):
        read_labelled([], SENTIMENT)


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.LINE_BYTES_MAX", 50)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'{"text": "x"}\n' + GOOD)
    with pytest.raises(DataError, match=r"long\.jsonl:2: the line is longer than 50 bytes"):
        list(read_rows(path))


def test_the_starter_recipe_is_sound() -> None:
    recipe = load_recipe(Path(__file__).parents[3] / "model" / "training" / "starter.yaml")
    assert {"sentiment", "stars", "intent.shop", "intent.general"} <= set(recipe.heads)


RECIPE = """
name: x
body: b
heads: {urgency: {labels: [calm, urgent]}, stars: {kind: score, error_weight: 0.5}}
datasets: [{name: mails, file: mails.jsonl, text: [subject, body], labels: {urgency: prio, stars: stars}, weight: 2}]
text: {max_tokens: 64}
bag: {keep: 100}
scope_cost: {share: 0.2}
space: [{file: mails.jsonl, text: [subject], rows: 10}]
evaluation: [{task: urgency, file: valid.jsonl, text: [subject], label: prio}]
click: {file: clicks.jsonl, scales_s: [60, 3600], context: [{name: price}]}
"""


def changed(*place: Any, value: Any) -> str:
    """The recipe with another value at a place, as YAML."""
    content = part = yaml.safe_load(RECIPE)
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return yaml.safe_dump(content)


def load(folder: Path, content: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("- a", "keys with values"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [{name: d, file: f, colour: red}]}", "unknown key 'colour'"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [{name: d}]}", "either file or templates"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [{name: d, file: f, labels: {g: y}}]}", "head 'g'"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [], bag: {targets: [[d, h]]}}", "bag.targets"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [], text: {gram_buckets: 100}}", "power of two"),
        ("{body: b, heads: {h: {}}, datasets: []}", "key 'name' is missing"),
        ("a: [", "no readable recipe"),
        (
            "{name: x, body: b, heads: {h: {}, g: {}}, datasets: [{name: d, file: f, labels: {h: y}}]}",
            "heads.g: no data",
        ),
        (
            changed("heads", "stars", "kind", value="scores"),
            "heads.stars.kind: 'scores' is unknown; use classes or score",
        ),
        (changed("heads", "stars", "labels", value=["low", "high"]), "heads.stars.labels: label 'low'"),
        (changed("heads", "urgency", "labels", value=[True, False]), "YAML reads yes, no, on and off"),
        (changed("heads", "urgency", "labels", value="mood"), "heads.urgency.labels: 'mood' is not a list"),
        (changed("heads", "urgency", "labels", value="mood"), "; write [mood]"),
        (changed("heads", "urgency", "labels", value=[1, "1"]), "two or more different ones"),
        (changed("heads", "urgency", "labels", value=["Ｑ", "Q "]), "two or more different ones"),
        (changed("heads", "stars", "labels", value=[1, "1.0"]), "two or more different ones"),
        (changed("heads", "urgency", "labels", value=["calm", " "]), "heads.urgency.labels: ['calm', ' '] has a blank"),
        (
            changed("datasets", 0, "labels", value="mood"),
            "datasets.mails.labels: 'mood' is not keys of which each has text",
        ),
        (changed("datasets", 0, "labels", value={"stars": 5}), 'write "5"'),
        (changed("datasets", 0, "text", value="subject"), "; write [subject]"),
        (changed("datasets", 0, "text", value=[]), "datasets.mails.text: name a field"),
        (
            changed("datasets", 0, "weight", value="6"),
            "datasets.mails.weight: '6' is not a number; write 6 without quotes",
        ),
        (changed("datasets", 0, "balance", value="1e-1"), "write 1.0e-4"),
        (changed("calibration_share", value="0.1"), "recipe.yaml: calibration_share: '0.1' is not a number"),
        (changed("calibration_share", value=1), "calibration_share: 1 must be above 0 and below 1"),
        (changed("evaluation", 0, "text", value="subject"), "evaluation.text: 'subject' is not a list"),
        (changed("name", value=None), "key 'name' is missing"),
        (changed("text", "head_share", value=1.5), "text.head_share: 1.5 is no share from 0 to 1"),
        (changed("text", "gram_orders", value=[]), "text.gram_orders: give at least one"),
        (changed("text", "gram_orders", value=[0, 1]), "text.gram_orders: [0, 1] must each be at least 1"),
        (changed("text", "gram_units_max", value=0), "text.gram_units_max: 0 must be at least 1"),
        (changed("seed", value=-1), "seed: -1 must be at least 0"),
        (changed("seed", value=2**32), "seed: 4294967296 must be at least 0 and below 2^32"),
        (changed("vocabulary", value=-5), "vocabulary: -5 must be at least 0"),
        (changed("warm_rows", value=-1), "warm_rows: -1 must be at least 0"),
        (changed("layers", value=[-1]), "layers: [-1] must each be at least 0"),
        (changed("bag", "c", value=0), "bag.c: 0 must be above 0"),
        (changed("bag", "folds", value=0), "bag.folds: 0 must be at least 2"),
        (changed("bag", "keep", value=0), "bag.keep: 0 must be at least 1"),
        (changed("scope_cost", "share", value=5), "scope_cost.share: 5 is no share from 0 to 1"),
        (changed("scope_cost", "lost_max", value=-0.1), "scope_cost.lost_max: -0.1 is no share from 0 to 1"),
        (changed("scope_cost", "answered", value=-1), "scope_cost.answered: -1 must be at least 0"),
        (changed("datasets", 0, "weight", value=0), "datasets: every weight is 0"),
        (changed("datasets", value=[{"name": "mails", "file": "a"}] * 2), "datasets: two are named 'mails'"),
        (changed("heads", "a/b", value={}), "heads.a/b: 'a/b' is no name of a head"),
        (changed("heads", "a.", value={}), "heads.a.: 'a.' is no name of a head"),
        (changed("heads", "click", value={}), "heads.click: click is a task on logs"),
        (changed("evaluation", 0, value={"task": "click", "file": "v", "without": "t"}), "evaluation: v: text, label"),
        (
            changed("bag", value={"targets": [["mails", "stars"]] * 2}).replace("text: {", "text: {gram_buckets: 64, "),
            "bag.targets: stars is named twice",
        ),
    ],
)
def test_a_bad_recipe_names_the_key(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(DataError, match=r"recipe\.yaml") as caught:
        load(tmp_path, content)
    assert reason in str(caught.value)


def test_a_recipe_that_is_no_text_and_one_nested_too_deeply_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(RECIPE.replace("name: x", "name: größer").encode("latin-1"))
    with pytest.raises(DataError, match=r"recipe\.yaml: not UTF-8"):
        load_recipe(path)
    with pytest.raises(DataError, match=r"recipe\.yaml: no readable recipe"):
        load(tmp_path, "name: " + "[" * 100_000)


def test_a_base_may_lie_in_another_folder_and_comes_round_by_whatever_way(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "mine" / "recipe.yaml").write_text("base: ../recipe.yaml\nname: y\n", encoding="utf-8")
    assert load_recipe(tmp_path / "mine" / "recipe.yaml").name == "y"
    (tmp_path / "recipe.yaml").write_text("base: mine/../mine/recipe.yaml\n", encoding="utf-8")
    with pytest.raises(DataError, match="based on itself"):
        load_recipe(tmp_path / "mine" / "recipe.yaml")


def test_labels_that_are_whole_numbers_are_the_labels_of_the_rows(tmp_path: Path) -> None:
    recipe = load(tmp_path, changed("heads", "stars", value={"labels": [1, 2.0, "3"], "kind": "score"}))
    assert recipe.heads["stars"].labels == ["1", "2", "3"]
    assert load(tmp_path, changed("heads", "stars", value=None)).heads["stars"] == Head()


def test_labels_of_a_recipe_are_read_as_those_of_rows(tmp_path: Path) -> None:
    recipe = load(tmp_path, changed("heads", "stars", "labels", value=[4, 4.5, "5.0"]))
    assert recipe.heads["stars"].labels == ["4", "4.5", "5"]
    assert recipe.columns("stars").score
    assert not recipe.columns("urgency").score
    recipe = load(tmp_path, changed("heads", "urgency", "labels", value=["Ｑ", " calm"]))
    assert recipe.heads["urgency"].labels == ["Q", "calm"]
    recipe = load(tmp_path, changed("datasets", 0, "outside", value={"urgency": ["Ｑ ", 1]}))
    assert recipe.datasets[0].outside == {"urgency": ["Q", "1"]}


PLACES = [
    *((key,) for key in ("name", "body", "seed", "layers", "int8", "calibration_share", "search", "click")),
    *(
        (key,)
        for key in ("heads", "datasets", "text", "bag", "scope_cost", "space", "evaluation", "training", "teachers")
    ),
    *(("heads", "urgency", key) for key in ("labels", "kind", "threshold", "error_weight")),
    *(("datasets", 0, key) for key in ("name", "file", "text", "labels", "partial", "outside", "balance", "weight")),
    *(("datasets", 0, key) for key in ("source", "guessed", "augment", "groups", "templates")),
    *(("evaluation", 0, key) for key in ("task", "text", "label", "shipped", "without", "history")),
    *(("space", 0, key) for key in ("text", "rows")),
    *(("bag", key) for key in ("keep", "targets", "folds", "c")),
    *(("text", key) for key in ("max_tokens", "gram_orders", "gram_buckets", "head_share")),
    *(("click", key) for key in ("file", "actions", "headlines", "scales_s", "context", "window_s", "negative_rate")),
    *(("click", key) for key in ("purchase_window_s", "delay_s", "purchase_delay_s")),
    *(("click", "context", 0, key) for key in ("name", "kind", "buckets", "neutral")),
]
LEAVES = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["mood", "6", "1e-4", ""])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=2)
)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), VALUES)
@example(("datasets",), 1)
@example(("evaluation",), True)
@example(("datasets", 0, "augment"), {"copies": "a"})
def test_whatever_a_recipe_says_it_is_read_or_refused_by_file(
    tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    try:
        load(tmp_path, changed(*place, value=value))
    except DataError as error:
        assert "recipe.yaml" in str(error)  # noqa: PT017 - both ends are right


@pytest.mark.parametrize(
    ("typed", "known", "found"),
    [
        ("4.50", ["1", "4.5"], "4.5"),
        ("1.0", ["1", "4.5"], "1"),
        ("Ａ ", ["A", "B"], "A"),
        ("4.5", ["4.5", "4.50"], "4.5"),
        ("5", ["1", "4.5"], "5"),
        ("", ["1"], ""),
        ("nan", ["1", "nan"], "nan"),
    ],
)
def test_a_label_that_somebody_typed_is_the_one_that_looks_the_same(typed: str, known: list[str], found: str) -> None:
    assert own_label(typed, known) == found
