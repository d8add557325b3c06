"""What a review is about: aspects such as delivery or price, by a lexicon that people can edit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec
import yaml

from worker.errors import ConfigError

SHIPPED: Final = "shipped"
NONE: Final = "none"
MAX_ASPECTS: Final = 16
"""Every aspect that a review names costs an opinion."""
MAX_WORDS: Final = 5000
WORDS_KEPT: Final = 8192
"""Words of which it is remembered what they name."""
READ_CHARS: Final = 2000
"""Only the beginning of a very long review is looked at."""

_WORD: Final = re.compile(r"[a-z0-9']+")
_LATIN_WORD: Final = re.compile(r"[a-z0-9']+\*?")


class Aspects:
    """A lexicon, made ready for matching: dictionary look-ups for words, substring search for the rest."""

    def __init__(self, lexicon: Mapping[str, Iterable[str]]) -> None:
        self._names = list(lexicon)
        self._words: dict[str, int] = {}
        self._stems: dict[str, int] = {}
        self._phrases: list[tuple[str, int]] = []
        self._parts: dict[str, list[tuple[str, int]]] = {}  # by the character that they begin with
        for place, words in enumerate(lexicon.values()):
            for word in (each.strip().lower() for each in words):
                if not word.isascii():
                    self._parts.setdefault(word[0], []).append((word, place))
                elif not _LATIN_WORD.fullmatch(word):
                    self._phrases.append((word, place))
                elif word.endswith("*"):
                    self._stems[word[:-1]] = place
                else:
                    self._words[word] = place
        self._stem_lengths = sorted({len(stem) for stem in self._stems})
        self._first = re.compile(f"[{''.join(map(re.escape, self._parts))}]" if self._parts else "(?!)")
        self._named_by = lru_cache(WORDS_KEPT)(self._look_up)

    def match(self, text: str) -> list[str]:
        """Names of the aspects that the text names, in the order of the lexicon."""
        lower = text[:READ_CHARS].lower()
        found: set[int] = set()
        if not lower.isascii():
            for first in set(self._first.findall(lower)):
                found.update([place for part, place in self._parts[first] if part in lower])
        words = _WORD.findall(lower)
        if words:
            found.update([place for phrase, place in self._phrases if phrase in lower])
            found.update(*map(self._named_by, words))
        return [self._names[place] for place in sorted(found)]

    def _look_up(self, word: str) -> tuple[int, ...]:
        stems = (self._stems.get(word[:length]) for length in self._stem_lengths if length <= len(word))
        return tuple(place for place in (self._words.get(word), *stems) if place is not None)


@lru_cache(maxsize=8)
def load_aspects(name: str) -> Aspects:
    """The lexicon of ``worker.aspects``: "shipped", "none", or a YAML file. Read once. Raises `ConfigError`."""
    if name == NONE:
        return Aspects({})
    try:
        file = resources.files(__package__) / "aspects.yaml" if name == SHIPPED else Path(name)
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        lexicon = msgspec.convert(content, dict[str, list[str]])
    except OSError as error:
        raise ConfigError(f"worker.aspects {name}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"worker.aspects {name}: expected lists of words by aspect: {error}") from error
    if len(lexicon) > MAX_ASPECTS or sum(map(len, lexicon.values())) > MAX_WORDS:
        raise ConfigError(f"worker.aspects {name}: at most {MAX_ASPECTS} aspects and {MAX_WORDS} words")
    bad = [aspect for aspect in lexicon if not aspect.strip() or len(aspect) > 64]
    empty = [word for words in lexicon.values() for word in words if not word.strip(" *")]
    if bad or empty:
        raise ConfigError(f"worker.aspects {name}: an aspect without a name, or a word without letters")
    return Aspects(lexicon)
