"""What an alert shows people: the most telling texts, the words that set them apart, and what they are about."""

from __future__ import annotations

import msgspec


class TellingText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One masked excerpt. ``copies`` counts opinions with the same text."""

    excerpt: str
    p_negative: float
    event_id: str
    event_time_ms: int
    item_id: str | None = None
    copies: int = 1


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """A word or phrase that the window's negative texts have more often than the texts before.

    ``window`` and ``before`` count texts; ``score`` is the z-score of the log-odds ratio.
    """

    term: str
    window: int
    before: int
    score: float


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the window's negative opinion also counts at another subject: ``share`` of it, ``negative`` texts."""

    subject: str
    negative: int
    share: float


class Evidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Evidence of one alert, best first in every list. ``seen`` of the window's opinions were at hand for it."""

    seen: int
    texts: list[TellingText] = []
    terms: list[Term] = []
    related: list[Share] = []
