"""Every record that is ours comes out once, as a unit or a dead letter; empty texts are told from texts."""

import json
from typing import Any

import pytest

from model.null import NullScorer
from schemas.dead import DeadLetter
from worker.config import Lane
from worker.kafka.ledger import OffsetLedger
from worker.kafka.records import Record
from worker.privacy.erasures import Erasures
from worker.scoring.cache import VectorCache
from worker.scoring.decode import BACKFILL, LANES
from worker.scoring.intake import BYTES_PER_LOAD, Intake

NOW_MS = 1_700_000_000_000


def admit(
    *events: dict[str, Any] | bytes, topic: str = "events.review"
) -> tuple[Any, Any, OffsetLedger[Any], VectorCache]:
    cache = VectorCache(1 << 20)
    ledger: OffsetLedger[Any] = OffsetLedger()
    ledger.assign([(topic, 0)])
    values = [
        e if isinstance(e, bytes) else json.dumps({"event_id": "e", "event_time_ms": NOW_MS, **e}).encode()
        for e in events
    ]
    records = [Record(topic, 0, n, 0, None, value) for n, value in enumerate(values)]
    units, letters = Intake(LANES, NullScorer(), cache).admit(records, ledger, 0.0, NOW_MS)
    return units, letters, ledger, cache


@pytest.mark.parametrize("text", [" ", "\t\n", "\u0000", "\u200b", " \u0000 \ufeff"])
def test_a_text_of_nothing_is_a_dead_letter(text: str) -> None:
    units, letters, _, cache = admit({"text": text}, {"text": "good"}, {"text": text})
    assert [unit.ticket.offset for unit in units] == [1]
    assert [(ticket.offset, letter.reason) for ticket, letter in letters] == [(0, "empty_text"), (2, "empty_text")]
    assert cache.pending == 1


def test_an_empty_title_is_no_text() -> None:
    units, letters, _, cache = admit(
        {"title": " \u0000", "query": "lamp", "candidates": [{"item_id": "a", "title": "\u200b"}, {"item_id": "b"}]},
        topic="events.click",
    )
    assert letters == []
    (unit,) = units
    assert [slot and slot.text for slot in unit.texts] == [None, "lamp", None, None]
    assert cache.pending == 1


def test_a_shared_text_costs_its_tokens_once() -> None:
    units, _, _, _ = admit({"text": "abcd" * 5}, {"text": "abcd" * 5}, {"text": "abcd" * 3})
    assert [unit.tokens for unit in units] == [5, 0, 3]
    assert units[0].texts[0] is units[1].texts[0]


def test_load_counts_tokens_or_bytes_whichever_is_more() -> None:
    _, _, ledger, _ = admit({"text": "x" * 6400})
    assert ledger.load > 6400 // BYTES_PER_LOAD
    _, _, small, _ = admit({"text": "abcd" * 5})
    assert 1 < small.load < 10
    _, _, letter, _ = admit(b"x" * 6400)
    assert letter.load == 1 + 100


def test_records_of_partitions_not_held_are_left_alone() -> None:
    ledger: OffsetLedger[Any] = OffsetLedger()
    record = Record("events.review", 0, 0, 0, None, b"{}")
    intake = Intake(LANES, NullScorer(), VectorCache(1000))
    assert intake.admit([record], ledger, 0.0, NOW_MS) == ([], [])


def test_everything_comes_out_exactly_once() -> None:
    events: list[dict[str, Any] | bytes] = [
        {"text": "a"},
        b"",
        {"text": " "},
        {"text": 3},
        {"text": "b"},
        {"text": "a"},
    ]
    units, letters, _, _ = admit(*events)
    offsets = [unit.ticket.offset for unit in units] + [ticket.offset for ticket, _ in letters]
    assert sorted(offsets) == list(range(6))
    assert all(isinstance(letter, DeadLetter) for _, letter in letters)


def test_what_is_forgotten_is_encoded_by_the_next() -> None:
    units, _, _, cache = admit({"text": "a"})
    Intake(LANES, NullScorer(), cache).forget(units)
    assert cache.pending == 0


def test_backfill_waits_in_a_lane_of_its_own_and_is_what_its_topic_carries() -> None:
    topics: dict[str, Lane] = {"events.review": "review", "reviews.2024": "review"}
    ledger: OffsetLedger[Any] = OffsetLedger()
    ledger.assign((topic, 0) for topic in topics)
    value = json.dumps({"event_id": "e", "event_time_ms": NOW_MS, "text": "good"}).encode()
    records = [Record(topic, 0, 0, 0, None, value) for topic in topics]
    intake = Intake(topics, NullScorer(), VectorCache(1000), backfill={"reviews.2024": "events.review"})
    units, _ = intake.admit(records, ledger, 0.0, NOW_MS)
    assert [(unit.lane, unit.ticket.lane) for unit in units] == [("review", "review"), ("review", BACKFILL)]
    assert units[0].texts == units[1].texts, "the text is encoded once"
    assert intake.count(records) == {"events.review": 2}


def forgetting(*records: Record, until_ms: int = 1000) -> tuple[list[Any], list[Any], int, int]:
    """Offsets of units and letters, how many were forgotten, and the offset up to which all is released."""
    erasures = Erasures()
    erasures.add("anna", until_ms, 0)
    ledger: OffsetLedger[Any] = OffsetLedger()
    ledger.assign([("events.review", 0)])
    counted: list[None] = []
    intake = Intake(LANES, NullScorer(), VectorCache(1 << 20), erasures, lambda: counted.append(None))
    units, letters = intake.admit(records, ledger, 0.0, NOW_MS)
    released = ledger.release()
    return [u.ticket.offset for u in units], [t.offset for t, _ in letters], len(counted), len(released)


def review(offset: int, user: str | None, time_ms: int) -> Record:
    event = {"event_id": "e", "user_id": user, "event_time_ms": time_ms, "text": "good"}
    return Record("events.review", 0, offset, NOW_MS, b"k", json.dumps(event).encode())


def test_what_a_forgotten_person_did_before_comes_to_nothing_and_its_offset_moves() -> None:
    old, new = review(0, "anna", NOW_MS - 1), review(1, "anna", NOW_MS)
    other, nobody = review(2, "bert", NOW_MS - 5), review(3, None, NOW_MS - 5)
    assert forgetting(old, new, other, nobody, until_ms=NOW_MS - 1) == ([1, 2, 3], [], 1, 1)


@pytest.mark.parametrize(
    ("key", "value", "timestamp_ms", "forgotten"),
    [
        (b"anna", b"broken", 999, True),
        (b"anna", b"broken", 1001, False),
        (b"anna", b'"event_time_ms": 7', 1001, True),
        (b"anna", b'"event_time_ms": 2000', 999, True),  # it cannot be from later than when it was written
        (b"anna", b'"event_time_ms": 2000', 3000, False),
        (b"anna", b"broken", 0, False),  # nothing says when it was
        (None, b'{"user_id": "anna", "event_time_ms": 7', 5000, True),
        (None, b'{"user_id": "bert", "event_time_ms": 7', 5000, False),
        (b"anna", None, 999, True),
    ],
)
def test_a_broken_record_of_theirs_makes_no_letter(
    key: bytes | None, value: bytes | None, timestamp_ms: int, forgotten: bool
) -> None:
    _, letters, count, released = forgetting(Record("events.review", 0, 0, timestamp_ms, key, value))
    assert (letters, count, released) == (([], 1, 1) if forgotten else ([0], 0, 0))
