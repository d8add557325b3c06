"""Dead letters at hand: listed, shown, replayed once with bytes, key, headers and partition as they came."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from schemas.topics import EVENTS_DEAD
from tests.embedded.test_operations import Site
from tests.worker_harness import Reader
from worker.cli.app import main
from worker.config import KafkaConfig
from worker.kafka.admin import create_topics
from worker.kafka.dead import dead_letter, dead_message
from worker.kafka.records import Record
from worker.scoring.decode import Decoder

NOW_MS = 1_700_000_000_000
WORDS = "my card is 4929 1234 5678 9012"


def run(options: list[str], *arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def answer(options: list[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(run(options, *arguments, "--json", code=code).stdout)


def write_letters(site: Site, *records: Record, stage: str = "decode") -> None:
    """Letters of the records, written as the worker writes them."""
    producer = Producer({"bootstrap.servers": site.kafka.bootstrap})
    for record in records:
        letter = dead_letter(record, stage, "model_error", "the model raised Boom")  # type: ignore[arg-type]
        if stage == "decode":
            letter = Decoder({record.topic: "service"}).decode(record, NOW_MS)  # type: ignore[assignment]
        message = dead_message(letter)
        producer.produce(site.kafka.topic(EVENTS_DEAD), message.value, message.key, headers=list(message.headers or ()))
    assert producer.flush(20) == 0


@pytest.fixture
def site(embedded_broker: str, embedded_redis: str) -> Site:
    return Site(KafkaConfig(bootstrap=embedded_broker, embedded=True, fold_shards=4), embedded_redis)


@pytest.fixture
def options(site: Site) -> list[str]:
    return site.options


@pytest.fixture
def topic(site: Site) -> str:
    create_topics(site.kafka)
    return site.kafka.topic("events.service")


def record(topic: str, offset: int, value: bytes | None = b"not json", **more: Any) -> Record:
    given = {"key": b"user-7", "headers": [("trace", b"\x00\xff"), ("trace", b"2"), ("empty", None)], **more}
    return Record(topic, 2, offset, NOW_MS, given["key"], value, given["headers"])


def test_letters_are_listed_by_filters_and_shown_without_their_contents(
    site: Site,
    options: list[str],
    topic: str,
) -> None:
    other = site.kafka.topic("events.review")
    write_letters(site, *(record(topic, n, f"{WORDS} {n}".encode()) for n in range(3)), record(other, 9, None))
    write_letters(site, record(topic, 5, b'{"text": "fine"}'), stage="model")
    everything = answer(options, "dead", "list")
    assert everything["matched"] == 5
    assert everything["by_reason"] == {"not_json": 3, "model_error": 1, "tombstone": 1}
    assert {each["id"] for each in everything["letters"]} == {
        *(f"{topic}/2/{n}" for n in (0, 1, 2, 5)),
        f"{other}/2/9",
    }
    assert answer(options, "dead", "list", "--limit", "2")["matched"] == 5
    assert len(answer(options, "dead", "list", "--limit", "2")["letters"]) == 2
    assert answer(options, "dead", "list", "--stage", "model")["by_reason"] == {"model_error": 1}
    assert answer(options, "dead", "list", "--topic", "events.review")["by_reason"] == {"tombstone": 1}
    assert answer(options, "dead", "list", "--reason", "not_json", "--reason", "tombstone")["matched"] == 4
    assert answer(options, "dead", "list", "--since", "1h")["matched"] == 5
    assert answer(options, "dead", "list", "--until", "1h")["matched"] == 0
    shown = run(options, "dead", "list").stdout + run(options, "dead", "show", f"{topic}/2/0").stdout
    assert "not_json" in shown
    assert WORDS not in shown
    assert "user-7" not in shown

    letter = answer(options, "dead", "show", f"{topic}/2/0")
    assert "value" not in letter
    assert [name for name, _ in letter["headers"]] == ["trace", "trace", "empty"]
    letter = answer(options, "dead", "show", f"{topic}/2/0", "--value")
    assert base64.b64decode(letter["value"]) == f"{WORDS} 0".encode()
    assert letter["key"] == "user-7"
    assert run(options, "dead", "show", f"{topic}/2/1", "--raw").stdout_bytes == f"{WORDS} 1".encode()
    assert "a tombstone" in run(options, "dead", "show", f"{other}/2/9").stdout
    assert "none is known by this id" in run(options, "dead", "show", f"{topic}/2/77", code=6).stderr


def test_a_replay_gives_back_what_came_marks_it_and_happens_once(
    site: Site,
    options: list[str],
    topic: str,
) -> None:
    write_letters(site, record(topic, 4), record(topic, 8, None, key=None, headers=None))
    letter = f"{topic}/2/4"
    assert answer(options, "dead", "replay", letter, "--dry-run")["dry_run"] is True
    report = answer(options, "dead", "replay", letter)
    assert report == {
        "dry_run": False, "replayed": 1, "cut": 0, "by_topic": {topic: 1}, "by_reason": {"not_json": 1}, "ended": {},
    }  # fmt: skip
    again = answer(options, "dead", "replay", letter)
    assert (again["replayed"], again["ended"]) == (0, {letter: "replayed"})
    assert answer(options, "dead", "list")["by_reason"] == {"tombstone": 1}
    reader = Reader(site.kafka, "events.service")
    (message,) = reader.wait(1)
    assert (message.value(), message.key(), message.partition()) == (b"not json", b"user-7", 2)
    assert message.headers() == [
        ("trace", b"\x00\xff"),
        ("trace", b"2"),
        ("empty", None),
        ("millrace-replay-of", letter.encode()),
        ("millrace-source-timestamp", b"1700000000000"),
        ("millrace-replay-count", b"1"),
    ]

    # What fails again is a letter of its own; its next replay counts on and bears no mark twice.
    back = Record(topic, 2, message.offset(), NOW_MS, message.key(), message.value(), message.headers())
    write_letters(site, back)
    (relapsed,) = answer(options, "dead", "list", "--reason", "not_json")["letters"]
    assert relapsed["replays"] == 1
    answer(options, "dead", "replay", relapsed["id"])
    headers = reader.wait(2)[1].headers()
    assert headers[3:] == [
        ("millrace-replay-of", relapsed["id"].encode()),
        ("millrace-source-timestamp", b"1700000000000"),
        ("millrace-replay-count", b"2"),
    ]

    assert answer(options, "dead", "replay", f"{topic}/2/8")["replayed"] == 1
    tombstone = reader.wait(3)[2]
    assert (tombstone.value(), tombstone.key()) == (None, None)


def test_many_letters_are_a_dry_run_until_one_says_yes(site: Site, options: list[str], topic: str) -> None:
    write_letters(site, *(record(topic, n, b"bad %d" % n, key=b"k%d" % n) for n in range(450)))
    plan = answer(options, "dead", "replay", "--reason", "not_json")
    assert (plan["dry_run"], plan["replayed"]) == (True, 450)
    assert "--yes does it" in run(options, "dead", "replay", "--all").stdout
    assert answer(options, "dead", "list")["matched"] == 450
    some = answer(options, "dead", "replay", "--reason", "not_json", "--limit", "30", "--yes", "--to", "events.review")
    assert (some["replayed"], some["by_topic"]) == (30, {site.kafka.topic("events.review"): 30})
    rest = answer(options, "dead", "replay", "--all", "--yes")
    assert rest["replayed"] == 420
    assert answer(options, "dead", "list")["matched"] == 0
    assert answer(options, "dead", "replay", "--all", "--yes")["replayed"] == 0
    reviews, back = Reader(site.kafka, "events.review").wait(30), Reader(site.kafka, "events.service").wait(420)
    values = [message.value() for message in reviews + back]
    assert sorted(values) == sorted(b"bad %d" % n for n in range(450))
    # By its source partition where it goes back, by its key where it goes elsewhere.
    assert {message.partition() for message in back} == {2}
    assert len({message.partition() for message in reviews}) > 1


def test_what_is_dropped_is_gone_for_good_and_only_after_a_yes(site: Site, options: list[str], topic: str) -> None:
    write_letters(site, *(record(topic, n) for n in range(4)), record(topic, 4, b"x" * 1_200_000))
    write_letters(site, record(topic, 9), stage="model")
    one, other = f"{topic}/2/0", f"{topic}/2/1"
    drop = ["dead", "drop", "--stage", "decode", *options]
    refused = CliRunner().invoke(main, drop, input="n\n")
    assert (refused.exit_code, "Drop 5 letters" in refused.stderr) == (1, True)
    assert answer(options, "dead", "drop", "--all", "--dry-run")["dropped"] == 6
    assert answer(options, "dead", "list")["matched"] == 6

    assert answer(options, "dead", "drop", one, "--yes") == {
        "dry_run": False, "dropped": 1, "by_reason": {"not_json": 1}, "ended": {},
    }  # fmt: skip
    again = answer(options, "dead", "drop", one, "--yes")
    assert (again["dropped"], again["ended"]) == (0, {one: "dropped"})
    assert answer(options, "dead", "replay", one)["ended"] == {one: "dropped"}
    assert "it was dropped" in run(options, "dead", "show", one, code=6).stderr
    nothing = run(options, "dead", "drop", other, f"{topic}/9/9", "--yes", code=6).stderr
    assert "Nothing was dropped" in nothing
    assert answer(options, "dead", "list")["matched"] == 5

    assert answer(options, "dead", "drop", "--stage", "decode", "--limit", "2", "--yes")["dropped"] == 2
    agreed = CliRunner().invoke(main, drop, input="y\n")
    assert agreed.exit_code == 0, agreed.output
    # A letter too large to keep whole can be ended in no other way.
    assert answer(options, "dead", "list")["by_reason"] == {"model_error": 1}
    assert answer(options, "dead", "drop", "--until", "1h", "--yes")["dropped"] == 0
    assert answer(options, "dead", "list")["matched"] == 1


def test_what_cannot_be_replayed_is_said(site: Site, options: list[str], topic: str) -> None:
    write_letters(site, record(topic, 1), record(topic, 2, b"x" * 1_200_000))
    report = answer(options, "dead", "replay", "--all", "--yes", code=1)
    assert (report["replayed"], report["cut"]) == (1, 1)
    assert "cut" in run(options, "dead", "list").stdout
    nothing = run(options, "dead", "replay", f"{topic}/2/1", f"{topic}/9/9", code=6).stderr
    assert "Nothing was replayed" in nothing
    assert "--all means all of them" in run(options, "dead", "replay", code=6).stderr
    assert "letters are read from there" in run(options, "dead", "replay", "--all", "--to", EVENTS_DEAD, code=6).stderr
    assert "millrace topics create" in run(options, "dead", "replay", "--all", "--to", "nowhere", code=3).stderr
    assert "topic/partition/offset" in run(options, "dead", "show", "nonsense", code=6).stderr
    assert "--reason bad" in run(options, "dead", "list", "--reason", "bad", code=6).stderr
    assert "expected 30m" in run(options, "dead", "list", "--since", "yesterday", code=6).stderr


def test_a_foreign_record_among_the_letters_is_nobodys(site: Site, options: list[str], topic: str) -> None:
    producer = Producer({"bootstrap.servers": site.kafka.bootstrap})
    producer.produce(site.kafka.topic(EVENTS_DEAD), b"who put this here", b"key")
    producer.produce(site.kafka.topic(EVENTS_DEAD), None, b"tombstone of nothing")
    producer.flush(10)
    write_letters(site, record(topic, 1))
    assert answer(options, "dead", "list")["matched"] == 1
    assert answer(options, "dead", "replay", "--all")["replayed"] == 1
