"""Copies of a text and bursts of one author, told from many voices. Pure.

A subject remembers the fingerprints of its latest texts and its latest authors. What copies a text that has counted
`COPIES_COUNTED` times, or comes from an author who has counted `OPINIONS_COUNTED` times, is set apart: it is told in
the alert, and it moves neither share nor volume. Bounds: `REMEMBERED` of each, forgotten `MEMORY_MINUTES` after they
were last seen.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from worker.fingerprint import NEAR_BITS

REMEMBERED: Final = 64
MEMORY_MINUTES: Final = 60
COPIES_COUNTED: Final = 2
OPINIONS_COUNTED: Final = 3

_Key = TypeVar("_Key", int, str)


class Voices(msgspec.Struct, array_like=True):
    """Last seen at the end. texts: fingerprint -> [times seen, minute]; authors: author -> the same."""

    texts: dict[int, list[int]] = {}
    authors: dict[str, list[int]] = {}

    def counts(self, text_print: str, author: str, minute: int) -> bool:
        """Whether an opinion of this text and author counts. Empty ones are unknown, and count."""
        known = self._text(int(text_print, 16), minute) if text_print else 1
        times = _seen(self.authors, author, minute) if author else 1
        return known <= COPIES_COUNTED and times <= OPINIONS_COUNTED

    def _text(self, text: int, minute: int) -> int:
        texts = self.texts
        if text not in texts:
            # A text is known by its first copy, so that copies of copies do not wander away from it.
            for other in texts:
                if (other ^ text).bit_count() <= NEAR_BITS:
                    text = other
                    break
        return _seen(texts, text, minute)


def _seen(known: dict[_Key, list[int]], key: _Key, minute: int) -> int:
    entry = known.pop(key, None)
    if entry is None or minute - entry[1] > MEMORY_MINUTES:
        entry = [0, minute]
    entry[0] += 1
    entry[1] = max(minute, entry[1])
    known[key] = entry
    while len(known) > REMEMBERED or minute - next(iter(known.values()))[1] > MEMORY_MINUTES:
        del known[next(iter(known))]
    return entry[0]
