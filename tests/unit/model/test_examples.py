"""Rows that carry some labels and not others: none is lost, none is made up, what contradicts itself is left out."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data import Example
from model.errors import DataError
from model.text import TextCodec, TextSpec
from model.training.corpus import Corpus, build_corpus, space_texts
from model.training.examples import merge, read_corpus, read_dataset
from model.training.loss import NO_LABEL, OUTSIDE
from model.training.recipe import Dataset, Head, Recipe, SpaceTexts
from model.training.vocabulary import wordpiece_tokenizer
from tests.tiny_artifact import LETTERS

HEADS = {"mood": "mood", "stars": "rating"}
KINDS = {name: Head() for name in (*HEADS, "general")}
LABELS = st.dictionaries(st.sampled_from(["mood", "stars"]), st.sampled_from("ab"))
ROWS = st.lists(st.builds(Example, st.sampled_from(["x", "y", "z"]), LABELS), max_size=12)


def dataset(folder: Path, *rows: dict[str, Any], **settings: Any) -> Dataset:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Dataset("rows", **{"file": "rows.jsonl", "labels": HEADS} | settings)


@given(ROWS)
def test_each_text_keeps_exactly_the_labels_that_its_rows_agree_on(rows: list[Example]) -> None:
    said: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for head, label in row.labels.items():
            said[row.text, head].add(label)
    examples, contradicted = merge(rows, {})
    found = {(example.text, head): {label} for example in examples for head, label in example.labels.items()}
    assert found == {place: labels for place, labels in said.items() if len(labels) == 1}
    assert contradicted.total() == sum(len(labels) > 1 for labels in said.values())
    assert len({example.text for example in examples}) == len(examples)
    assert all(example.labels for example in examples)


def test_complementary_rows_of_a_text_become_one_and_counts_are_told(tmp_path: Path) -> None:
    rows = dataset(
        tmp_path,
        {"text": "one", "mood": "good"},
        {"text": "two", "mood": "bad", "rating": None},
        {"text": "one", "mood": None, "rating": 5},
        {"text": "two", "mood": "good", "rating": 3},
        {"text": "three", "mood": "bad"},
        {"text": "three", "mood": "good"},
    )
    told: list[str] = []
    examples = read_dataset(rows, KINDS, tmp_path, 0, told.append)
    assert [(e.text, e.labels) for e in examples] == [("one", {"mood": "good", "stars": "5"}), ("two", {"stars": "3"})]
    assert told == [
        "rows: 6 rows, 2 texts with labels of mood 1, stars 2; rows of one text contradict each other: mood 2; "
        "1 texts left out"
    ]


@pytest.mark.parametrize("empty", [{}, {"mood": None}, {"mood": None, "rating": None}])
def test_a_row_without_any_label_is_refused_with_its_line(tmp_path: Path, empty: dict[str, Any]) -> None:
    rows = dataset(tmp_path, {"text": "a", "mood": "good", "rating": 1}, {"text": "b"} | empty)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no label in 'mood', 'rating'"):
        read_dataset(rows, KINDS, tmp_path, 0)


def test_a_field_that_no_row_has_is_refused_with_file_and_head(tmp_path: Path) -> None:
    rows = dataset(tmp_path, {"text": "a", "mood": "good"}, {"text": "b", "mood": "bad", "rating": None})
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has a label in the field 'rating', which stars"):
        read_dataset(rows, KINDS, tmp_path, 0)


def test_a_text_field_that_no_row_has_is_refused_and_one_that_some_have_is_not(tmp_path: Path) -> None:
    one, two = {"text": "a", "mood": "good", "rating": 1}, {"subject": "b", "text": "c", "mood": "bad"}
    rows = dataset(tmp_path, one, two, one | {"subject": None, "text": "d"}, text=["subject", "text"])
    assert [example.text for example in read_dataset(rows, KINDS, tmp_path, 0)] == ["a", "b c", "d"]
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has the text field 'subjct'; rows have 'text', 'mood'"):
        read_dataset(replace(rows, text=["subjct", "text"]), KINDS, tmp_path, 0)
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has the text field 'titel'; rows have 'text'"):
        space_texts([SpaceTexts("rows.jsonl", ["titel", "text"], 9)], tmp_path)


def test_a_score_may_be_any_number_and_near_duplicates_are_one_class(tmp_path: Path) -> None:
    rows = dataset(
        tmp_path,
        *({"text": f"a{i}", "rating": rating} for i, rating in enumerate([4.5, "4.50", 1, 1.0, "1"])),
        *({"text": f"b{i}", "mood": mood} for i, mood in enumerate(["物流", "物流 ", "Ｑ", "Q"])),
    )
    heads = KINDS | {"stars": Head(["1", "4.5"], kind="score")}
    examples = read_dataset(rows, heads, tmp_path, 0)
    assert [example.labels["stars"] for example in examples[:5]] == ["4.5", "4.5", "1", "1", "1"]
    assert [example.labels["mood"] for example in examples[5:]] == ["物流", "物流", "Q", "Q"]


def test_labels_that_no_text_has_or_one_alone_are_told(tmp_path: Path) -> None:
    rows = dataset(
        tmp_path,
        *({"text": f"a{i}", "mood": mood} for i, mood in enumerate(["good", "good", "bad"])),
        *({"text": f"b{i}", "rating": i % 2} for i in range(4)),
    )
    told: list[str] = []
    heads = {"mood": Head(["good", "bad", *[f"odd {i}" for i in range(12)]]), "stars": Head()}
    read_corpus(Recipe("r", "none", heads, [rows]), tmp_path, told.append)
    odd = ", ".join(f"'odd {i}'" for i in range(10))
    assert told[1:] == [f"warning: labels of mood without a text: {odd} and 2 more; with one text only: 'bad'"]


def test_a_label_of_the_wrong_kind_is_still_refused(tmp_path: Path) -> None:
    for wrong in ("", True, 0.5, ["good"]):
        rows = dataset(tmp_path, {"text": "a", "mood": "good", "rating": 1}, {"text": "b", "mood": wrong})
        with pytest.raises(DataError, match=r"rows\.jsonl:2: label field 'mood'"):
            read_dataset(rows, KINDS, tmp_path, 0)


@pytest.mark.parametrize(
    ("head", "says"),
    [(Head(["good", "bad"]), "label 'great' is unknown to head 'mood'"), (Head(kind="score"), "label 'good' of head")],
)
def test_a_label_that_its_head_cannot_have_is_refused_with_its_own_line(tmp_path: Path, head: Head, says: str) -> None:
    good, great = {"text": "a", "mood": "good"}, {"text": "a", "mood": "great"}  # of one text, where only one is kept
    rows = dataset(tmp_path, {"text": "b", "rating": 1}, good, great)
    with pytest.raises(DataError, match=rf"rows\.jsonl:{3 if head.labels else 2}: {says}"):
        read_dataset(rows, KINDS | {"mood": head}, tmp_path, 0)


def test_out_of_scope_is_said_only_of_texts_whose_intent_is_known(tmp_path: Path) -> None:
    rows = dataset(
        tmp_path,
        {"text": "where is my order", "mood": "bad", "intent": "order"},
        {"text": "play a song", "intent": "music"},  # its mood is unknown and decides nothing
        {"text": "oh well", "mood": "bad"},  # may be about an order
        {"text": "torn", "intent": "order"},
        {"text": "torn", "mood": "good", "intent": "music"},
        labels={"mood": "mood", "general": "intent"},
        outside={"shop": ["order"], "bank": []},
    )
    found = {example.text: example.outside for example in read_dataset(rows, KINDS, tmp_path, 0)}
    assert found == {
        "where is my order": ("bank",),
        "play a song": ("shop", "bank"),
        "oh well": ("bank",),
        "torn": ("bank",),
    }


def corpus_of(folder: Path, spec: Dataset) -> Corpus:
    recipe = Recipe("r", "none", {"mood": Head(), "stars": Head(), "shop": Head(["a", "b"])}, [spec])
    codec = TextCodec(
        wordpiece_tokenizer([*LETTERS, *[f"##{c}" for c in LETTERS]], lower=True), TextSpec(16, gram_buckets=0)
    )
    return build_corpus(recipe, read_corpus(recipe, folder), codec)


def test_the_corpus_holds_each_label_and_nothing_for_the_others(tmp_path: Path) -> None:
    rows = dataset(
        tmp_path,
        *({"text": f"a{i}", "mood": "good" if i % 4 else "bad"} for i in range(40)),
        *({"text": f"b{i}", "rating": i % 2} for i in range(20)),
        balance=1.0,
        outside={"shop": []},
    )
    corpus = corpus_of(tmp_path, rows)
    mood, stars, shop = corpus.labels.T
    assert (mood[40:] == NO_LABEL).all()
    assert (stars[:40] == NO_LABEL).all()
    assert [corpus.heads["mood"][label] for label in mood[:5]] == ["bad", "good", "good", "good", "bad"]
    assert (shop == OUTSIDE).all()
    weights = corpus.weights[:, 0]  # rows without the label do not count as one more class
    assert weights[:40].mean() == pytest.approx(1.0)
    assert weights[0] / weights[1] == pytest.approx(3.0)
    np.testing.assert_allclose(corpus.weights[40:, 1], 1.0)
