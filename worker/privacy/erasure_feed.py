"""The topic ``erasures``, followed: all of it is read before a role reads its first record, then as it grows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from schemas.erasures import ERASURES_PARTITION, decode_erasure
from schemas.folds import FormatError
from schemas.topics import ERASURES
from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka.admin import partition_counts, topic_ids
from worker.kafka.readback import FOLLOW_WAIT_MS, Readback
from worker.privacy.erasures import Erasures

POLL_EVERY_S: Final = 1.0
"""How long a new erasure may go unnoticed by a running role."""
_log = logging.getLogger(__name__)


class ErasureFeed:
    """Fills `known`. Making one reads the topic to its end. The ``role`` is who reads it, by its rights.

    Raises `TopicError` where the topic is missing, `KafkaError` when it cannot be read or holds what is no erasure.
    """

    def __init__(self, kafka: KafkaConfig, role: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.known = Erasures()
        self._topic, self._clock = kafka.topic(ERASURES), clock
        partition_counts(kafka, [self._topic])
        self.topic_id = topic_ids(kafka, [self._topic])[self._topic]
        self._bad: dict[bytes, str] = {}  # what is no erasure, by key, until something else takes its place
        self._fresh, self._poll_at_s = False, 0.0
        self._reader = Readback(kafka, f"{role}.erasures", FOLLOW_WAIT_MS)
        try:
            self._take(self._reader.follow([TopicPartition(self._topic, ERASURES_PARTITION, OFFSET_BEGINNING)]))
            self._check()
            self._fresh = False
        except BaseException:
            self.close()
            raise
        if self.known:
            _log.info("%d erasures loaded", len(self.known))

    def poll(self) -> bool:
        """Read what is new, at most every `POLL_EVERY_S`; whether anything has come since last time. Never waits."""
        if self._clock() < self._poll_at_s:
            return False
        self._poll_at_s = self._clock() + POLL_EVERY_S
        self._take(self._reader.poll())
        self._check()
        fresh, self._fresh = self._fresh, False
        return fresh

    def catch_up(self, offset: int) -> None:
        """Read on until this offset of the topic is known: another process has seen it."""
        self._take(self._reader.reach({(self._topic, ERASURES_PARTITION): offset + 1}))

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def _take(self, messages: Iterable[Any]) -> None:
        for message in messages:
            self._note(message)
            self._fresh = True

    def _note(self, message: Any) -> None:
        key = message.key() or b""
        self._bad.pop(key, None)
        try:
            if message.value() is None:
                self.known.remove(key.decode())
                return
            erasure = decode_erasure(message.value())
            self.known.add(erasure.user_id, erasure.cutoff_ms, message.offset())
        except (FormatError, UnicodeDecodeError, OverflowError) as error:
            self._bad[key] = f"{self._topic} offset {message.offset()}: {error}"

    def _check(self) -> None:
        for found in self._bad.values():
            raise KafkaError(
                f"{found}. Nobody may be remembered by mistake, so nothing goes on: delete that record (write a"
                " tombstone for its key), or upgrade to the release that wrote it"
            )
