"""The Chinese shop sentences: enough of them, in own words, filled and repeatable."""

import random
from collections import Counter

import pytest

from model.training.templates import fill, outside_sentences, shop_sentences, templates

INTENTS = 27


def test_every_intent_has_enough_distinct_templates() -> None:
    shop = templates()["shop"]
    assert len(shop) == INTENTS
    assert all(len(set(patterns)) >= 15 for patterns in shop.values())
    everything = [pattern for patterns in shop.values() for pattern in patterns]
    assert len(everything) == len(set(everything))  # no template under two intents


def test_sentences_are_filled_distinct_and_repeatable() -> None:
    sentences = shop_sentences(seed=1)
    assert sentences == shop_sentences(seed=1) != shop_sentences(seed=2)
    texts = [text for text, _ in sentences]
    assert len(texts) == len(set(texts))
    assert not any("{" in text or "}" in text for text in texts)
    counts = Counter(intent for _, intent in sentences)
    assert min(counts.values()) >= 100
    assert max(counts.values()) < 2 * min(counts.values())


def test_outside_sentences_are_bilingual_and_in_no_intent() -> None:
    outside = outside_sentences()
    assert sum(text.isascii() for text in outside) >= 30
    assert sum(not text.isascii() for text in outside) >= 30
    assert not {text for text, _ in shop_sentences(1)} & set(outside)


def test_an_unknown_slot_raises() -> None:
    with pytest.raises(KeyError):
        fill("{nothing}", {"item": ["x"]}, random.Random(0))
