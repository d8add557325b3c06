"""Dead letters: what could not be scored or delivered, whole, with headers that tell why and whence.

The value is the original bytes, the key the letter's id (the topic is compacted by it). A record without
a value would be a deletion there, so a tombstone's letter has an empty value and ``millrace-null: 1``; a record
too large for the dead-letter topic keeps its position only and says ``millrace-truncated: 1``. The record's own
headers come along under ``millrace-source-header:``, so that a replay (`worker.tools.dead_replay`) gives back what
came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, cast

import msgspec

from schemas.folds import FormatError
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
HEADER_TIMESTAMP: Final = "millrace-source-timestamp"
"""On a letter and on what is replayed of it: Kafka's time of the record as it first came, ms."""
HEADER_SINK: Final = "millrace-sink"
HEADER_NULL: Final = "millrace-null"
HEADER_TRUNCATED: Final = "millrace-truncated"
HEADER_OF_SOURCE: Final = "millrace-source-header:"
"""Before the name of each header that the record itself had."""
HEADER_REPLAY_OF: Final = "millrace-replay-of"
"""On a replayed record: the letter that it was, by `DeadLetter.letter_id`."""
HEADER_REPLAY_COUNT: Final = "millrace-replay-count"
HEADER_TOMBSTONE: Final = "millrace-tombstone"
"""On the deletion of a letter: ``replayed``, ``erased`` or ``dropped``."""
MAX_DETAIL_CHARS: Final = 500

Headers = Sequence[tuple[str, bytes | None]]
Stage = Literal["decode", "model", "notify"]


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One record that could not be scored, or not be delivered to the sink ``sink``.

    ``detail`` names the field and what was expected, never its value.
    """

    stage: Stage
    reason: Reason
    detail: str
    source: SourcePosition
    key: bytes | None
    value: bytes | None
    source_headers: Headers = ()
    truncated: bool = False
    sink: str = ""
    timestamp_ms: int | None = None

    @property
    def letter_id(self) -> str:
        """Its source position, as ``topic/partition/offset``; and the sink, where one record has a letter for each."""
        place = f"{self.source.topic}/{self.source.partition}/{self.source.offset}"
        return f"{place}#{self.sink}" if self.sink else place

    def record_key(self) -> bytes:
        """Kafka key: the id."""
        return self.letter_id.encode()

    def headers(self) -> list[tuple[str, bytes | None]]:
        """Kafka headers."""
        pairs: list[tuple[str, bytes | None]] = [
            (HEADER_STAGE, self.stage.encode()),
            (HEADER_REASON, self.reason.encode()),
            (HEADER_DETAIL, self.detail[:MAX_DETAIL_CHARS].encode()),
            (HEADER_TOPIC, self.source.topic.encode()),
            (HEADER_PARTITION, str(self.source.partition).encode()),
            (HEADER_OFFSET, str(self.source.offset).encode()),
        ]
        if self.sink:
            pairs.append((HEADER_SINK, self.sink.encode()))
        if self.timestamp_ms is not None:
            pairs.append((HEADER_TIMESTAMP, str(self.timestamp_ms).encode()))
        if self.key is not None:
            pairs.append((HEADER_KEY, self.key))
        if self.value is None:
            pairs.append((HEADER_NULL, b"1"))
        pairs += [(HEADER_OF_SOURCE + name, value) for name, value in self.source_headers]
        return pairs


def read_letter(value: bytes, headers: Headers) -> DeadLetter:
    """The letter that a record of ``events.dead`` is. Raises `FormatError` for one that is none of ours."""
    own = {name: data or b"" for name, data in headers}
    try:
        source = SourcePosition(
            own[HEADER_TOPIC].decode(), int(own[HEADER_PARTITION].decode()), int(own[HEADER_OFFSET].decode())
        )
        return DeadLetter(
            stage=cast("Stage", own[HEADER_STAGE].decode()),
            reason=cast("Reason", own[HEADER_REASON].decode()),  # a newer release may know more of them
            detail=own.get(HEADER_DETAIL, b"").decode(),
            source=source,
            key=own.get(HEADER_KEY),
            value=None if HEADER_NULL in own else value,
            source_headers=[
                (name.removeprefix(HEADER_OF_SOURCE), data)
                for name, data in headers
                if name.startswith(HEADER_OF_SOURCE)
            ],
            truncated=HEADER_TRUNCATED in own,
            sink=own.get(HEADER_SINK, b"").decode(),
            timestamp_ms=int(own[HEADER_TIMESTAMP]) if HEADER_TIMESTAMP in own else None,  # none of an older release
        )
    except (KeyError, ValueError) as error:
        raise FormatError(f"dead letter: header missing or malformed ({error})") from error


def parse_letter_id(letter_id: str) -> tuple[SourcePosition, str]:
    """The position that a letter's id says, and the sink, empty where it says none. Raises ValueError."""
    place, mark, sink = letter_id.partition("#")  # no topic's name holds the mark
    parts = place.rsplit("/", 2)
    if len(parts) != 3 or not parts[0] or not all(part.isdecimal() for part in parts[1:]) or bool(mark) != bool(sink):
        raise ValueError("expected topic/partition/offset, or topic/partition/offset#sink")
    return SourcePosition(parts[0], int(parts[1]), int(parts[2])), sink
