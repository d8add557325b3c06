"""The receipt of an erasure speaks of every topic that this configuration has."""

from __future__ import annotations

import pytest

from schemas.topics import TOPICS
from worker.config import Config, KafkaConfig
from worker.tools import erase
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
