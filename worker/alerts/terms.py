"""Words that set one group of texts apart from another, Chinese and English. Pure.

Terms are English words and, in Chinese, sequences of two to four characters; each counts once a text. The score is the
z-score of the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn, 2008, "Fightin' Words",
eq. 16 to 22), the prior being the terms' share in both groups together, worth `PRIOR_TEXTS` texts. Of terms that lie in
one another only the better stays; of equals the longer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import log, sqrt
from typing import Final

from schemas.evidence import Term

PRIOR_TEXTS: Final = 10.0
SCORE_MIN: Final = 1.0
TEXTS_MIN: Final = 2
_ORDERS: Final = (2, 3, 4)
_RUN: Final = re.compile(r"[a-z][a-z']+|[㐀-鿿]+")
_LABEL: Final = re.compile(r"\[[a-z]+\]")
_EDGE: Final = frozenset(
    "的了是我你他她它们這这那也都就在和有个個很太吧啊呢吗嗎着过過得地与與及或被把给給让讓一还還又再到说說"
)
_STOP_WORDS: Final = (
    "the and for was with that this have had has not but are were been very just they them their from you your its"
    " it's what when which who will would could should there here all any out about into than then too also only more"
    " one two get got did does don't didn't can can't our she her his him how after before again because"
)
_STOP: Final = frozenset(_STOP_WORDS.split())


def terms_of(text: str) -> set[str]:
    """Terms of a text; labels of masking are none."""
    found: set[str] = set()
    for run in _RUN.findall(_LABEL.sub(" ", text.lower())):
        if run.isascii():
            if len(run) > 2 and run not in _STOP:
                found.add(run)
            continue
        for order in _ORDERS:
            grams = (run[at : at + order] for at in range(len(run) - order + 1))
            found.update(gram for gram in grams if gram[0] not in _EDGE and gram[-1] not in _EDGE)
    return found


def contrast(window: Sequence[set[str]], before: Sequence[set[str]], count: int) -> list[Term]:
    """The ``count`` terms that most set ``window`` apart from ``before``, best first.

    Both are texts as sets of terms. Empty when there is nothing to compare with.
    """
    if not window or not before:
        return []
    now, then = Counter(term for text in window for term in text), Counter(term for text in before for term in text)
    scored = []
    for term, seen in now.items():
        if seen < TEXTS_MIN:
            continue
        score = _z_score(seen, len(window), then[term], len(before))
        if score >= SCORE_MIN:
            scored.append(Term(term=term, window=seen, before=then[term], score=round(score, 3)))
    scored.sort(key=lambda each: (-each.score, -len(each.term), each.term))
    chosen: list[Term] = []
    for each in scored:
        if len(chosen) == count:
            break
        if not any(each.term in other.term or other.term in each.term for other in chosen):
            chosen.append(each)
    return chosen


def _z_score(seen: int, texts: int, seen_before: int, texts_before: int) -> float:
    prior = PRIOR_TEXTS * (seen + seen_before) / (texts + texts_before)
    # A term may be in every text: half a text keeps its odds finite.
    odds = (seen + prior) / (texts + PRIOR_TEXTS - seen - prior + 0.5)
    odds_before = (seen_before + prior) / (texts_before + PRIOR_TEXTS - seen_before - prior + 0.5)
    return (log(odds) - log(odds_before)) / sqrt(1 / (seen + prior) + 1 / (seen_before + prior))
