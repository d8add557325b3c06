"""What an alert shows people: recent opinions of every subject are kept, the most telling chosen when it matters. Pure.

Chosen by maximal marginal relevance (Carbonell and Goldstein, 1998): negative, long enough to say something, rich in
the terms that set the window apart, and unlike those already chosen. Copies and near-copies (Jaccard `COPY_SIMILARITY`
of terms) are counted, not shown.

Bounds: `RECENT` negative and as many other opinions a subject, `MAX_KEPT` in all; subjects longest untouched make room.
Nothing of it outlives the process: after a restart there is less to show until new opinions have come.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import Final

import msgspec

from schemas.evidence import Evidence, Share, TellingText, Term
from schemas.scores import Alert, Opinion
from worker.alerts.terms import contrast, terms_of

RECENT: Final = 40
MAX_KEPT: Final = 8000
"""About a kilobyte each, for every partition."""
NEGATIVE_MIN: Final = 0.5
TEXTS: Final = 5
TERMS: Final = 8
RELATED: Final = 8
SHARE_MIN: Final = 0.05
RELEVANCE_WEIGHT: Final = 0.6
COPY_SIMILARITY: Final = 0.8
FULL_TEXT_TERMS: Final = 8
"""A text of fewer terms says less."""


class EvidenceKeeper:
    """Recent opinions of the subjects of one partition."""

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max_kept = max_kept
        self._subjects: OrderedDict[str, tuple[deque[Opinion], deque[Opinion]]] = OrderedDict()
        self._kept = 0

    def __len__(self) -> int:
        return self._kept

    def add(self, opinion: Opinion) -> None:
        """Keep one opinion."""
        subjects = self._subjects
        kinds = subjects.get(opinion.subject)
        if kinds is None:
            kinds = subjects[opinion.subject] = (deque(maxlen=RECENT), deque(maxlen=RECENT))
        else:
            subjects.move_to_end(opinion.subject)
        kind = kinds[opinion.p_negative < NEGATIVE_MIN]
        if len(kind) < RECENT:
            self._kept += 1
        kind.append(opinion)
        while self._kept > self._max_kept and len(subjects) > 1:
            _, gone = subjects.popitem(last=False)
            self._kept -= sum(map(len, gone))

    def attach(self, alert: Alert) -> Alert:
        """The alert with what there is to show for it."""
        kinds = self._subjects.get(alert.subject)
        if kinds is None:
            return alert
        shown = evidence(alert, [*kinds[0], *kinds[1]])
        return alert if shown is None else msgspec.structs.replace(alert, evidence=shown)


def evidence(alert: Alert, opinions: Sequence[Opinion]) -> Evidence | None:
    """Evidence of an alert from opinions on its subject; None when they say nothing."""
    window: list[Opinion] = []
    before: list[Opinion] = []
    for opinion in opinions:
        inside = alert.window_start_ms <= opinion.event_time_ms < alert.window_end_ms
        (window if inside and opinion.p_negative >= NEGATIVE_MIN else before).append(opinion)
    texts = _distinct(window)
    terms = contrast([text.terms for text in texts], [text.terms for text in _distinct(before)], TERMS)
    related = _related(window)
    if not texts and not related:
        return None
    return Evidence(seen=len(window), texts=_most_telling(texts, terms), terms=terms, related=related)


class _Text(msgspec.Struct):
    """One text, with those equal to it."""

    opinion: Opinion
    terms: set[str]
    copies: int = 1


def _distinct(opinions: Sequence[Opinion]) -> list[_Text]:
    found: dict[str, _Text] = {}
    for opinion in opinions:
        if not opinion.excerpt:
            continue
        key = opinion.text_hash or opinion.excerpt
        if key in found:
            found[key].copies += 1
        else:
            found[key] = _Text(opinion, terms_of(opinion.excerpt))
    return list(found.values())


def _most_telling(texts: Sequence[_Text], terms: Sequence[Term]) -> list[TellingText]:
    words = {term.term for term in terms}

    def relevance(text: _Text) -> float:
        fullness = min(len(text.terms) / FULL_TEXT_TERMS, 1.0)
        typical = len(words & text.terms) / len(words) if words else 0.0
        return text.opinion.p_negative * (0.25 + 0.25 * fullness + 0.5 * typical)

    # By time and id, so that the order of arrival decides nothing.
    left = sorted(texts, key=lambda text: (text.opinion.event_time_ms, text.opinion.event_id))
    nearest = [0.0] * len(left)
    chosen: list[_Text] = []
    while left and len(chosen) < TEXTS:
        marginal = [
            RELEVANCE_WEIGHT * relevance(text) - (1 - RELEVANCE_WEIGHT) * near
            for text, near in zip(left, nearest, strict=True)
        ]
        best = marginal.index(max(marginal))
        taken = left.pop(best)
        nearest.pop(best)
        chosen.append(taken)
        kept, kept_near = [], []
        for text, near in zip(left, nearest, strict=True):
            likeness = _jaccard(taken.terms, text.terms)
            if likeness >= COPY_SIMILARITY:
                taken.copies += text.copies
            else:
                kept.append(text)
                kept_near.append(max(near, likeness))
        left, nearest = kept, kept_near
    return [
        TellingText(
            excerpt=text.opinion.excerpt,
            p_negative=round(text.opinion.p_negative, 4),
            event_id=text.opinion.event_id,
            event_time_ms=text.opinion.event_time_ms,
            item_id=text.opinion.item_id,
            copies=text.copies,
        )
        for text in chosen
    ]


def _related(window: Sequence[Opinion]) -> list[Share]:
    counts = Counter(subject for opinion in window for subject in opinion.related)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [
        Share(subject=subject, negative=number, share=round(number / len(window), 4))
        for subject, number in ranked[:RELATED]
        if number >= SHARE_MIN * len(window)
    ]


def _jaccard(a: set[str], b: set[str]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else 1.0
