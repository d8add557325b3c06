"""What tells copies of a text and the many voices of one author apart, without carrying the text or the author.

A text's fingerprint is a 64-bit simhash (Charikar 2002) of the character trigrams of its normalised form (NFKC, case
folded, letters and digits only): texts that differ in a word or in punctuation differ in few bits. An author's is a
keyed hash, the same in all processes that share ``MILLRACE_PSEUDONYM_KEY``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from worker.logs import pseudonym

MIN_CHARS: Final = 10
"""A shorter text says what many say ("很好", "good"), so it has no fingerprint and is nobody's copy."""
MAX_CHARS: Final = 1024
NEAR_BITS: Final = 12
"""Two fingerprints that differ in no more bits are of one text."""

_TOGETHER: Final = 64
"""Texts whose bits are counted in one pass: 4 MB at most."""
_BYTE_MAX: Final = 255
_OTHER: Final = re.compile(r"[\W_]+")
_MIX: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFT: Final = (np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(21))


def fingerprint(text: str) -> str:
    """Sixteen hexadecimal digits; empty for a text too short to be recognised."""
    return fingerprints([text])[0]


def fingerprints(texts: Sequence[str]) -> list[str]:
    """Of many texts at once: a text alone costs four times as much."""
    found = [""] * len(texts)
    plain = [_plain(text) for text in texts]
    long = [i for i, each in enumerate(plain) if len(each) >= MIN_CHARS]
    for first in range(0, len(long), _TOGETHER):
        some = long[first : first + _TOGETHER]
        for i, digits in zip(some, _simhashes([plain[i] for i in some]), strict=True):
            found[i] = digits
    return found


def _plain(text: str) -> str:
    text = text[:MAX_CHARS]
    return _OTHER.sub("", text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold())


def _simhashes(texts: Sequence[str]) -> Iterable[str]:
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    # A code point has 21 bits, so three of them fit one word; then splitmix64's finaliser.
    grams = points[:-2] | points[1:-1] << _SHIFT[3] | points[2:] << (_SHIFT[3] + _SHIFT[3])
    grams *= _MIX[0]
    grams = (grams ^ grams >> _SHIFT[0]) * _MIX[1]
    grams = (grams ^ grams >> _SHIFT[1]) * _MIX[2]
    grams ^= grams >> _SHIFT[2]
    # Of every gram 64 bytes, each 0 or 1: added up eight at a time, as words, in pieces in which no byte runs over.
    words = np.unpackbits(grams.view(np.uint8)).view(np.uint64).reshape(-1, 8)
    cuts: list[int] = []
    pieces: list[int] = []
    firsts: list[int] = []
    lengths: list[int] = []
    start = 0
    for text in texts:
        end = start + len(text) - 2  # the two grams that begin at its last characters reach into the next text
        firsts.append(len(pieces))
        lengths.append(end - start)
        for cut in range(start, end, _BYTE_MAX):
            pieces.append(len(cuts))
            cuts.append(cut)
        cuts.append(end)
        start = end + 2
    counts = np.add.reduceat(words, cuts[:-1], axis=0).view(np.uint8)[pieces]
    votes = np.add.reduceat(counts, firsts, axis=0, dtype=np.uint16)
    return [each.tobytes().hex() for each in np.packbits(2 * votes > np.array(lengths)[:, None], axis=1)]


def author_of(user_id: str | None) -> str:
    """An author's pseudonym; empty for none."""
    return "" if user_id is None else pseudonym(user_id)
