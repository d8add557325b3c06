"""The trend of one subject as it stands on ``trends.opinion``."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Final

import msgspec

from schemas.shards import shard_of
from schemas.topics import TRENDS_OPINION
from schemas.trends import MINUTE_MS, TrendBucket, TrendMinute
from worker.alerts.trend import TrendSpan, added_up, span
from worker.config import KafkaConfig
from worker.errors import InputError
from worker.kafka.admin import partition_counts
from worker.kafka.readback import Readback

SPANS_MINUTES: Final = (5, 15, 60)
_decoder = msgspec.json.Decoder(TrendBucket)


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """A subject's sentiment: spans that end with its last minute, then every minute with opinions, in event time."""

    subject: str
    until_ms: int
    spans: list[TrendSpan]
    minutes: list[TrendMinute]


def trend(kafka: KafkaConfig, subject: str, hours: float) -> Trend:
    """Trend of what was written in the last ``hours``. Raises `InputError` when there is none, `KafkaError`."""
    topic = kafka.topic(TRENDS_OPINION)
    partition = shard_of(subject, partition_counts(kafka, [topic])[topic])
    since_ms = time.time_ns() // 1_000_000 - round(hours * 60 * MINUTE_MS)
    try:
        with closing(Readback(kafka, "trend")) as reader:
            places = [part for part in reader.places(topic, since_ms) if part.partition == partition]
            found = [
                _decoder.decode(message.value())
                for message in reader.read(places)
                if message.value() and (message.key() or b"").startswith(f"{subject}@".encode())
            ]
    except msgspec.MsgspecError as error:
        raise InputError(f"{topic}: a record cannot be read ({error}); it was written by another release") from error
    minutes = added_up(bucket for bucket in found if bucket.subject == subject)
    if not minutes:
        raise InputError(
            f"nothing about {subject} in the last {hours:g} hours; a subject is level:name, as in item:i-42"
        )
    until_ms = minutes[-1].minute_ms + MINUTE_MS
    spans = [span(minutes, until_ms, count) for count in SPANS_MINUTES]
    return Trend(subject=subject, until_ms=until_ms, spans=spans, minutes=minutes)
