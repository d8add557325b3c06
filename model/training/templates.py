"""Own sentences for what no labelled data covers: Chinese shop intents, and messages that no shop can answer."""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

VARIANTS = 12  # distinct sentences tried for each template
_SLOT = re.compile(r"\{(\w+)\}")


@cache
def templates() -> Mapping[str, Any]:
    """The content of templates.yaml: slots, openings, endings, shop (templates by intent), outside."""
    content: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("templates.yaml").read_text(encoding="utf-8"))
    return content


def shop_sentences(seed: int, variants: int = VARIANTS) -> list[tuple[str, str]]:
    """Chinese sentences with their shop intent, without repeats; the same for the same seed."""
    content, rng = templates(), random.Random(seed)  # noqa: S311 - wants to be repeatable
    sentences: dict[str, str] = {}
    for intent, patterns in content["shop"].items():
        for pattern in patterns:
            for _ in range(variants):
                sentence = rng.choice(content["openings"]) + fill(pattern, content["slots"], rng)
                sentences.setdefault(sentence + rng.choice(content["endings"]), intent)
    return list(sentences.items())


def outside_sentences(seed: int = 0, variants: int = 4) -> list[str]:
    """Chinese and English sentences out of scope for a shop, without repeats."""
    content, rng = templates(), random.Random(seed)  # noqa: S311 - wants to be repeatable
    sentences: dict[str, None] = {}
    for pattern in content["outside"]:
        chinese = not pattern.isascii()
        for i in range(variants):
            sentence = fill(pattern, content["slots"], rng)
            if chinese and i:  # openings and endings are no sign of being in scope
                sentence = rng.choice(content["openings"]) + sentence + rng.choice(content["endings"])
            sentences[sentence] = None
    return list(sentences)


def fill(pattern: str, slots: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """A template with every {slot} replaced by one of its values. Raises KeyError for an unknown slot."""
    return _SLOT.sub(lambda match: rng.choice(slots[match[1]]), pattern)
