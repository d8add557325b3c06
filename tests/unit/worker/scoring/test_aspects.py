"""What a review is about, by the shipped lexicon and by one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigError
from worker.scoring.aspects import MAX_ASPECTS, READ_CHARS, Aspects, load_aspects

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
        "\n".join(f"a{n}: [w]" for n in range(MAX_ASPECTS + 1)),
    ],
)
def test_a_lexicon_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"worker\.aspects"):
        load_aspects(str(file))


def test_a_missing_lexicon_is_named() -> None:
    with pytest.raises(ConfigError, match="/nowhere/lexicon"):
        load_aspects("/nowhere/lexicon.yaml")
