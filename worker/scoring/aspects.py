"""What a review is about: aspects such as delivery or price, by a lexicon that people can edit."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from model.text import normalise
from worker.errors import ConfigError
from worker.yaml_file import line_of, load_yaml, refusal, values_of

SHIPPED: Final = "shipped"
NONE: Final = "none"
MAX_ASPECTS: Final = 16
"""Every aspect that a review names costs an opinion."""
MAX_WORDS: Final = 5000
NAME_MAX: Final = 64
WORDS_KEPT: Final = 8192
"""Words of which it is remembered what they name."""
READ_CHARS: Final = 2000
"""Only the beginning of a very long review is looked at."""

# Scripts without spaces between words, and Korean, whose words carry their particles: Thai, Lao, Tibetan, Burmese,
# Hangul, Khmer, Chinese, Japanese, Yi.
_UNSPACED: Final = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)


def _word_characters() -> str:
    r"""Letters, digits and marks of all other scripts, as ranges of a character class. ``\w`` has Chinese too, and
    lacks the vowels of Hindi. Emoji's variation selectors are marks, but of no word."""
    ranges: list[list[int]] = []
    others = re.compile(f"[{_UNSPACED}\ufe00-\ufe0f]")
    for code in range(0x10000):
        letter = chr(code)
        if not (letter.isalnum() or unicodedata.category(letter) in ("Mn", "Mc")) or others.match(letter):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


_LETTERS: Final = _word_characters()
_WORD: Final = re.compile(f"[{_LETTERS}]+")
_REST: Final = re.compile(f"[{_LETTERS}]*")
_ANYWHERE: Final = re.compile(f"[{_UNSPACED}]")
_STRAY_STAR: Final = re.compile(rf"(?<![{_LETTERS}])\*|\*(?=[*{_LETTERS}])")
# Most Chinese texts owe to full-width punctuation alone that NFKC must go through them, at fifty times the cost.
_USUAL: Final = (
    *zip("，！？：；（）～\u3000", ",!?:;()~ ", strict=True),
    *((mark, "'") for mark in "\u2019\u2018\u02bc\u00b4"),
)


class Aspects:
    """A lexicon, made ready for matching: dictionary look-ups for words and for what begins a phrase, substring search
    for the rest. ``names``: the aspects."""

    def __init__(self, lexicon: Mapping[str, Iterable[str]]) -> None:
        self.names = list(lexicon)
        # What a word names: places of aspects, and beyond them those of phrases that begin with it.
        self._words: dict[str, list[int]] = {}
        self._stems: dict[str, list[int]] = {}
        self._phrases: list[tuple[list[str], int]] = []
        self._parts: dict[str, list[tuple[str, int]]] = {}  # by the character that they begin with
        for place, words in enumerate(lexicon.values()):
            for word in words:
                self._add(_fold(word.strip()), place)
        self._stem_lengths = sorted({len(stem) for stem in self._stems})
        self._first = re.compile(f"[{''.join(map(re.escape, self._parts))}]" if self._parts else "(?!)")
        self._parts_in_ascii = any(part.isascii() for parts in self._parts.values() for part, _ in parts)
        self._named_by = lru_cache(WORDS_KEPT)(self._look_up)

    def _add(self, word: str, place: int) -> None:
        first = _WORD.search(word)
        if first is None or _ANYWHERE.search(word):
            part = word.removesuffix("*")  # where it begins a word it stands, too
            self._parts.setdefault(part[0], []).append((part, place))
            return
        alone = first.group()
        if word not in (alone, f"{alone}*"):
            self._phrases.append((word.split("*"), place))
            place = len(self.names) + len(self._phrases) - 1
        begins = self._stems if word.startswith("*", first.end()) else self._words
        begins.setdefault(alone, []).append(place)

    def match(self, text: str) -> list[str]:
        """Names of the aspects that the text names, in the order of the lexicon."""
        folded = _fold(text[:READ_CHARS])
        found: set[int] = set()
        if self._parts_in_ascii or not folded.isascii():
            for first in set(self._first.findall(folded)):
                found.update([place for part, place in self._parts[first] if part in folded])
        words = _WORD.findall(folded)
        if words:
            found.update(*map(self._named_by, words))
        count = len(self.names)
        for begun in [each for each in found if each >= count]:
            found.remove(begun)
            phrase, place = self._phrases[begun - count]
            if place not in found and _stands(phrase, folded):
                found.add(place)
        return [self.names[place] for place in sorted(found)]

    def _look_up(self, word: str) -> tuple[int, ...]:
        stems = (self._stems.get(word[:length], ()) for length in self._stem_lengths if length <= len(word))
        return (*self._words.get(word, ()), *(place for places in stems for place in places))


def _fold(text: str) -> str:
    """As the model reads a text, and of one case, with one apostrophe."""
    plain = text.isascii()
    if not plain:
        for fancy, usual in _USUAL:
            text = text.replace(fancy, usual)
    if not text.isprintable() or "  " in text:  # which most are, and without: the rest of it costs more than all here
        text = normalise(text)
    elif not plain:
        text = unicodedata.normalize("NFKC", text)
    text = text.casefold().replace("`", "'")
    # Folding can leave what NFKC composes, and of a Turkish capital I a dot that nobody writes.
    return text if plain else unicodedata.normalize("NFKC", text.replace("i\u0307", "i"))


def _stands(phrase: list[str], text: str) -> bool:
    """Whether a phrase, cut where its words may go on, stands in a text between the boundaries of words."""
    start = text.find(phrase[0])
    while start >= 0:
        if not (start and _WORD.match(phrase[0]) and _WORD.match(text, start - 1)):
            end = start + len(phrase[0])
            for part in phrase[1:]:
                end = _end_of_word(text, end)
                if not text.startswith(part, end):
                    break
                end += len(part)
            else:
                if end == _end_of_word(text, end) or not _WORD.match(text, end - 1):
                    return True
        start = text.find(phrase[0], start + 1)
    return False


def _end_of_word(text: str, place: int) -> int:
    rest = _REST.match(text, place)
    return rest.end() if rest else place


@lru_cache(maxsize=8)
def load_aspects(name: str) -> Aspects:
    """The lexicon of ``worker.aspects``: "shipped", "none", or a YAML file. Read once.

    Raises `ConfigError` naming the file, the line and what is wrong.
    """
    if name == NONE:
        return Aspects({})
    where = f"worker.aspects {name}"
    node, content = load_yaml(Path(__file__).with_name("aspects.yaml") if name == SHIPPED else Path(name), where)
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected lists of words by aspect")
    lexicon: dict[str, list[str]] = {}
    for aspect, words in values_of(node, where).items():
        here = f"{where}, line {line_of(words)}"
        if not aspect.strip() or len(aspect) > NAME_MAX:
            raise ConfigError(f"{here}: an aspect's name has 1 to {NAME_MAX} characters")
        try:
            lexicon[aspect] = msgspec.convert(content[aspect], list[str])
        except msgspec.ValidationError as error:
            raise refusal(error, words, where) from error
        for word, place in zip(lexicon[aspect], words.value, strict=True):
            if fault := _fault(_fold(word.strip())):
                raise ConfigError(f"{where}, line {line_of(place)}: `{word}`: {fault}")
    if len(lexicon) > MAX_ASPECTS or sum(map(len, lexicon.values())) > MAX_WORDS:
        raise ConfigError(f"{where}: at most {MAX_ASPECTS} aspects and {MAX_WORDS} words")
    return Aspects(lexicon)


def _fault(word: str) -> str | None:
    if not word.strip(" *"):
        return "a word without letters"
    stray = "*" in word[:-1] if _ANYWHERE.search(word) else _STRAY_STAR.search(word)
    return "a star may only end a word, as in deliver*" if stray else None
