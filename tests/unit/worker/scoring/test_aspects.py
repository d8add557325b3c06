"""What a review is about, by the shipped lexicon and by one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigError
from worker.scoring.aspects import MAX_ASPECTS, READ_CHARS, Aspects, _fault, _fold, load_aspects

SHIPPED = load_aspects("shipped")


@pytest.mark.parametrize(
    ("text", "aspects"),
    [
        ("物流太慢了，等了三天", ["delivery"]),
        ("质量不错，就是包装压坏了", ["quality", "packaging"]),
        ("客服态度差，退款一直不到账", ["service", "refunds"]),
        ("刚买就降价，不给保价", ["price"]),
        ("DELIVERED late, box crushed", ["delivery", "packaging"]),
        ("Customer service was rude, I want my money back", ["service", "refunds"]),
        ("Overpriced and it broke", ["quality", "price"]),
        ("fell apart within a week", ["quality"]),
        ("很好，喜欢", []),
        ("A brokerage with a spriced tea", []),
        ("", []),
    ],
)
def test_the_shipped_lexicon_knows_six_aspects_in_two_languages(text: str, aspects: list[str]) -> None:
    assert SHIPPED.match(text) == aspects


def test_words_stand_alone_stems_begin_phrases_and_chinese_stand_anywhere() -> None:
    aspects = Aspects({"a": ["cat", "stem*"], "b": ["two words", "中文"], "c": ["Mixed词"]})
    assert aspects.match("a CAT.") == ["a"]
    assert aspects.match("concatenate") == []
    assert aspects.match("stemming") == aspects.match("stem") == ["a"]
    assert aspects.match("system") == []
    assert aspects.match("in two words") == ["b"]
    assert aspects.match("英文中文x mixed词") == ["b", "c"]
    assert aspects.match("two wordsmiths") == []


def test_a_word_may_name_several_aspects_in_every_language() -> None:
    aspects = Aspects({"a": ["late", "deliver*", "on time", "晚到"], "b": ["晚到", "on time", "late", "deliver*"]})
    for text in ("late", "delivery", "on time", "晚到了"):
        assert aspects.match(text) == ["a", "b"], text


@pytest.mark.parametrize(
    ("word", "texts", "others"),
    [
        ("wi-fi*", ["the WI-FI", "wi-fis"], ["wi fi", "kiwi-fi"]),
        ("on time*", ["on time!", "on  timely"], ["on tim", "upon time"]),
        ("deliver* late", ["delivered late", "deliver late"], ["deliverylate", "delivered lately", "redeliver late"]),
        ("élev*", ["prix élevé", "E\u0301LEVÉ"], ["relevé"]),
        ("достав*", ["Доставка", "о доставке"], ["передоставка"]),
        ("合身*", ["很合身", "合身的"], ["合 身"]),
        ("XL*", ["ＸＬ码", "xlarge"], ["3xl"]),
    ],
)
def test_a_star_ends_any_word_of_any_script(word: str, texts: list[str], others: list[str]) -> None:
    aspects = Aspects({"it": [word]})
    assert [text for text in texts if not aspects.match(text)] == []
    assert [text for text in others if aspects.match(text)] == []


@pytest.mark.parametrize("word", ["*fi", "wi*fi", "a**", "late *", "*合身", "合*身", "XL* 码", ":(*"])
def test_a_star_elsewhere_is_refused_with_its_line(tmp_path: Path, word: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"taste:\n- tasty\n- '{word}'\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"mine\.yaml, line 3: `{re.escape(word)}`: a star may only end a word"):
        load_aspects(str(file))


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("delivery", "ｄｅｌｉｖｅｒｙ"),
        ("ｄｅｌｉｖｅｒｙ", "Delivery"),
        ("XL码", "要ＸＬ码"),
        ("didn't", "It didn’t"),
        ("didn’t", "It DIDN'T"),
        ("couldn't", "couldn´t"),
        ("quality", "‘Quality’"),
        ("couriers", "the couriers' van"),
        ("straße", "STRASSE"),
        ("iade", "İade"),
        ("快递", "快\u200b递"),
        ("好！", "真好!"),
        ("on time", "on\ntime"),
        ("डिलीवरी", "अच्छी डिलीवरी थी"),
        ("배송", "무료배송이"),
        (":(", "late :("),
        ("😡", "快递😡"),
    ],
)
def test_words_and_texts_are_folded_alike(word: str, text: str) -> None:
    assert Aspects({"it": [word]}).match(text) == ["it"]


@pytest.mark.parametrize(
    ("word", "text"),
    [("thé", "bathé"), ("чай", "случай"), ("ship", "ship𝐬"), ("डिली", "डिलीवरी"), ("didn't", "didn'ts")],
)
def test_words_of_scripts_with_spaces_are_whole_words(word: str, text: str) -> None:
    assert Aspects({"it": [word]}).match(text) == []


@given(st.text("ab*-' é合", min_size=1, max_size=6))
def test_a_word_that_is_taken_is_found_where_it_stands(word: str) -> None:
    if _fault(_fold(word.strip())) is None:
        assert Aspects({"it": [word]}).match(f"x {word.replace('*', '')} x") == ["it"]


def test_only_the_beginning_of_a_very_long_review_is_looked_at() -> None:
    assert SHIPPED.match("x" * READ_CHARS + "物流") == []


@given(st.text(max_size=200))
def test_matching_never_raises_and_names_each_aspect_once(text: str) -> None:
    found = SHIPPED.match(text)
    assert len(set(found)) == len(found)


def test_ones_own_lexicon_and_none(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("taste: [好吃, tasty]\n", encoding="utf-8")
    assert load_aspects(str(file)).match("物流慢但好吃") == ["taste"]
    assert load_aspects("none").match("物流") == []


@pytest.mark.parametrize(
    "content",
    [
        "- a list",
        "taste: tasty",
        "taste: [1]",
        "taste: ['*']",
        "'': [a]",
        "{",
        "taste: [tasty]\ntaste: [bland]",
        "taste: [no]",
        "no: [tasty]",
        "\n".join(f"a{n}: [w]" for n in range(MAX_ASPECTS + 1)),
    ],
)
def test_a_lexicon_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"worker\.aspects"):
        load_aspects(str(file))


def test_a_key_that_comes_twice_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("价格: [贵]\n质量: [坏]\n价格: [便宜]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"worker\.aspects .*mine\.yaml, line 3: a second `价格`"):
        load_aspects(str(file))


def test_a_missing_lexicon_is_named() -> None:
    with pytest.raises(ConfigError, match="/nowhere/lexicon"):
        load_aspects("/nowhere/lexicon.yaml")
