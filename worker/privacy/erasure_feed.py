"""The topic ``erasures``, followed: all of it is read before a role reads its first record, then as it grows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from schemas.erasures import ERASURES_PARTITION, decode_erasure
from schemas.folds import FormatError
from schemas.topics import ERASURES
from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka.admin import partition_counts, topic_ids
from worker.kafka.clients import consumer_config, translate
from worker.privacy.erasures import Erasures

POLL_EVERY_S: Final = 1.0
"""How long a new erasure may go unnoticed by a running role."""
STALL_S: Final = 30.0
_EOF: Final = confluent_kafka.KafkaError._PARTITION_EOF
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
        self._next_offset = 0
        self._at_end = self._fresh = False
        self._poll_at_s = 0.0
        self._consumer = Consumer(
            consumer_config(kafka, f"{kafka.group_prefix}.{role}.erasures", enable_partition_eof=True)
        )
        try:
            self._consumer.assign([TopicPartition(self._topic, ERASURES_PARTITION, OFFSET_BEGINNING)])
            self._read_until(lambda: self._at_end)
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
        self._take(0.0)
        self._check()
        fresh, self._fresh = self._fresh, False
        return fresh

    def catch_up(self, offset: int) -> None:
        """Read on until this offset of the topic is known: another process has seen it."""
        self._read_until(lambda: self._next_offset > offset)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _read_until(self, done: Callable[[], bool]) -> None:
        deadline = self._clock() + STALL_S
        while not done():
            if self._take(0.1):
                deadline = self._clock() + STALL_S
            elif self._clock() > deadline:
                raise KafkaError(f"{self._topic} could not be read for {STALL_S:.0f} s. Check kafka.bootstrap")

    def _take(self, timeout_s: float) -> bool:
        fresh = False
        try:
            messages = self._consumer.consume(1000, timeout_s)
        except KafkaException as error:
            raise translate(error, doing=f"reading {self._topic}") from error
        for message in messages:
            problem = message.error()
            if problem is None:
                self._note(message)
                fresh = self._fresh = True
                self._next_offset = message.offset() + 1
            elif problem.code() == _EOF:
                self._at_end = True
                self._next_offset = max(self._next_offset, message.offset())
            elif problem.fatal() or problem.code() == confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise translate(problem, doing=f"reading {self._topic}") from KafkaException(problem)
            else:
                _log.warning("reading erasures: %s", problem.str())
        return fresh

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
