"""Where messages go, at least once: an idempotent Kafka producer that tells when all up to a mark is acknowledged.

Exactly once is `worker.kafka.transaction`, behind the same protocol.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
from confluent_kafka import KafkaException, Producer

from worker.config import KafkaConfig
from worker.kafka.clients import producer_config, translate
from worker.kafka.records import Offsets, OutMessage

ANY_PARTITION: Final = -1
"""The partitioner decides, by the key."""

_log = logging.getLogger(__name__)


class Answer(msgspec.Struct, frozen=True):
    """What became of sealed offsets: their output is safe, and whether they are ``committed`` with it.

    ``withdrawn``: instead, all that was not committed has been taken back, as `Sink.abandon` asked.
    """

    offsets: Offsets
    committed: bool = False
    withdrawn: bool = False


class Sink(Protocol):
    """Messages out. Offsets sealed behind messages are answered once those messages are safe."""

    @property
    def full(self) -> bool:
        """Whether as much waits as may: the caller should read no more."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a seal is welcome now; until then messages gather for the next one."""
        ...

    @property
    def sealed(self) -> int:
        """Seals not answered yet."""
        ...

    def write(self, messages: Sequence[OutMessage]) -> None:
        """Take messages; never waits."""
        ...

    def seal(self, offsets: Offsets) -> None:
        """These offsets may be committed when everything written before is safe. Only while `ready`."""
        ...

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        """Serve the client; the answers that have come, in order. Raises `KafkaError`."""
        ...

    def abandon(self) -> bool:
        """Take back what is not committed, since its partitions have moved. True where that can be done: an answer
        says when it is, and until then nothing written is kept. False where what was written stays written."""
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
    def full(self) -> bool:
        return bool(self._waiting)

    @property
    def ready(self) -> bool:
        return True

    @property
    def sealed(self) -> int:
        return len(self._marks) - 1

    def write(self, messages: Sequence[OutMessage]) -> None:
        mark = self._marks[-1]
        for message in messages:
            mark.unacknowledged += 1
            if self._waiting or not self._produce(mark, message):
                self._waiting.append((mark, message))

    def seal(self, offsets: Offsets) -> None:
        self._marks[-1].offsets = offsets
        self._marks.append(_Mark())

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        self._producer.poll(timeout_s)
        while self._waiting and self._produce(*self._waiting[0]):
            self._waiting.popleft()
        done: list[Answer] = []
        while True:
            mark = self._marks[0]
            if mark.failure is not None:
                raise translate(mark.failure, doing="writing output") from KafkaException(mark.failure)
            if mark.unacknowledged or mark.offsets is None:
                return done
            done.append(Answer(mark.offsets))
            self._marks.popleft()

    def abandon(self) -> bool:
        return False

    def close(self, timeout_s: float) -> None:
        left = self._producer.flush(timeout_s) + len(self._waiting)
        if left:
            _log.warning("%d messages were not acknowledged; their events are read again", left)
            self._producer.purge()
            self._producer.flush(1)

    def _produce(self, mark: _Mark, message: OutMessage) -> bool:
        """Hand one message to the client. False when its queue is full."""
        topic = self._topic(message.topic)
        partition = ANY_PARTITION if message.partition is None else message.partition
        try:
            self._producer.produce(topic, message.value, message.key, partition, mark.answered, headers=message.headers)
        except BufferError:
            return False
        except KafkaException as error:
            raise translate(error, doing=f"writing to {topic}") from error
        return True
