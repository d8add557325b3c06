"""Alerts that nobody took, on ``events.dead``: written at once, over when Kafka has acknowledged them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from schemas.dead import Reason
from worker.config import KafkaConfig
from worker.kafka.dead import dead_letter, dead_message
from worker.kafka.records import Record
from worker.kafka.sink import KafkaSink

H = TypeVar("H")


class DeadLetters(Generic[H]):
    """Letters under way. Handles are the owner's, and come back once their letter is safe."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._sink = KafkaSink(kafka)
        self._waiting: deque[H] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def write(
        self, record: Record, stage: Literal["decode", "notify"], reason: Reason, detail: str, sink: str, handle: H
    ) -> None:
        """Bury a record for a sink (none: for all). Raises `KafkaError` when the broker refuses for good."""
        self._sink.write([dead_message(dead_letter(record, stage, reason, detail, sink))])
        self._sink.seal({})
        self._waiting.append(handle)

    def acknowledged(self) -> Sequence[H]:
        """Handles of letters that are safe since the last call, in order. Raises `KafkaError`."""
        return [self._waiting.popleft() for _ in self._sink.poll()]

    def close(self, timeout_s: float) -> None:
        """Wait at most this long for what is on its way, then let go."""
        self._sink.close(timeout_s)
