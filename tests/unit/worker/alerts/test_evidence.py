"""What an alert shows: telling texts that differ, words that set the window apart, what else it is about."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.scores import Opinion
from tests.alerts_made import MINUTE_MS, START_MS, made
from tests.opinions import opinion
from worker.alerts.evidence import RECENT, TEXTS, EvidenceKeeper, evidence
from worker.alerts.terms import contrast, terms_of

ALERT = made()  # its window is the five minutes before START_MS
IN, BEFORE = START_MS - MINUTE_MS, START_MS - 30 * MINUTE_MS


def said(text: str, number: int, *, at_ms: int = IN, p_negative: float = 0.9, **fields: Any) -> Opinion:
    made_from = {"excerpt": text, "text_hash": text, "event_id": f"r{number:03d}", **fields}
    return msgspec.structs.replace(opinion("item:lamp", at_ms, p_negative, number), **made_from)


CALM = [said(f"质量很好，下次还会再来买{n}", n, at_ms=BEFORE, p_negative=0.05) for n in range(20)]
BURST = [
    said("物流太慢了，等了一个星期还没到货", 100),
    said("物流一个星期没有动静，客服不回", 101),
    said("等了十天，物流信息不更新", 102),
    said("Shipping took forever, parcel still lost somewhere", 103),
    said("parcel lost, shipping company does not answer", 104),
    said("差", 105),
    said("垃圾", 106),
]


def test_terms_set_the_window_apart_in_both_languages() -> None:
    found = evidence(ALERT, [*CALM, *BURST])
    assert found is not None
    assert found.seen == len(BURST)
    terms = {each.term: each for each in found.terms}
    assert {"物流", "parcel", "shipping", "lost"} <= terms.keys()
    assert (terms["物流"].window, terms["物流"].before) == (3, 0)
    assert not any("质量" in term for term in terms)
    assert [each.score for each in found.terms] == sorted((each.score for each in found.terms), reverse=True)


def test_what_is_said_before_as_often_is_no_term() -> None:
    everyday = [said("物流一般般", n, at_ms=BEFORE, p_negative=0.4) for n in range(9)]
    everyday = [msgspec.structs.replace(each, text_hash=str(n)) for n, each in enumerate(everyday)]
    found = evidence(ALERT, [*everyday, *BURST])
    assert found is not None
    assert "物流" not in {each.term for each in found.terms}


def test_telling_texts_differ_and_short_ones_come_last() -> None:
    found = evidence(ALERT, [*CALM, *BURST])
    assert found is not None
    shown = [each.excerpt for each in found.texts]
    assert len(shown) == TEXTS
    # Both languages are among the first two: the second is chosen for being different.
    assert {text.isascii() for text in shown[:2]} == {True, False}
    assert shown.count("差") + shown.count("垃圾") <= 1


def test_a_text_copied_many_times_is_shown_once_and_its_copies_counted() -> None:
    copies = [said("物流太慢了，等了一个星期还没到货", n) for n in range(200, 230)]
    near = [said(f"物流太慢了，等了一个星期还没到货{'！' * n}", 300 + n) for n in range(1, 4)]
    found = evidence(ALERT, [*CALM, *BURST, *copies, *near])
    assert found is not None
    shown = [each for each in found.texts if each.excerpt.startswith("物流太慢了")]
    assert [each.copies for each in shown] == [34]
    terms = {each.term: each.window for each in found.terms}
    assert terms["物流"] == 6, "copies are one text, near-copies few"


def test_only_negative_opinions_in_the_window_are_evidence() -> None:
    others = [
        said("很好", 1, p_negative=0.1),
        said("以前很差", 2, at_ms=BEFORE),
        said("后来很差", 3, at_ms=START_MS),
    ]
    assert evidence(ALERT, others) is None


def test_what_else_the_negative_opinions_count_for_is_told_with_its_share() -> None:
    about = [("item:a", "brand:x")] * 6 + [("item:b", "brand:x")] * 3 + [("item:c",)]
    opinions = [said(f"差{n}", n, related=list(each)) for n, each in enumerate(about)]
    found = evidence(ALERT, opinions)
    assert found is not None
    assert [(each.subject, each.negative, each.share) for each in found.related] == [
        ("brand:x", 9, 0.9),
        ("item:a", 6, 0.6),
        ("item:b", 3, 0.3),
        ("item:c", 1, 0.1),
    ]


def test_without_texts_and_relations_there_is_no_evidence() -> None:
    assert evidence(ALERT, [said("", n) for n in range(9)]) is None


@given(st.randoms(use_true_random=False))
def test_the_order_of_arrival_decides_nothing(rng: random.Random) -> None:
    opinions = [*CALM, *BURST]
    expected = evidence(ALERT, opinions)
    rng.shuffle(opinions)
    assert evidence(ALERT, opinions) == expected


def test_a_keeper_attaches_what_it_holds_of_the_subject_and_nothing_else() -> None:
    keeper = EvidenceKeeper()
    for each in (*CALM, *BURST):
        keeper.add(each)
    attached = keeper.attach(ALERT)
    assert attached.evidence == evidence(ALERT, [*CALM, *BURST])
    assert msgspec.structs.replace(attached, evidence=None) == ALERT
    other = made("item:kettle")
    assert keeper.attach(other) is other


def test_a_keeper_is_bounded_by_subject_and_in_all() -> None:
    keeper = EvidenceKeeper(max_kept=100)
    for number in range(500):
        keeper.add(msgspec.structs.replace(said("x", number), subject="item:busy"))
    assert len(keeper) == RECENT
    for number in range(300):
        keeper.add(msgspec.structs.replace(said("x", number), subject=f"item:{number}"))
    assert len(keeper) <= 100
    assert keeper.attach(made("item:busy")).evidence is None, "longest untouched"
    assert keeper.attach(made("item:299")).evidence is not None


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The parcel was LOST", {"parcel", "lost"}),
        ("物流慢", {"物流", "流慢", "物流慢"}),
        ("我的[phone]没人接", {"没人", "人接", "没人接"}),
        ("", set()),
    ],
)
def test_terms_are_words_and_short_runs_of_characters(text: str, terms: set[str]) -> None:
    assert terms_of(text) == terms


def test_of_terms_within_one_another_the_better_or_longer_stays() -> None:
    window = [terms_of(text) for text in ("物流慢", "物流慢", "物流慢", "别的")]
    before = [terms_of(text) for text in ("很好用", "很不错", "好看", "满意")]
    assert [each.term for each in contrast(window, before, 5)] == ["物流慢"]
    assert contrast(window, [], 5) == []
    assert contrast([], before, 5) == []
