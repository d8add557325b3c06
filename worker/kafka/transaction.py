"""Where messages go, exactly once: outputs and offsets in one transaction; a committed reader sees both or neither.

    write > begin > produce > seal > send offsets > commit > answer
                                     │ refused: abort, produce the same output again
                                     └ outcome unknown: new producer (fences the old), ask the group, answer or again

One transaction at a time. While it is committed nothing can be produced, so what is written then waits for the next.
The calls that wait for brokers run on an executor; the loop that calls `poll` never waits for them. All output is
kept until it is committed, `RETAINED_BYTES` at most, then `full` tells the caller to read no more. The producer, and
what may be asked of it after which error, is `worker.kafka.session`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Final

from confluent_kafka import KafkaException, Producer, TopicPartition

from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka.clients import transactional_config
from worker.kafka.records import Offsets, OutMessage, Partition
from worker.kafka.session import BACKOFF_S, Session
from worker.kafka.sink import Answer

RETAINED_BYTES: Final = 64 << 20
"""Output that waits to be committed. Above it reading pauses; what is on the device then still comes on top."""
ATTEMPTS_MAX: Final = 60
"""Aborts in a row of one transaction, with waits of up to a second between: about a minute."""

_log = logging.getLogger(__name__)


class TransactionalSink:
    """`worker.kafka.sink.Sink` on a transactional producer. See the module's head.

    ``membership`` gives the consumer group's metadata as it is now; it is asked on the caller's thread just before
    each commit, since it changes with every rebalance. While it is None (expelled from the group, and not told yet)
    nothing is committed: the next poll of the source tells, and what is here is abandoned.
    """

    def __init__(
        self,
        session: Session,
        executor: Executor,
        membership: Callable[[], object | None],
        clock: Callable[[], float] = time.monotonic,
        await_call: Callable[[Future[bool], float], bool] = lambda call, timeout_s: bool(wait([call], timeout_s).done),
    ) -> None:
        self._session, self._executor, self._membership, self._clock = session, executor, membership, clock
        self._await = await_call
        self._gathering = _Output()
        self._sealed: _Output | None = None
        self._call: Future[bool] | None = None
        self._withdrawing = False
        self._again_at_s = 0.0

    @property
    def full(self) -> bool:
        sealed = 0 if self._sealed is None else self._sealed.size
        return self._gathering.size + sealed >= RETAINED_BYTES

    @property
    def ready(self) -> bool:
        return self._sealed is None and self._call is None

    @property
    def sealed(self) -> int:
        return int(self._sealed is not None)

    def write(self, messages: Sequence[OutMessage]) -> None:
        self._gathering.add(messages)
        self._advance()

    def seal(self, offsets: Offsets) -> None:
        if self._sealed is not None:
            raise AssertionError("a transaction is being committed: see `ready`")
        self._gathering.offsets = offsets
        self._sealed, self._gathering = self._gathering, _Output()
        self._advance()

    def poll(self, timeout_s: float = 0.0) -> list[Answer]:
        answers: list[Answer] = []
        if self._call is None:
            self._serve(timeout_s if self._sealed is not None else 0.0)
        elif self._call.done() or self._await(self._call, timeout_s):
            answers = self._ended(self._call.result())
        self._advance()
        return answers

    def abandon(self) -> bool:
        self._gathering, self._sealed, self._withdrawing = _Output(), None, True
        if self._call is not None and self._call.cancel():
            # Not begun: it would commit what is taken back here, under a membership that may still be good. One that
            # has begun ends as the broker decides, and who has the partitions next waits for that end.
            self._call = None
        if self._call is None:
            self._call = self._executor.submit(self._session.abort)
        return True

    def close(self, timeout_s: float) -> None:
        """Roll back what is open. What it holds is read again by the partitions' next owners."""
        self._session.stop()
        if self._call is not None:
            self._await(self._call, timeout_s)
        closing = self._executor.submit(self._session.close)
        self._executor.shutdown(wait=True)
        if (error := closing.exception()) is not None:
            _log.warning("the open transaction was left to time out at the broker: %s", error)

    def _serve(self, timeout_s: float) -> None:
        try:
            self._session.serve(timeout_s)
        except KafkaException as error:
            # The client raises fatal errors (such as having been fenced) out of whatever serves its callbacks.
            self._call = self._executor.submit(self._session.roll_back, error.args[0])

    def _ended(self, committed: bool) -> list[Answer]:
        self._call = None
        if self._withdrawing:
            self._withdrawing = False
            return [Answer({}, withdrawn=True)]
        output = self._sealed or self._gathering
        if committed and output.offsets is not None:
            self._sealed = None
            return [Answer(output.offsets, committed=True)]
        output.produced = 0
        output.attempts += 1
        if output.attempts > ATTEMPTS_MAX:
            raise KafkaError(f"a transaction was aborted {ATTEMPTS_MAX} times: {self._session.last_error}")
        self._again_at_s = self._clock() + min(BACKOFF_S[0] * 2.0 ** min(output.attempts, 10), BACKOFF_S[1])
        return []

    def _advance(self) -> None:
        if self._call is not None or self._clock() < self._again_at_s:
            return
        output = self._sealed or self._gathering
        try:
            if not self._produce(output) or output.offsets is None:
                return
        except KafkaException as error:
            self._call = self._executor.submit(self._session.roll_back, error.args[0])
            return
        if (membership := self._membership()) is not None:
            self._call = self._executor.submit(self._session.commit, output.offsets, membership)

    def _produce(self, output: _Output) -> bool:
        """Hand over what the client has not yet. False when its queue is full."""
        messages = output.messages
        while output.produced < len(messages):
            if not self._session.produce(messages[output.produced], watched=output.attempts > 0):
                return False
            output.produced += 1
        return True


def transactional_sink(
    kafka: KafkaConfig,
    transactional_id: str,
    timeout_ms: int,
    membership: Callable[[], object | None],
    position: Callable[[Partition, int], TopicPartition],
    committed: Callable[[Collection[Partition]], Offsets] | None,
    note: Callable[[str], None],
) -> TransactionalSink:
    """The sink on a real cluster; ``committed`` and ``position`` as in `Session`.

    Raises `KafkaError` when transactions cannot be opened.
    """
    settings = transactional_config(kafka, transactional_id, timeout_ms)
    session = Session(lambda: Producer(settings), committed, position, kafka.topic, timeout_ms / 1000, note)
    return TransactionalSink(session, ThreadPoolExecutor(1, "transaction"), membership)


class _Output:
    """What goes into one transaction: messages, how many of them the client has, and the offsets that it commits."""

    __slots__ = ("attempts", "messages", "offsets", "produced", "size")

    def __init__(self) -> None:
        self.messages: list[OutMessage] = []
        self.produced = self.size = self.attempts = 0
        self.offsets: Offsets | None = None

    def add(self, messages: Sequence[OutMessage]) -> None:
        self.messages += messages
        self.size += sum([len(message.value or b"") for message in messages])
