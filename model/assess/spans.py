"""Places in a text: the units that an explanation speaks of, and where normalised characters came from."""

import re
import unicodedata
from collections.abc import Sequence

from model.text import TextCodec, normalise

Span = tuple[int, int]
"""Start and end of a part of a text, in characters (code points) of the original."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_LETTERS = f"(?:(?![{_CJK}])[^\\W_]|[\u0300-\u036f])+"
# A word of letters and digits with inner apostrophes, hyphens and points; a run of one mark (!!!); an emoji with its
# modifiers; else one character, so Chinese goes by characters.
_UNIT = re.compile(
    f"{_LETTERS}(?:['’.-]{_LETTERS})*|([^\\w\\s])(?:\\1)*(?:[\ufe0f\u20e3\U0001f3fb-\U0001f3ff]|\u200d\\S)*|\\S"
)
_JAMO = range(0x1161, 0x1200)  # vowels and final consonants, which join the syllable before them


def units(text: str) -> list[Span]:
    """Words of scripts that have spaces, single Chinese characters, punctuation and emoji, in order; what normalising
    removes is left out. Spans do not overlap."""
    return [match.span() for match in _UNIT.finditer(text) if normalise(match.group())]


def merged(spans: Sequence[Span]) -> list[Span]:
    """Spans joined where they overlap, in order. Empty ones are left out."""
    result: list[Span] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if result and start < result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def grouped(spans: Sequence[Span], most: int) -> list[Span]:
    """At most ``most`` spans: runs of equally many neighbours where there are more."""
    step = -(-len(spans) // most) or 1
    return [(spans[i][0], spans[min(i + step, len(spans)) - 1][1]) for i in range(0, len(spans), step)]


def without(text: str, span: Span) -> str:
    """The text without a span. Two words that it held apart stay apart."""
    before, after = text[: span[0]], text[span[1] :]
    glued = before[-1:].isalnum() and after[:1].isalnum() and before[-1:].isascii() and after[:1].isascii()
    return f"{before} {after}" if glued else before + after


def origins(text: str, codec: TextCodec) -> list[Span]:
    """For every character of the normalised text that ``codec`` reads, its span in the original.

    Characters that normalise together (a letter and its accents) share one span, and so do those that one character
    becomes (a ligature). Should the parts not add up to the whole text normalised, all get the whole as their span.
    """
    found: list[tuple[str, Span]] = []
    parts = codec.read_parts(text)
    for number, (start, end) in enumerate(parts):
        if number:
            found.append((" ", (start, start)))  # the codec joins head and tail with a space
        for span in _clusters(text, start, end):
            clean = normalise(f"a{text[slice(*span)]}a", lower=codec.spec.lower)[1:-1]  # letters shield outer spaces
            found += [(character, span) for character in clean]
    folded: list[tuple[str, Span]] = []
    for character, span in found:
        if not character.isspace() or (folded and not folded[-1][0].isspace()):
            folded.append((character, span))
    if folded and folded[-1][0].isspace():
        folded.pop()
    size = len(codec.pieces(text)[0])
    return [span for _, span in folded] if len(folded) == size else [(0, len(text))] * size


def _clusters(text: str, start: int, end: int) -> list[Span]:
    """Spans between which normalising changes nothing across: a character with the marks that may join it. Invisible
    characters at a cluster's end are left out of it."""
    result: list[Span] = []
    for i in range(start, end):
        first = unicodedata.normalize("NFKC", text[i])[0]
        invisible = not text[i].isspace() and not normalise(text[i])
        if invisible and result:
            continue  # swallowed if a mark follows, else between clusters
        joins = unicodedata.category(first).startswith("M") or ord(first) in _JAMO
        if joins and result:
            result[-1] = (result[-1][0], i + 1)
        else:
            result.append((i, i + 1))
    return result
