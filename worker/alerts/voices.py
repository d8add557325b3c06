"""Copies of a text and bursts of one author, told from many voices. Pure.

A subject remembers the fingerprints of its latest texts and its latest authors. What copies a text that has counted
`COPIES_COUNTED` times, or comes from an author who has counted `OPINIONS_COUNTED` times, is set apart: it is told in
the alert, and it moves neither share nor volume. Bounds: `REMEMBERED` of each, forgotten `MEMORY_MINUTES` after they
were last seen.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

import msgspec

from worker.privacy.fingerprint import NEAR_BITS

REMEMBERED: Final = 64
MEMORY_MINUTES: Final = 60
COPIES_COUNTED: Final = 2
OPINIONS_COUNTED: Final = 3
_TIMES_BITS: Final = 4
_TIMES_MAX: Final = 15


class Voices(msgspec.Struct, array_like=True):
    """Last seen at the end: fingerprint, or CRC of the author, to ``minute << 4 | times seen``. Numbers, because they
    are written with every opinion of a busy subject."""

    texts: dict[int, int] = {}
    authors: dict[int, int] = {}

    def counts(self, text_print: str, author: str, minute: int) -> bool:
        """Whether an opinion of this text and author counts. Empty ones are unknown, and count."""
        known = self._text(int(text_print, 16), minute) if text_print else 1
        times = _seen(self.authors, crc32(author.encode()), minute) if author else 1
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


def _seen(known: dict[int, int], key: int, minute: int) -> int:
    """How often the key has been seen, this time included; makes room for it at the end."""
    entry = known.pop(key, minute << _TIMES_BITS)
    last, times = entry >> _TIMES_BITS, entry & _TIMES_MAX
    if minute - last > MEMORY_MINUTES:
        times = 0
    times = min(times + 1, _TIMES_MAX)
    known[key] = max(minute, last) << _TIMES_BITS | times
    while len(known) > REMEMBERED or minute - (next(iter(known.values())) >> _TIMES_BITS) > MEMORY_MINUTES:
        del known[next(iter(known))]
    return times
