"""Records that nobody could use, as messages of the dead-letter topic. Pure."""

from __future__ import annotations

import re
from typing import Final

from schemas.dead import HEADER_KEY, HEADER_OF_SOURCE, HEADER_TIMESTAMP, HEADER_TRUNCATED, DeadLetter, Reason, Stage
from schemas.scores import SourcePosition
from schemas.topics import EVENTS_DEAD, TOPICS
from worker.kafka.records import OutMessage, Record

_WHOLE: Final = re.compile(rb"\d{1,15}")
RECORD_OVERHEAD_BYTES: Final = 1024
"""Room for what the client adds to a record's own bytes."""


def dead_letter(record: Record, stage: Stage, reason: Reason, detail: str, sink: str = "") -> DeadLetter:
    """The dead letter of a record; ``sink`` names who would not take it, where it was for somebody."""
    return DeadLetter(
        stage=stage,
        reason=reason,
        detail=detail,
        source=SourcePosition(record.topic, record.partition, record.offset),
        key=record.key,
        value=record.value,
        source_headers=record.headers or (),
        sink=sink,
        timestamp_ms=first_written_ms(record),
    )


def first_written_ms(record: Record) -> int | None:
    """Kafka's time of the record, ms; of what was replayed from a dead letter that of the record as it first came."""
    for name, data in record.headers or ():
        if name == HEADER_TIMESTAMP and data is not None and _WHOLE.fullmatch(data):
            return int(data)
    return record.timestamp_ms if record.timestamp_ms > 0 else None


def dead_message(letter: DeadLetter, limit_bytes: int = TOPICS[EVENTS_DEAD].max_message_bytes) -> OutMessage:
    """The letter as it is written. What does not fit the topic is left out and said to be."""
    key, headers, value = letter.record_key(), letter.headers(), letter.value or b""
    # A header costs up to ten bytes of lengths beside its own.
    taken = sum(len(name.encode()) + len(data or b"") + 10 for name, data in headers)
    if len(value) > limit_bytes - RECORD_OVERHEAD_BYTES - len(key) - taken:
        headers = [
            (name, data)
            for name, data in headers
            if not name.startswith(HEADER_OF_SOURCE)
            and (name != HEADER_KEY or len(data or b"") < RECORD_OVERHEAD_BYTES)
        ]
        headers.append((HEADER_TRUNCATED, b"1"))
        value = b""
    return OutMessage(EVENTS_DEAD, key, value, headers)
