"""What people read of letters and erasures: everything that matters, and nothing that steers their terminal."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from schemas.control import Ack
from schemas.dead import DeadLetter
from schemas.scores import SourcePosition
from schemas.topics import TOPICS
from worker.cli.tables import checks_table, show, silences_table
from worker.cli.tables_safety import (
    dropped,
    dropped_table,
    letter_table,
    letters_table,
    listing,
    receipt_table,
    replayed_table,
    whole,
)
from worker.tools.check import bad
from worker.tools.dead_letters import Found, Search
from worker.tools.dead_replay import ReplayedLetters
from worker.tools.receipt import NOTES, PENDING, Receipt, topic_receipt
from worker.tools.silencing import Silences

NOW_MS = 1_767_225_600_000  # 2026-01-01T00:00Z
EVIL = "\x1b[2Jgone"


LONG_ID = "shop.customer-service.backfill-2025/17/1234567890#slack-operations"
VARIABLE = "MILLRACE_KAFKA__OPTIONS__SASL_PASSWORD_FILE_OF_A_ROLE_WITH_A_LONG_NAME"


def shown(what: Any, width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    with console.file:
        console.print(what, crop=False)
    return console.export_text()


def found(**more: Any) -> Found:
    given = {"id": "events.review/3/17", "reason": "not_json", "stage": "decode", "detail": "at byte 3", "replays": 0}
    given |= {"topic": "events.review", "time_ms": NOW_MS, "size_bytes": 42, "truncated": False, "place": (0, 1)}
    return Found(**{**given, **more})


def test_letters_are_told_with_time_size_and_how_often_they_came_back() -> None:
    letters = [found(), found(id="events.review/3/18", truncated=True, replays=2)]
    text = shown(letters_table(listing(Search(letters=letters, ended={}), 100)))
    for word in ("2026-01-01 00:00:00", "events.review/3/17", "at byte 3", "42", "cut", "replayed 2x"):
        assert word in text
    assert "2 of 2 letters: not_json 2" in text
    assert "0 of 0 letters" in shown(letters_table(listing(Search(letters=[], ended={}), 100)))


@pytest.mark.parametrize("contents", [True, False])
def test_a_letters_contents_are_shown_only_when_asked_for_and_cannot_steer_the_terminal(contents: bool) -> None:
    letter = DeadLetter(
        stage="decode",
        reason="not_json",
        detail="d",
        source=SourcePosition("events.review", 3, 17),
        key=b"anna",
        value=EVIL.encode() + b"\xff",
        source_headers=[("trace", EVIL.encode()), ("none", None)],
    )
    text = shown(letter_table(whole(found(), letter, contents)))
    assert "\x1b[2J" not in text
    assert ("anna" in text) is ("gone" in text) is contents
    assert "trace" in text


def test_a_replay_says_what_it_did_or_would_do() -> None:
    report = ReplayedLetters(
        dry_run=True,
        replayed=2,
        cut=1,
        by_topic={"events.review": 2},
        by_reason={"not_json": 2},
        ended={"a/0/0": "replayed", "b/0/0": "erased"},
    )
    text = shown(replayed_table(report))
    for words in ("to be replayed", "--yes does it", "1 letters hold no bytes", "it was replayed, skipped", "erased"):
        assert words in text


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_drop_says_how_many_of_each_reason_and_what_had_ended_before(dry_run: bool) -> None:
    search = Search(letters=[found(), found(reason="undeliverable")], ended={"a/0/0": "dropped"})
    text = shown(dropped_table(dropped(search, dry_run=dry_run)))
    assert ("to be dropped" in text) is dry_run
    for words in ("not_json", "undeliverable", "a/0/0: it was dropped, skipped"):
        assert words in text


@pytest.mark.parametrize("done", [True, False])
def test_a_receipt_tells_every_topic_and_what_is_pending(done: bool) -> None:
    topics = [
        topic_receipt(name, name, topic.config(3), NOW_MS, pending=name == "features.user" and not done)
        for name, topic in TOPICS.items()
    ]
    receipt = Receipt(
        user_id=EVIL,
        cutoff_ms=NOW_MS,
        erasure_offset=5,
        done=done,
        redis="deleted" if done else "pending: profiles deletes the state when it runs",
        states_deleted=1,
        newer_states=1,
        letters_deleted=3,
        letters_unread=4,
        topics=topics,
        notes=NOTES if done else [PENDING, *NOTES],
    )
    text = shown(receipt_table(receipt))
    assert "\x1b[2J" not in text
    assert all(name in text for name in TOPICS)
    for words in ("2026-01-01 00:00:00 UTC", "3 deleted", "4 left", "of other vector spaces", "since", "2026-01-15"):
        assert words in text
    assert ("pending" in text) is not done


@pytest.mark.parametrize("width", [40, 80, 120])
def test_on_a_terminal_ids_stay_whole_and_nothing_is_cut(width: int) -> None:
    letters = listing(Search(letters=[found(id=LONG_ID, detail=f"at `$.{VARIABLE}`"), found()], ended={}), 100)
    source = SourcePosition("t", 0, 0)
    letter = DeadLetter(stage="decode", reason="not_json", detail="", source=source, key=None, value=b"")
    silences = Silences(mutes=[], acks=[Ack(alert_id=LONG_ID, at_ms=0)])
    for table in (
        letters_table(letters),
        letter_table(whole(found(id=LONG_ID), letter, False)),
        silences_table(silences),
    ):
        assert LONG_ID in shown(table, width)
    text = shown(letters_table(letters), width) + shown(checks_table([bad("check", VARIABLE, VARIABLE)]), width)
    assert "…" not in text
    assert all(part in text for part in ("2026-", "decod", "not_j", "`$."))


def test_where_the_output_is_no_terminal_a_line_is_as_long_as_it_needs_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show([bad("a check", VARIABLE * 5, f"set {VARIABLE}, " * 20)], checks_table, json_=False)
    out = capsys.readouterr().out
    assert VARIABLE * 5 in out
    assert f"set {VARIABLE}, " * 19 in out
