"""Dead letters as they lie in ``events.dead``: found by filters, looked at one by one, ended.

The topic is compacted by letter: of every id the last record counts, and a tombstone ends a letter (it was replayed or
dropped, or its person was erased). Found letters are held without their values; at most `MAX_FOUND`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
from confluent_kafka import TopicPartition

from schemas.dead import HEADER_REPLAY_COUNT, HEADER_TOMBSTONE, DeadLetter, parse_letter_id, read_letter
from schemas.folds import FormatError
from schemas.topics import EVENTS_DEAD
from worker.config import KafkaConfig
from worker.errors import InputError
from worker.kafka.bulk import BulkProducer
from worker.kafka.readback import Readback

MAX_FOUND: Final = 1_000_000
DELIVERY_TIMEOUT_S: Final = 30.0
_AGO: Final = re.compile(r"(\d+)\s*([smhd])")
_UNIT_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters: every condition that is set must hold. ``topics`` are the cluster's names; times are those at
    which the letters were written, in milliseconds, from ``since_ms`` up to but not including ``until_ms``."""

    ids: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None

    def matches(self, letter: DeadLetter, at_ms: int) -> bool:
        """Whether a letter written at ``at_ms`` is meant."""
        return (
            (not self.ids or letter.letter_id in self.ids)
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.stages or letter.stage in self.stages)
            and (not self.topics or letter.source.topic in self.topics)
            and (self.since_ms is None or at_ms >= self.since_ms)
            and (self.until_ms is None or at_ms < self.until_ms)
        )


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A letter, without its value. ``place`` is its partition and offset in ``events.dead``; ``replays`` says how often
    the record had been replayed before it came to be this letter."""

    id: str
    reason: str
    stage: str
    detail: str
    topic: str
    time_ms: int
    size_bytes: int
    truncated: bool
    replays: int
    place: tuple[int, int]


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """Letters found, oldest first, and how the wanted ids that are not among them ended: ``replayed``, ``erased``,
    ``dropped`` or ``unknown`` (no such letter, or its tombstone is gone too)."""

    letters: list[Found]
    ended: dict[str, str]

    def by_reason(self) -> dict[str, int]:
        """How many of each reason, most frequent first."""
        return dict(Counter(letter.reason for letter in self.letters).most_common())


class Letters:
    """The letters of a cluster. Raises `TopicError` where there is no ``events.dead``, `KafkaError`. To be closed."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._kafka, self._reader, self.topic = kafka, Readback(kafka, "dead"), kafka.topic(EVENTS_DEAD)

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()

    def search(self, wanted: Filter, limit: int | None = None) -> Search:
        """The letters that match, the oldest ``limit`` of them. Raises `InputError` for more than `MAX_FOUND`."""
        found: dict[bytes, Found] = {}
        ended = dict.fromkeys(wanted.ids, "unknown")
        for message in self.read(wanted.since_ms):
            key = message.key() or b""
            found.pop(key, None)  # the later record of an id takes the earlier one's place
            if message.value() is None:
                _end(ended, wanted.ids, message)
                continue
            letter = letter_of(message)
            if letter is None or not wanted.matches(letter, message.timestamp()[1]):
                continue
            found[key] = _found(message, letter)
            ended.pop(letter.letter_id, None)
            if len(found) > MAX_FOUND:
                raise InputError(
                    f"more than {MAX_FOUND} letters match. Narrow it by --reason, --topic, --since, --until"
                )
        oldest = sorted(found.values(), key=lambda each: (each.time_ms, each.place))
        return Search(letters=oldest[:limit], ended=ended)

    def read(self, since_ms: int | None = None) -> Generator[Any, None, None]:
        """Records of the topic, partition by partition in order, from those written at ``since_ms`` on."""
        return self._reader.read(self._reader.places(self.topic, since_ms))

    def fetch(self, found: Found) -> DeadLetter:
        """The letter with its value. Raises `InputError` when it is gone by now."""
        partition, offset = found.place
        with closing(self._reader.read([TopicPartition(self.topic, partition, offset)])) as messages:
            message = next(messages, None)
        if message is not None and message.offset() == offset and message.value() is not None:
            letter = letter_of(message)
            if letter is not None:
                return letter
        raise InputError(f"letter {found.id} is no longer there: it was ended a moment ago")

    def end(self, letters: Mapping[bytes, int], how: Literal["erased", "dropped"]) -> None:
        """Delete letters, given as their keys and partitions; returns when all of it is acknowledged."""
        if not letters:
            return
        producer = BulkProducer(
            self._kafka,
            self.topic,
            doing="deleting dead letters",
            advice="Run it again for the rest",
            timeout_s=DELIVERY_TIMEOUT_S,
        )
        for key, partition in letters.items():
            producer.write(None, key, partition=partition, headers=[(HEADER_TOMBSTONE, how.encode())])
        producer.finish()


def letter_of(message: Any) -> DeadLetter | None:
    """The letter of a record; None for a foreign record in the topic, which is nobody's letter."""
    try:
        return read_letter(message.value(), message.headers() or [])
    except FormatError:
        return None


def parse_id(text: str) -> str:
    """A letter's id as a person gave it. Raises `InputError`."""
    try:
        parse_letter_id(text)
    except ValueError as error:
        raise InputError(f"letter {text!r}: {error}, as `millrace dead list` shows it") from error
    return text


def parse_time_ms(text: str, now_ms: int) -> int:
    """A moment: so long ago (``90s``, ``30m``, ``2h``, ``7d``) or in ISO 8601, UTC unless it says otherwise.

    Raises `InputError`.
    """
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return now_ms - int(ago[1]) * _UNIT_MS[ago[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"time {text!r}: expected 30m, 2h, 7d, or 2026-01-31T12:00") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def replays_of(letter: DeadLetter) -> int:
    """How often the letter's record had been replayed; 0 where its header says nothing that can be read."""
    given = dict(letter.source_headers).get(HEADER_REPLAY_COUNT) or b""
    return int(given) if given.isdigit() and len(given) < 9 else 0


def _found(message: Any, letter: DeadLetter) -> Found:
    return Found(
        id=letter.letter_id,
        reason=letter.reason,
        stage=letter.stage,
        detail=letter.detail,
        topic=letter.source.topic,
        time_ms=message.timestamp()[1],
        size_bytes=len(letter.value or b""),
        truncated=letter.truncated,
        replays=replays_of(letter),
        place=(message.partition(), message.offset()),
    )


def _end(ended: dict[str, str], ids: frozenset[str], tombstone: Any) -> None:
    letter_id = (tombstone.key() or b"").decode(errors="replace")
    if letter_id in ids:
        said = dict(tombstone.headers() or []).get(HEADER_TOMBSTONE)
        ended[letter_id] = said.decode(errors="replace") if said else "erased"
