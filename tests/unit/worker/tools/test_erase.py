"""The receipt of an erasure speaks of every topic that this configuration has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from schemas.dead import DeadLetter
from schemas.scores import SourcePosition
from schemas.topics import TOPICS
from worker.config import Config, KafkaConfig
from worker.tools import erase
from worker.tools.dead_letters import Letters
from worker.tools.erase import Erase


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


def record(offset: int, key: bytes | None, value: bytes, topic: str = "shop.clicks") -> Any:
    """A letter as it lies in events.dead."""
    source = SourcePosition(topic, 0, offset)
    letter = DeadLetter(stage="decode", reason="wrong_type", detail="", source=source, key=key, value=value)
    given = {"key": letter.record_key(), "value": value, "headers": letter.headers(), "partition": 3}
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
    meant, unread = Erase(Config(kafka=kafka), "4711", 1)._letters_of_person(letters)
    assert meant == {each.key(): 3 for each in theirs}
    assert unread == {each.key() for each in anybodys}
