"""Which letters a filter means, and the moments that people type."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.dead import HEADER_REPLAY_COUNT, DeadLetter
from schemas.scores import SourcePosition
from worker.errors import InputError
from worker.tools.dead_letters import Filter, parse_id, parse_time_ms, replays_of

NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00Z


def letter(**more: Any) -> DeadLetter:
    source = SourcePosition("shop.reviews", 3, 17)
    given = {"stage": "decode", "reason": "not_json", "detail": "", "source": source, "key": None, "value": b""}
    return DeadLetter(**{**given, **more})


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Filter(), True),
        (Filter(ids=frozenset({"shop.reviews/3/17", "x/0/0"})), True),
        (Filter(ids=frozenset({"shop.reviews/3/18"})), False),
        (Filter(reasons=frozenset({"not_json"}), stages=frozenset({"decode"})), True),
        (Filter(reasons=frozenset({"not_json"}), stages=frozenset({"model"})), False),
        (Filter(topics=frozenset({"shop.reviews"})), True),
        (Filter(topics=frozenset({"events.review"})), False),
        (Filter(since_ms=NOW_MS), True),
        (Filter(since_ms=NOW_MS + 1), False),
        (Filter(until_ms=NOW_MS + 1), True),
        (Filter(until_ms=NOW_MS), False),
    ],
)
def test_every_condition_must_hold(wanted: Filter, matches: bool) -> None:
    assert wanted.matches(letter(), NOW_MS) is matches


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("90s", NOW_MS - 90_000),
        ("30m", NOW_MS - 1_800_000),
        ("2h", NOW_MS - 7_200_000),
        ("7 d", NOW_MS - 604_800_000),
        ("2026-01-01", NOW_MS),
        ("2026-01-01T00:00:01", NOW_MS + 1000),
        ("2026-01-01T08:00:00+08:00", NOW_MS),
    ],
)
def test_moments_are_ago_or_iso(text: str, time_ms: int) -> None:
    assert parse_time_ms(text, NOW_MS) == time_ms


@pytest.mark.parametrize("text", ["", "yesterday", "2y", "-3h", "2026-13-01"])
def test_other_words_are_no_moments(text: str) -> None:
    with pytest.raises(InputError, match="30m"):
        parse_time_ms(text, NOW_MS)


def test_an_id_is_a_position_and_perhaps_a_sink() -> None:
    assert parse_id("shop.reviews/3/17") == letter().letter_id
    assert parse_id("shop.reviews/3/17#ops") == letter(sink="ops").letter_id
    with pytest.raises(InputError, match="millrace dead list"):
        parse_id("shop.reviews")


@pytest.mark.parametrize(("value", "count"), [(b"3", 3), (b"", 0), (None, 0), (b"-1", 0), (b"9" * 5000, 0), (b"x", 0)])
def test_how_often_it_was_replayed_is_what_its_header_says_where_that_is_a_number(
    value: bytes | None, count: int
) -> None:
    assert replays_of(letter(source_headers=[(HEADER_REPLAY_COUNT, value)])) == count
    assert replays_of(letter()) == 0
