"""Dead letters: what could not be scored or delivered, whole, with headers that tell why and whence.

The value is the original bytes, the key the source position (the topic is compacted by it). A record without
a value would be a deletion there, so a tombstone's letter has an empty value and ``millrace-null: 1``; a record
too large for the dead-letter topic keeps its headers and position only and says ``millrace-truncated: 1``.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from schemas.scores import SourcePosition

Reason = Literal[
    "not_json",
    "not_utf8",
    "wrong_type",
    "missing_field",
    "out_of_range",
    "empty_text",
    "tombstone",
    "future_time",
    "too_large",
    "model_error",
    "undeliverable",
]

HEADER_STAGE: Final = "millrace-stage"
HEADER_REASON: Final = "millrace-reason"
HEADER_DETAIL: Final = "millrace-detail"
HEADER_TOPIC: Final = "millrace-source-topic"
HEADER_PARTITION: Final = "millrace-source-partition"
HEADER_OFFSET: Final = "millrace-source-offset"
HEADER_KEY: Final = "millrace-source-key"
HEADER_SINK: Final = "millrace-sink"
HEADER_NULL: Final = "millrace-null"
HEADER_TRUNCATED: Final = "millrace-truncated"
MAX_DETAIL_CHARS: Final = 500


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One record that could not be scored, or not be delivered to the sink ``sink``.

    ``detail`` names the field and what was expected, never its value.
    """

    stage: Literal["decode", "model", "notify"]
    reason: Reason
    detail: str
    source: SourcePosition
    key: bytes | None
    value: bytes | None
    sink: str = ""

    def record_key(self) -> bytes:
        """Kafka key: the source position, and the sink where one record has a letter for each."""
        place = f"{self.source.topic}/{self.source.partition}/{self.source.offset}"
        return f"{place}#{self.sink}".encode() if self.sink else place.encode()

    def headers(self) -> list[tuple[str, bytes]]:
        """Kafka headers."""
        pairs: list[tuple[str, bytes]] = [
            (HEADER_STAGE, self.stage.encode()),
            (HEADER_REASON, self.reason.encode()),
            (HEADER_DETAIL, self.detail[:MAX_DETAIL_CHARS].encode()),
            (HEADER_TOPIC, self.source.topic.encode()),
            (HEADER_PARTITION, str(self.source.partition).encode()),
            (HEADER_OFFSET, str(self.source.offset).encode()),
        ]
        if self.sink:
            pairs.append((HEADER_SINK, self.sink.encode()))
        if self.key is not None:
            pairs.append((HEADER_KEY, self.key))
        if self.value is None:
            pairs.append((HEADER_NULL, b"1"))
        return pairs
