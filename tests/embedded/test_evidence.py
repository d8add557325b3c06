"""From opinions with excerpts to an alert that shows why, through the alerts role."""

from __future__ import annotations

from pathlib import Path

import msgspec

from schemas.topics import ALERTS_OPINION, OPINIONS
from tests.opinions import (
    MINUTE_MS,
    START_MS,
    burst_on_lamp,
    counted_to_the_end,
    produce,
    published,
    running,
    stream,
    wait_until,
)
from worker.config import AlertsConfig, Config, KafkaConfig, ObserveConfig
from worker.kafka.admin import create_topics

ANGRY = ("物流太慢，等了一个星期", "一个星期了物流没有动静", "parcel lost, nobody answers", "物流信息不更新")
GRUMPY = ("一般般", "not my taste", "颜色不喜欢", "too small")
CALM = ("质量很好，下次再来", "very nice lamp, works well", "好看又实用", "fine for the price")


def test_an_alert_shows_the_texts_words_and_subjects_behind_it(embedded_broker: str, tmp_path: Path) -> None:
    config = Config(
        kafka=KafkaConfig(bootstrap=embedded_broker, embedded=True),
        alerts=AlertsConfig(data_dir=str(tmp_path)),
        observe=ObserveConfig(log_level="warning"),
    )
    create_topics(config.kafka, contracts=[OPINIONS, ALERTS_OPINION])
    opinions = []
    for number, each in enumerate(stream(60, 10, burst_on_lamp)):
        negative, burst = each.p_negative > 0.5, each.event_time_ms >= START_MS + 38 * MINUTE_MS
        text = ((ANGRY if burst else GRUMPY) if negative else CALM)[number % 4]
        related = ["brand:lux", "aspect:delivery"] if negative else ["brand:lux"]
        opinions.append(msgspec.structs.replace(each, excerpt=text, text_hash=text, related=related))
    produce(config, opinions)
    with running(config):
        wait_until(lambda: counted_to_the_end(config), "all counted")
    opened = next(alert for alert in published(config) if alert.status == "opened")
    assert opened.subject == "item:lamp"
    evidence = opened.evidence
    assert evidence is not None
    assert {text.excerpt for text in evidence.texts} == set(ANGRY)
    assert sum(text.copies for text in evidence.texts) == evidence.seen
    assert "物流" in {term.term for term in evidence.terms}
    assert {each.subject: each.share for each in evidence.related} == {"brand:lux": 1.0, "aspect:delivery": 1.0}
