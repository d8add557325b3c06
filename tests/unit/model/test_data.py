"""Malformed files are refused with file, line and reason; recipes with the key."""

import gzip
from pathlib import Path

import pytest

from model.data import Columns, fingerprint, read_labelled, read_rows
from model.errors import DataError
from model.training.recipe import load_recipe

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
        (b"[1, 2]", "a JSON list"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"sentiment": "positive"}', "field 'text' is missing"),
        (b'{"text": 3, "sentiment": "positive"}', "field 'text' is int"),
        (b'{"text": "x", "title": null, "sentiment": "positive"}', "field 'title' is missing"),
        (b'{"text": "x"}', "label field 'sentiment' is missing"),
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("- a", "keys with values"),
        ("name: x", "keys with values"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [{name: d, file: f, colour: red}]}", "unknown key 'colour'"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [{name: d}]}", "either file or templates"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [{name: d, file: f, labels: {g: y}}]}", "head 'g'"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [], bag: {targets: [[d, h]]}}", "bag.targets"),
        ("{name: x, body: b, heads: {h: {}}, datasets: [], text: {gram_buckets: 100}}", "power of two"),
        ("{name: x, heads: {h: {}}, datasets: []}", "body"),
        ("a: [", "no readable recipe"),
    ],
)
def test_a_bad_recipe_names_the_key(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"recipe\.yaml") as caught:
        load_recipe(path)
    assert reason in str(caught.value)
