"""Where messages go: an idempotent Kafka producer that tells when all up to a mark is acknowledged."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, Protocol

from confluent_kafka import KafkaException, Producer

from worker.clients import producer_config, translate
from worker.config import KafkaConfig
from worker.emit import OutMessage
from worker.source import Offsets

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Messages out. Offsets sealed behind messages come back once all of those are acknowledged."""

    @property
    def backlog(self) -> int:
        """Messages that the client's queue had no room for yet; above 0 the caller should read no more."""
        ...

    @property
    def sealed(self) -> int:
        """Marks not given back yet."""
        ...

    def write(self, messages: Iterable[OutMessage]) -> None:
        """Take messages; never waits."""
        ...

    def seal(self, offsets: Offsets) -> None:
        """Mark: these offsets may be committed when everything written before is acknowledged."""
        ...

    def poll(self, timeout_s: float = 0.0) -> list[Offsets]:
        """Serve the client; the marks, in order, behind which all is acknowledged. Raises `KafkaError`."""
        ...

    def close(self, timeout_s: float) -> None:
        """Wait at most this long for what is on its way, then let go."""
        ...


class _Mark:
    """Messages between two seals."""

    __slots__ = ("failure", "offsets", "unacknowledged")

    def __init__(self) -> None:
        self.unacknowledged = 0
        self.failure: Any = None
        self.offsets: Offsets | None = None

    def answered(self, error: Any, _: Any) -> None:
        """The client's delivery report of one message."""
        self.unacknowledged -= 1
        self.failure = self.failure or error


class KafkaSink:
    """`Sink` on confluent-kafka. A message that is refused for good stops the worker: nothing beyond it is committed.

    Messages that the client's bounded queue cannot take wait in a backlog, which is as large as what the caller
    releases before it notices and stops reading.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._producer = Producer(producer_config(config))
        self._topic = config.topic
        self._marks: deque[_Mark] = deque([_Mark()])
        self._waiting: deque[tuple[_Mark, OutMessage]] = deque()

    @property
    def backlog(self) -> int:
        return len(self._waiting)

    @property
    def sealed(self) -> int:
        return len(self._marks) - 1

    def write(self, messages: Iterable[OutMessage]) -> None:
        mark = self._marks[-1]
        for message in messages:
            mark.unacknowledged += 1
            if self._waiting or not self._produce(mark, message):
                self._waiting.append((mark, message))

    def seal(self, offsets: Offsets) -> None:
        self._marks[-1].offsets = offsets
        self._marks.append(_Mark())

    def poll(self, timeout_s: float = 0.0) -> list[Offsets]:
        self._producer.poll(timeout_s)
        while self._waiting and self._produce(*self._waiting[0]):
            self._waiting.popleft()
        done: list[Offsets] = []
        while True:
            mark = self._marks[0]
            if mark.failure is not None:
                raise translate(mark.failure, doing="writing scores") from KafkaException(mark.failure)
            if mark.unacknowledged or mark.offsets is None:
                return done
            done.append(mark.offsets)
            self._marks.popleft()

    def close(self, timeout_s: float) -> None:
        left = self._producer.flush(timeout_s) + self.backlog
        if left:
            _log.warning("%d messages were not acknowledged; their events are read again", left)
            self._producer.purge()
            self._producer.flush(1)

    def _produce(self, mark: _Mark, message: OutMessage) -> bool:
        """Hand one message to the client. False when its queue is full."""
        try:
            self._producer.produce(
                self._topic(message.topic),
                message.value,
                message.key,
                _ANY if message.partition is None else message.partition,
                mark.answered,
                headers=message.headers,
            )
        except BufferError:
            return False
        except KafkaException as error:
            raise translate(error, doing=f"writing to {self._topic(message.topic)}") from error
        return True


_ANY: Final = -1
"""The partitioner decides, by the key."""
