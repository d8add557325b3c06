"""Augmentation: what never changes in a text, and which rows it is made from."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model.assess.evaluate import evaluate_texts
from model.errors import DataError
from model.scoring import load_scorer
from model.text import TextCodec, normalise
from model.training.augment import TABLE, synonym_table, units, vary
from model.training.augmentation import Augmentation
from model.training.corpus import Corpus, build_corpus, read_corpus
from model.training.loss import NO_LABEL
from model.training.recipe import Recipe, load_recipe
from model.training.vocabulary import wordpiece_tokenizer
from tests.tiny_artifact import LETTERS
from tests.toy_training import make_workshop, run, sentence

SAMPLES = (
    "物流很快，包装也结实，但是客服态度不好，衣服颜色很漂亮，非常喜欢",
    "Great sound! I don't like the flimsy cable, but CUSTOMER SERVICE was very helpful and the MP3 arrived on time.",
    "我要取消昨天下的订单 please 帮我退款 http://a.cn/b?good=1",
)
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*" ，,.!3", *"不好的是", *synonym_table()[0]]), max_size=30).map("".join),
    st.lists(st.sampled_from([*synonym_table()[0], "cable", "sound"]), max_size=30).map(" ".join),
)
chances = st.floats(0, 1)


def varied(text: str, seed: int, synonyms: float, edits: float) -> str:
    return vary(text, random.Random(seed), synonyms=synonyms, edits=edits)


@given(texts)
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    assert "".join(unit.text for unit in units(text)) == text


@given(texts, st.integers(0, 5))
def test_with_no_chance_of_a_change_a_text_stays(text: str, seed: int) -> None:
    assert varied(text, seed, 0, 0) == text


@given(texts, st.integers(0, 5), chances, chances)
def test_a_text_is_never_emptied_and_a_seed_decides(text: str, seed: int, synonyms: float, edits: float) -> None:
    result = varied(text, seed, synonyms, edits)
    assert bool(result.strip()) == bool(text.strip())
    assert result == varied(text, seed, synonyms, edits)
    assert any(unit.word for unit in units(result)) == any(unit.word for unit in units(text))


@given(texts, st.integers(0, 5), chances)
def test_synonyms_leave_all_else_where_it_is(text: str, seed: int, chance: float) -> None:
    """Piece by piece, the same or one of its group: so the words that a sentence turns on stay, and the next ones."""
    options = ({unit.text, *(_cases(unit.others) if unit.free else ())} for unit in units(text))
    pattern = "".join(f"(?:{'|'.join(map(re.escape, own))})" for own in options)
    assert re.fullmatch(pattern, varied(text, seed, chance, 0), re.DOTALL)


def _cases(words: tuple[str, ...]) -> set[str]:
    return {form for word in words for form in (word, word.upper(), word[0].upper() + word[1:])}


@given(st.sampled_from(SAMPLES), st.integers(0, 1000), chances, chances)
def test_negations_and_the_words_after_them_stay(text: str, seed: int, synonyms: float, edits: float) -> None:
    result = varied(text, seed, synonyms, edits)
    for kept in ("但是客服态度", "不好", "don't like", "but CUSTOMER SERVICE", "MP3", "http://a.cn/b?good=1"):
        assert (kept in result) == (kept in text)


def test_synonyms_take_the_case_and_the_longest_word() -> None:
    results = [varied("GREAT parcel, Parcel. 快递员", seed, 1, 0).split() for seed in range(40)]
    assert {words[0] for words in results} == {"GOOD", "NICE"}
    assert {" ".join(words[1:3]) for words in results} == {"package, Package."}
    assert {words[3] for words in results} == {"快递小哥", "配送员", "送货员"}


def test_edits_delete_swap_and_insert() -> None:
    results = {varied("good cable", seed, 0, 1) for seed in range(60)}
    assert results >= {"cable good", "good great", "good nice"}
    assert all("  " not in result for result in results)
    assert "cable" in {varied("the cable", seed, 0, 0.5) for seed in range(60)}


def test_the_table_is_sound() -> None:
    content = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    for language in ("zh", "en"):
        groups = content[language]
        words = Counter(word for group in groups for word in group)
        assert len(groups) >= 150
        assert all(len(group) >= 2 for group in groups)
        assert [word for word, n in words.items() if n > 1] == []
        assert set(words) & set(content["keep"][language]) == set()
        assert [w for w in words if w != normalise(w, lower=True)] == []
        assert [w for w in [*words, *content["keep"][language]] if [unit.text for unit in units(w)] != [w]] == []


RECIPE = """
name: toy
body: none
seed: 5
text: {max_tokens: 64, gram_buckets: 0}
calibration_share: 0.3
heads: {mood: {}, want: {}}
datasets:
  - {name: plain, file: rows.jsonl, labels: {mood: mood}}
  - {name: more, file: rows.jsonl, labels: {mood: mood}, augment: {synonyms: 0.5, edits: 0.2, copies: 2}}
  - {name: own, file: rows.jsonl, labels: {mood: mood}, outside: {want: []}, guessed: true, augment: {edits: 0.3}}
  - {name: want, file: wants.jsonl, labels: {want: want}}
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("augment"), random.Random(0)
    words = ["parcel", "cable", "really", "arrived", "soon", "shop", "email", "sound", "picture", "buy"]
    rows = [
        {"text": " ".join([rng.choice(pair), *rng.choices(words, k=5)]), "mood": mood}
        for mood, pair in (("bad", ("terrible", "junk")), ("good", ("great", "happy")))
        for _ in range(200)
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    wants = [{"text": f"want {i}", "want": "ab"[i % 2]} for i in range(20)]
    (folder / "wants.jsonl").write_text("\n".join(json.dumps(row) for row in wants))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def corpus_of(recipe: Recipe, folder: Path) -> tuple[Corpus, list[str]]:
    """The corpus, and the text of every row that is not extra."""
    codec = TextCodec(wordpiece_tokenizer([*LETTERS, *[f"##{c}" for c in LETTERS]], lower=True), recipe.text)
    rows = read_corpus(recipe, folder)
    return build_corpus(recipe, rows, codec), [example.text for part in rows for example in part]


def test_only_rows_that_are_trained_on_are_augmented_and_labels_stay(workshop: Path) -> None:
    corpus, own = corpus_of(load_recipe(workshop / "recipe.yaml"), workshop)
    n = len(own)
    extra = np.arange(n, len(corpus.prepared))
    assert len(extra) > 300
    assert (corpus.origin[:n] == np.arange(n)).all()
    origin = corpus.origin[extra]
    assert not corpus.held[origin].any()
    assert not corpus.held[extra].any()
    assert (corpus.labels[extra] == corpus.labels[origin]).all()
    assert (corpus.dataset[extra] == corpus.dataset[origin]).all()
    assert set(corpus.dataset[extra].tolist()) == {1, 2}
    held = {p.ids.tobytes() for p, is_held in zip(corpus.prepared, corpus.held, strict=True) if is_held}
    assert held.isdisjoint(corpus.prepared[i].ids.tobytes() for i in extra)
    made = [(int(corpus.dataset[i]), corpus.prepared[i].ids.tobytes()) for i in range(len(corpus.prepared))]
    assert len(set(made)) == len(made)
    guessed = corpus.dataset == 2
    assert (corpus.labels[guessed & corpus.held] == NO_LABEL).all()
    assert (corpus.labels[guessed & ~corpus.held] != NO_LABEL).any()


def test_augmentation_is_the_same_for_the_same_seed(workshop: Path) -> None:
    recipe = load_recipe(workshop / "recipe.yaml")
    first, second = (corpus_of(recipe, workshop)[0].prepared for _ in range(2))
    assert [p.ids.tolist() for p in first] == [p.ids.tolist() for p in second]


def test_the_default_adds_nothing(workshop: Path, tmp_path: Path) -> None:
    plain = tmp_path / "recipe.yaml"
    plain.write_text("\n".join(line.split(", augment")[0] + "}" * (", augment" in line) for line in RECIPE.split("\n")))
    recipe = load_recipe(plain)
    assert [dataset.augment for dataset in recipe.datasets] == [None] * 4
    corpus, own = corpus_of(recipe, workshop)
    assert len(corpus.prepared) == len(own)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("{synonyms: 2}", r"more: augment\.synonyms: 2 is not a number from 0 to 1"),
        ("{edits: often}", r"more: augment\.edits: 'often' is not a number"),
        ("{copies: -1}", r"augment\.copies: -1 is not a whole number"),
        ("{synonym: 0.1}", r"augment: unknown key 'synonym'"),
        ("[0.1]", "augment: keys with values are expected"),
        ("{back_translation: {there: a}}", r"back_translation: .*'back'"),
        ("{back_translation: {there: a, back: b, languages: [zh]}}", "are not two codes"),
        ("{back_translation: {there: a, back: b, share: -0.1}}", "share: -0.1 is not"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, given_: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("{synonyms: 0.5, edits: 0.2, copies: 2}", given_))
    with pytest.raises(DataError, match=message):
        load_recipe(path)


def test_a_setting_is_read(workshop: Path) -> None:
    assert load_recipe(workshop / "recipe.yaml").datasets[1].augment == Augmentation(0.5, 0.2, 2)


def test_training_goes_through_with_extra_rows(tmp_path: Path) -> None:
    make_workshop(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    content["datasets"][0]["augment"] = {"synonyms": 0.5, "edits": 0.2, "copies": 2}
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    folder = run(tmp_path, tmp_path / "out", tokens=4000)
    labels = ["negative", "positive"] * 30
    rng = random.Random(9)
    spoken = [sentence(label, rng) for label in labels]
    figures = evaluate_texts(load_scorer(folder, device="cpu"), "sentiment", spoken, labels)
    assert figures["accuracy"] > 0.9
