"""Files that people replay: plain or gzipped, whole or broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from worker.config import KafkaConfig
from worker.errors import InputError, KafkaError, TopicError
from worker.tools import replay
from worker.tools.replay import Replay

KAFKA = KafkaConfig(bootstrap="127.0.0.1:1")
TS = 1_700_000_000
ROWS = [{"text": f"message {i}", "ts": TS + i} for i in range(5)]


def written(folder: Path, lines: list[bytes], *, zipped: bool = False) -> Path:
    path = folder / ("rows.jsonl.gz" if zipped else "rows.jsonl")
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def lines(rows: list[Any]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


@pytest.mark.parametrize("zipped", [False, True])
def test_gzip_is_told_by_its_content(tmp_path: Path, zipped: bool) -> None:
    path = written(tmp_path, lines(ROWS), zipped=zipped)
    assert Replay(KAFKA, path, "events.service").check() == (5, 0)
    renamed = path.rename(tmp_path / "rows")
    assert Replay(KAFKA, renamed, "events.service").check() == (5, 0)


def test_blank_lines_are_nothing_and_the_limit_counts_events(tmp_path: Path) -> None:
    path = written(tmp_path, [b"", *lines(ROWS[:3]), b"  ", *lines(ROWS[3:])])
    assert Replay(KAFKA, path, "events.service").check() == (5, 0)
    assert Replay(KAFKA, path, "events.service", limit=2).check() == (2, 0)


BAD = [
    *(
        b"{",
        b"\xff\xfe",
        b"[1]",
        b"null",
        b'{"text": 3, "ts": 1700000000}',
        b'{"text": "", "ts": 1700000000}',
        b"[" * 9999,
    ),
    *(
        b'{"text": "a"}',
        b'{"text": "a", "ts": "inf"}',
        b'{"text": "a", "ts": "nan"}',
        b'{"text": "a", "ts": 1731290400123}',
    ),
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_is_named_before_anything_is_sent_or_skipped_when_asked(tmp_path: Path, bad: bytes) -> None:
    path = written(tmp_path, [*lines(ROWS[:2]), bad, *lines(ROWS[2:])])
    with pytest.raises(InputError, match=rf"{path}:3: .*Nothing was sent"):
        Replay(KAFKA, path, "events.service").check()
    assert Replay(KAFKA, path, "events.service", skip_bad=True).check() == (5, 1)


def test_a_truncated_archive_is_an_input_error(tmp_path: Path) -> None:
    path = written(tmp_path, lines(ROWS * 1000), zipped=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=str(path)):
        Replay(KAFKA, path, "events.service").check()


def test_a_file_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no events"):
        Replay(KAFKA, written(tmp_path, [b""]), "events.service").check()


@pytest.mark.parametrize("zipped", [False, True])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, zipped: bool) -> None:
    first, *rest = lines(ROWS)
    path = written(tmp_path, [b"\xef\xbb\xbf" + first, *rest], zipped=zipped)
    assert Replay(KAFKA, path, "events.service").check() == (5, 0)
    path = written(tmp_path, [first, b"\xef\xbb\xbf" + rest[0]])
    with pytest.raises(InputError, match=":2: not JSON"):
        Replay(KAFKA, path, "events.service").check()


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_table_is_told_from_json_lines(tmp_path: Path, bom: bytes) -> None:
    path = written(tmp_path, [bom + b"text,ts", b"fine,1700000000"])
    with pytest.raises(InputError, match=r":1: not JSON Lines \(is it CSV\?\)"):
        Replay(KAFKA, path, "events.review").check()


def test_a_source_that_no_row_has_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, lines([{**row, "headline": "h"} for row in ROWS]))
    with pytest.raises(InputError, match=rf"--map title=later: none of the first 1 rows of {path} has later"):
        Replay(KAFKA, path, "events.review", rules=("title=later",), limit=1).check()
    job = Replay(KAFKA, path, "events.review", rules=("title=headlin",))
    with pytest.raises(InputError, match=rf"--map title=headlin: no row of {path} has headlin; nothing reads headline"):
        job.check()
    sparse = written(tmp_path, lines([*ROWS, {**ROWS[0], "headline": None}]))
    assert Replay(KAFKA, sparse, "events.review", rules=("title=headline",)).check() == (6, 0)


def test_rows_without_a_time_are_refused_with_what_might_be_it_unless_a_time_is_given(tmp_path: Path) -> None:
    path = written(tmp_path, lines([{"text": "a", "timestamp": "2023-11-11T10:00:00+08:00"}]))
    with pytest.raises(InputError, match=r":1: the row has no event time .*; nothing reads timestamp"):
        Replay(KAFKA, path, "events.review").check()
    assert Replay(KAFKA, path, "events.review", start_time_ms=TS * 1000).check() == (1, 0)
    for rule in ("event_time_ms=@now", "event_time_ms=time:timestamp"):
        assert Replay(KAFKA, path, "events.review", rules=(rule,)).check() == (1, 0)


def test_fields_that_nothing_reads_are_listed_and_the_list_is_cut(tmp_path: Path) -> None:
    job = Replay(
        KAFKA, written(tmp_path, lines([{**row, "history": [], "label": 1} for row in ROWS])), "events.service"
    )
    job.check()
    assert job.unused == ["history", "label"]
    assert replay.named([f"f{n}" for n in range(23)]).endswith("f18, f19 and 3 more")


def test_only_input_topics_are_replayed_to_by_either_of_their_names(tmp_path: Path) -> None:
    path = written(tmp_path, lines(ROWS))
    renamed = KafkaConfig(bootstrap=KAFKA.bootstrap, topics={"events.service": "shop.chat"})
    for topic in ("events.service", "shop.chat"):
        assert Replay(renamed, path, topic).check() == (5, 0)
    for topic in ("scores.ctr", "shop.clicks"):
        with pytest.raises(InputError, match=r"events\.click, events\.review, events\.service"):
            Replay(renamed, path, topic)


def test_a_topic_of_backfill_is_replayed_to_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, lines(ROWS))
    kafka = KafkaConfig(
        bootstrap=KAFKA.bootstrap, topics={"events.service": "chat"}, backfill={"old": "events.service"}
    )
    job = Replay(kafka, path, "old")
    assert job.check() == (5, 0)
    asked: list[list[str]] = []

    def missing(_: KafkaConfig, names: list[str]) -> None:
        asked.append(names)
        raise TopicError("missing")

    monkeypatch.setattr(replay, "partition_counts", missing)
    with pytest.raises(TopicError):
        job.send()
    assert asked == [["old"]]
    with pytest.raises(InputError, match=r"events\.service, old"):
        Replay(kafka, path, "older")


def test_rows_that_are_events_keep_their_ids(tmp_path: Path) -> None:
    path = written(tmp_path, lines([{"event_id": "mine", "event_time_ms": TS * 1000, "text": "a", "user_id": 5}]))
    with pytest.raises(InputError, match="user_id"):  # an event of the contract has text as id; nothing is guessed
        Replay(KAFKA, path, "events.service").check()
    assert Replay(KAFKA, path, "events.service", preset="service").check() == (1, 0)


def test_an_unreachable_broker_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.kafka.admin.REQUEST_TIMEOUT_S", 0.5)
    job = Replay(KafkaConfig(bootstrap="127.0.0.1:1"), written(tmp_path, lines(ROWS)), "events.service")
    with pytest.raises(KafkaError, match=r"kafka\.bootstrap") as told:
        job.send()
    assert not isinstance(told.value, TopicError)


def test_a_broker_that_goes_away_is_told_with_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "partition_counts", lambda *_: None)  # it was there a moment ago
    monkeypatch.setattr(replay, "DELIVERY_TIMEOUT_S", 0.5)
    job = Replay(KAFKA, written(tmp_path, lines(ROWS)), "events.service")
    with pytest.raises(KafkaError, match=r"replaying to events\.service: .*; 0 of 5 records .*Replay the file again"):
        job.send()


def test_rows_that_rules_pass_over_are_left_out_without_being_bad(tmp_path: Path) -> None:
    path = written(tmp_path, lines([{"type": kind, "title": "a", "ts": TS} for kind in ("view", "scroll", "view")]))
    rules = ("action=map:type(view=impression, *=-)",)
    assert Replay(KAFKA, path, "events.click", rules=rules).check() == (2, 1)
    assert Replay(KAFKA, path, "events.click", rules=rules, limit=2).check() == (2, 1)


OWN = {"event_id": "str:id", "event_time_ms": "ts*1000", "text": "body.comment", "user_id": "who"}


def test_rows_of_a_topic_with_fields_of_its_own_go_as_they_are_once_its_rules_can_read_them(tmp_path: Path) -> None:
    kafka = KafkaConfig(topics={"events.review": "cms.reviews"}, fields={"cms.reviews": OWN})
    rows = [{"id": n, "ts": TS, "body": {"comment": "fine"}, "who": "u" if n else None, "more": 1} for n in range(2)]
    for topic in ("events.review", "cms.reviews"):
        job = Replay(kafka, written(tmp_path, lines(rows)), topic)
        assert job.check() == (2, 0)
        assert [(key, json.loads(value)) for key, value in job._events()] == [("0", rows[0]), ("u", rows[1])]
        assert job.unused == ["more"]
    with pytest.raises(InputError, match=r"rows.jsonl:2: .*text"):
        Replay(kafka, written(tmp_path, lines([rows[0], {"id": 3, "ts": TS}])), "cms.reviews").check()
    keyed = msgspec.structs.replace(kafka, fields={"cms.reviews": OWN | {"user_id": "@key"}})
    with pytest.raises(InputError, match="@key"):
        Replay(keyed, written(tmp_path, lines(rows)), "cms.reviews")
    with pytest.raises(InputError, match=r"read by kafka\.fields"):
        Replay(kafka, written(tmp_path, lines(rows)), "cms.reviews", rules=("text=body",))
