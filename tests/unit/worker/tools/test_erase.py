"""The receipt of an erasure speaks of every topic that this configuration has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.dead import DeadLetter
from schemas.erasures import Erasure, decode_erasure, encode_erasure
from schemas.scores import SourcePosition
from schemas.topics import TOPICS
from worker.config import Config, KafkaConfig, RegistryConfig
from worker.errors import RegistryError
from worker.kafka.avro import AvroError
from worker.tools import erase
from worker.tools.dead_letters import Letters
from worker.tools.erase import NOTICE_MS, Erase
from worker.tools.receipt import standing_note


def test_the_receipt_has_the_topics_of_backfill_with_their_own_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def settings(_: KafkaConfig, names: list[str]) -> dict[str, dict[str, str]]:
        asked.extend(names)
        return {"clicks.2025": {"retention.ms": "-1"}}

    monkeypatch.setattr(erase, "topic_settings", settings)
    kafka = KafkaConfig(topics={"events.click": "shop.clicks"}, backfill={"clicks.2025": "events.click"})
    told = {each.topic: each for each in Erase(Config(kafka=kafka), "anna", 1)._topics(published=True, letters=0)}
    assert list(told) == asked == [*(kafka.topic(name) for name in TOPICS), "clicks.2025"]
    assert (told["clicks.2025"].what, told["shop.clicks"].what) == ("kept", "expires")


def record(offset: int, key: bytes | None, value: bytes, topic: str = "shop.clicks", at_ms: int = 1) -> Any:
    """A letter as it lies in events.dead."""
    source = SourcePosition(topic, 0, offset)
    letter = DeadLetter(stage="decode", reason="wrong_type", detail="", source=source, key=key, value=value)
    given: dict[str, Any] = {"key": letter.record_key(), "value": value, "headers": letter.headers(), "partition": 3}
    given["timestamp"] = (1, at_ms)
    return SimpleNamespace(**{name: lambda it=it: it for name, it in given.items()})


def test_a_persons_letters_are_found_by_number_and_what_may_be_theirs_is_counted() -> None:
    theirs = [
        record(1, b"evt-1", b'{"event_id": "evt-1", "user_id":4711}'),
        record(2, None, b'{"user_id":4711}'),
        record(4, b"4711", b'{"event_id": "evt-4", "text": 3}'),
    ]
    anybodys = [
        record(3, b"evt-3", b'{"event_id": "evt-3", "userId":"4711"}'),
        record(5, b"evt-5", b'{"eventId": "evt-5", "userId":"4711"}'),
        record(6, b"item:7", b'{"subject": "item:7", "event_id": "evt-6"}', "alerts.opinion"),
        record(7, b"evt-7", b"", "clicks.2025"),
    ]
    others = [
        record(8, b"evt-8", b'{"event_id": "evt-8", "user_id":47110}'),
        record(9, b"anna", b'{"event_id": "evt-9", "text": 3}'),
        record(10, b"anna", b'{"event_id": "evt-10", "text": 3}', "clicks.2025"),
    ]
    kafka = KafkaConfig(topics={"events.click": "shop.clicks"}, backfill={"clicks.2025": "events.click"})
    letters = cast("Letters", SimpleNamespace(read=lambda: [*anybodys, *theirs, *others]))
    meant, unread, newer = Erase(Config(kafka=kafka), "4711", 1)._letters_of_person(letters)
    assert meant == {each.key(): 3 for each in theirs}
    assert unread == {each.key() for each in anybodys}
    assert newer == set()


FIRST_MS, NOW_MS = 1_700_000_000_000, 1_700_600_000_000


def erasure(offset: int, cutoff_ms: int | None, user: str = "anna") -> Any:
    """A record of erasures; None takes it back."""
    value = None if cutoff_ms is None else encode_erasure(Erasure(user_id=user, cutoff_ms=cutoff_ms))
    given = {"key": user.encode(), "value": value, "offset": offset, "timestamp": (1, (cutoff_ms or 0) + 5)}
    return SimpleNamespace(**{name: lambda it=it: it for name, it in given.items()})


class Topics:
    """A cluster with these erasures and letters; notes what is written to the one and deleted from the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, erasures: list[Any], letters: list[Any]) -> None:
        self.written: list[Erasure] = []
        self.ended: list[bytes] = []
        monkeypatch.setattr(erase, "partition_counts", lambda *_: {})
        monkeypatch.setattr(erase, "topic_settings", lambda *_: {})
        monkeypatch.setattr(erase, "write_one", self._write)
        monkeypatch.setattr(erase, "Readback", lambda *_: SimpleNamespace(read=lambda _: erasures, close=lambda: None))
        dead = SimpleNamespace(read=lambda: letters, end=lambda meant, _: self.ended.extend(meant), close=lambda: None)
        monkeypatch.setattr(erase, "Letters", lambda _: dead)
        monkeypatch.setattr(Erase, "_published", lambda *_: True)
        monkeypatch.setattr(Erase, "_look_into_redis", lambda *_: ("deleted", 0, 0))

    def _write(self, _: KafkaConfig, topic: str, value: bytes, *rest: Any, **how: Any) -> int:
        self.written.append(decode_erasure(value))
        return 9


@pytest.mark.parametrize(
    ("records", "anew", "cutoff_ms", "offset", "since_ms"),
    [
        ([], False, NOW_MS, 9, None),
        ([erasure(2, FIRST_MS, "bert")], False, NOW_MS, 9, None),
        ([erasure(2, FIRST_MS)], False, FIRST_MS, 2, FIRST_MS + 5),
        ([erasure(2, FIRST_MS), erasure(3, FIRST_MS - 1)], False, FIRST_MS, 3, FIRST_MS + 4),
        ([erasure(2, FIRST_MS), erasure(3, None)], False, NOW_MS, 9, None),
        ([erasure(2, FIRST_MS)], True, NOW_MS, 9, None),
        ([erasure(2, NOW_MS + 7)], True, NOW_MS + 7, 9, None),
    ],
)
def test_run_again_the_recorded_cut_off_stands_unless_it_is_to_be_anew(
    monkeypatch: pytest.MonkeyPatch, records: list[Any], anew: bool, cutoff_ms: int, offset: int, since_ms: int | None
) -> None:
    topics = Topics(monkeypatch, records, [])
    receipt = Erase(Config(), "anna", NOW_MS, anew).run(0)
    assert receipt.done
    assert (receipt.cutoff_ms, receipt.erasure_offset, receipt.standing_since_ms) == (cutoff_ms, offset, since_ms)
    assert [each.cutoff_ms for each in topics.written] == ([cutoff_ms] if since_ms is None else [])
    told = any("2023-11-14 22:13:20 UTC" in note and "--anew" in note for note in receipt.notes)
    assert told is (since_ms is not None)


@pytest.mark.parametrize("anew", [False, True])
def test_run_again_letters_of_what_they_did_since_stay(monkeypatch: pytest.MonkeyPatch, anew: bool) -> None:
    later_ms = FIRST_MS + NOTICE_MS + 1
    old = [
        record(1, b"anna", b'{"text": 3}', at_ms=FIRST_MS),
        record(2, b"anna", b'{"text": 3}', at_ms=later_ms - 1),  # the worker may not have known yet
        record(3, b"anna", b'{"user_id": "anna", "event_time_ms": %d}' % FIRST_MS, at_ms=later_ms),
        record(4, b"anna", b'{"user_id": "anna", "event_time_ms": %d}' % later_ms, at_ms=FIRST_MS),
    ]
    new = [
        record(5, b"anna", b'{"text": 3}', at_ms=later_ms),
        record(6, b"anna", b'{"user_id": "anna", "event_time_ms": %d}' % (FIRST_MS + 1), at_ms=FIRST_MS + 2),
    ]
    topics = Topics(monkeypatch, [erasure(2, FIRST_MS)], [*old, *new])
    receipt = Erase(Config(), "anna", NOW_MS, anew).run(0)
    assert topics.ended == [each.key() for each in ([*old, *new] if anew else old)]
    assert (receipt.letters_deleted, receipt.letters_newer) == ((6, 0) if anew else (4, 2))
    assert any("2 dead letters too" in note for note in receipt.notes) is not anew


def test_a_record_that_is_no_erasure_is_replaced_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = erasure(2, FIRST_MS)
    bad.value = lambda: b"who wrote this"
    topics = Topics(monkeypatch, [bad], [])
    assert Erase(Config(), "anna", NOW_MS).run(0).cutoff_ms == topics.written[0].cutoff_ms == NOW_MS


def test_a_cut_off_beyond_all_calendars_is_told_as_it_is() -> None:
    assert f"{2**62} ms" in standing_note(2**62, FIRST_MS, 0)


AVRO = b"\x00\x00\x00\x00\x07" + b"\x08anna"


class Registry:
    """As the schema registry: schema 7 is an event of one field, and nothing else is there."""

    closed = 0

    def __init__(self, config: RegistryConfig) -> None:
        self.away = "away" in config.url

    def examine(self) -> int:
        if self.away:
            raise RegistryError("away")
        return 1

    def json_of(self, framed: bytes) -> bytes:
        if framed[:5] != AVRO[:5]:
            raise AvroError("not_json", "no such schema")
        return b'{"user_id":"anna","text":""}'

    def close(self) -> None:
        Registry.closed += 1


@pytest.mark.parametrize("away", [False, True])
def test_letters_in_avro_are_read_with_the_registry_and_counted_where_it_is_away(
    monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    monkeypatch.setattr(erase, "SchemaRegistry", Registry)
    monkeypatch.setattr(Registry, "closed", 0)
    rules = {"event_id": "id", "event_time_ms": "ts", "user_id": "str:who"}
    kafka = KafkaConfig(topics={"events.click": "shop.clicks"}, fields={"shop.clicks": rules})
    config = Config(kafka=kafka, registry=RegistryConfig(url="http://away" if away else "http://there"))
    framed = record(1, b"evt-1", AVRO, "events.review")
    unknown = record(2, b"evt-2", b"\x00\x00\x00\x00\x08 x", "events.review")
    own = record(3, b"evt-3", b'{"who": "anna", "ts": "no time"}')
    letters = cast("Letters", SimpleNamespace(read=lambda: iter([framed, unknown, own])))
    meant, unread, _ = Erase(config, "anna", 1)._letters_of_person(letters)
    assert set(meant) == ({own.key()} if away else {framed.key(), own.key()})
    assert unread == ({framed.key(), unknown.key()} if away else {unknown.key()})
    assert Registry.closed == 1
