"""What tells copies of a text and the many voices of one author apart, without carrying the text or the author.

A text's fingerprint is a 64-bit simhash (Charikar 2002) of the character trigrams of its normalised form (NFKC, case
folded, letters and digits only): texts that differ in a word or in punctuation differ in few bits. An author's is a
keyed hash, the same in all processes that share ``MILLRACE_PSEUDONYM_KEY``.
"""

from __future__ import annotations

import unicodedata
from typing import Final

import numpy as np

from worker.logs import pseudonym

MIN_CHARS: Final = 10
"""A shorter text says what many say ("很好", "good"), so it has no fingerprint and is nobody's copy."""
MAX_CHARS: Final = 1024
NEAR_BITS: Final = 12
"""Two fingerprints that differ in no more bits are of one text."""

_MIX: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFT: Final = (np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(21))


def fingerprint(text: str) -> str:
    """Sixteen hexadecimal digits; empty for a text too short to be recognised."""
    plain = "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text[:MAX_CHARS]).casefold()))
    if len(plain) < MIN_CHARS:
        return ""
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    # A code point has 21 bits, so three of them fit one word; then splitmix64's finaliser.
    grams = points[:-2] | points[1:-1] << _SHIFT[3] | points[2:] << (_SHIFT[3] + _SHIFT[3])
    grams *= _MIX[0]
    grams = (grams ^ grams >> _SHIFT[0]) * _MIX[1]
    grams = (grams ^ grams >> _SHIFT[1]) * _MIX[2]
    grams ^= grams >> _SHIFT[2]
    votes = np.unpackbits(grams.view(np.uint8)).reshape(-1, 64).sum(0, dtype=np.uint16)
    return np.packbits(2 * votes > len(grams)).tobytes().hex()


def author_of(user_id: str | None) -> str:
    """An author's pseudonym; empty for none."""
    return "" if user_id is None else pseudonym(user_id)
