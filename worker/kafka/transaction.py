"""Where messages go, exactly once: outputs and offsets in one transaction; a committed reader sees both or neither.

    write > begin > produce > seal > send offsets > commit > answer
                                     │ refused: abort, produce the same output again
                                     └ outcome unknown: new producer (fences the old), ask the group, answer or again

One transaction at a time. While it is committed nothing can be produced, so what is written then waits for the next.
The calls that wait for brokers run on an executor; the loop that calls `poll` never waits for them. All output is
kept until it is committed, `RETAINED_BYTES` at most, then `full` tells the caller to read no more.

librdkafka speaks the transaction protocol from before KIP-890. After a call whose outcome is unknown its producer must
not be used again: a new one under the same transactional id fences it, and the group's offsets, which are part of
the transaction, tell what became of it. An abort while the first produce request is in flight can be fatal
(confluentinc/librdkafka#4849), so one delivery report is awaited first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, wait
from typing import Any, Final

from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException, TopicPartition

from worker.errors import KafkaError
from worker.kafka.clients import FENCED, translate
from worker.kafka.records import Offsets, OutMessage, Partition
from worker.kafka.sink import ANY_PARTITION, Answer

RETAINED_BYTES: Final = 64 << 20
"""Output that waits to be committed. Above it reading pauses; what is on the device then still comes on top."""
ATTEMPTS_MAX: Final = 60
"""Aborts in a row of one transaction, with waits of up to a second between: about a minute."""
BACKOFF_S: Final = (0.05, 1.0)
RENEWALS_MAX: Final = 8
RENEWALS_WITHIN_S: Final = 60.0
"""More new producers than that because others took our transactional id: two workers share a slot."""

_log = logging.getLogger(__name__)
_PURGED: Final = frozenset({ClientError._PURGE_QUEUE, ClientError._PURGE_INFLIGHT, ClientError._MSG_TIMED_OUT})


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


class Session:
    """One transactional id: its producer, renewed when it may not be used again.

    ``connect`` makes a producer; ``committed`` asks the group for offsets; ``position`` makes one to commit.
    `produce` and `serve` are for the loop, the rest for the executor, never both at once.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        committed: Callable[[Collection[Partition]], Offsets],
        position: Callable[[Partition, int], TopicPartition],
        topic: Callable[[str], str],
        timeout_s: float,
        note: Callable[[str], None] = lambda result: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._connect, self._committed, self._position = connect, committed, position
        self._topic, self._timeout_s = topic, timeout_s
        self._note, self._clock = note, clock
        self._stopped = threading.Event()
        self._pause = pause or self._stopped.wait
        self._begun = self._sent = self._reported = False
        self._refused: ClientError | None = None
        self._renewals: deque[float] = deque(maxlen=RENEWALS_MAX)
        self.last_error = ""
        self._producer = self._connected()

    def produce(self, message: OutMessage, *, watched: bool) -> bool:
        """Hand one message to the client; False when its queue is full. Raises `KafkaError` for one that can never be
        written, librdkafka's exception when the transaction cannot go on.

        Reports cost as much as producing, so they are asked for the first message only; ``watched``: for each, to
        tell which one is refused.
        """
        self._begin()
        topic = self._topic(message.topic)
        partition = ANY_PARTITION if message.partition is None else message.partition
        more = {"on_delivery": self._report} if watched or not self._sent else {}
        try:
            self._producer.produce(topic, message.value, message.key, partition, headers=message.headers, **more)
        except BufferError:
            return False
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() == ClientError.MSG_SIZE_TOO_LARGE or cause.code() == ClientError._UNKNOWN_TOPIC:
                raise translate(error, doing=f"writing to {topic}") from error
            raise
        self._sent = True
        return True

    def serve(self, timeout_s: float) -> None:
        """Serve the client's callbacks. Raises librdkafka's exception when the producer is past use."""
        self._producer.poll(timeout_s)

    def commit(self, offsets: Offsets, membership: object) -> bool:
        """Commit the output and the offsets. False when it was rolled back and must be produced again."""
        try:
            self._begin()
            positions = [self._position(partition, offset) for partition, offset in offsets.items()]
            self._patiently(lambda: self._producer.send_offsets_to_transaction(positions, membership, self._timeout_s))
        except KafkaException as error:
            return self.roll_back(error.args[0])
        try:
            self._patiently(lambda: self._producer.commit_transaction(self._timeout_s))
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                return self.roll_back(error.args[0])
            self._note("unknown")
            self._renew(error.args[0])
            if not self._reached(offsets):
                return False
        self._begun = False
        self._note("committed")
        return True

    def roll_back(self, error: ClientError) -> bool:
        """Abort after an error; with a new producer where this one is past that. Always False: not committed."""
        self.last_error = error.str()
        _log.warning("transaction rolled back: %s", error.str())
        if error.txn_requires_abort():
            self.abort()
        else:
            self._renew(error)
        self._note("aborted")
        refused, self._refused = self._refused, None
        if refused is not None and not refused.retriable():
            raise translate(refused, doing="writing scores") from KafkaException(refused)
        return False

    def abort(self) -> bool:
        """Abort what is open, if anything. Always False: not committed."""
        if not self._begun or self._producer is None:
            return False
        deadline = self._clock() + self._timeout_s
        try:
            while self._sent and not self._reported and self._clock() < deadline:
                self._producer.poll(0.05)
            self._patiently(lambda: self._producer.abort_transaction(self._timeout_s))
        except KafkaException as error:
            self._renew(error.args[0])
        self._begun = False
        return False

    def stop(self) -> None:
        """From now on wait for nothing: a broker that is away stays away."""
        self._stopped.set()

    def close(self) -> None:
        """Abort what is open and let the producer go."""
        self.abort()
        self._producer = None

    def _begin(self) -> None:
        if not self._begun:
            self._producer.begin_transaction()
            self._begun, self._sent, self._reported, self._refused = True, False, False, None

    def _report(self, error: ClientError | None, _: object) -> None:
        self._reported = True
        if error is not None and error.code() not in _PURGED:
            self._refused = self._refused or error

    def _patiently(self, call: Callable[[], object]) -> None:
        """Repeat a call that may be repeated, within the time-out. One that timed out may not: it may have happened."""
        deadline = self._clock() + self._timeout_s
        while True:
            try:
                call()
            except KafkaException as error:
                cause = error.args[0]
                again = cause.retriable() and cause.code() != ClientError._TIMED_OUT and self._clock() < deadline
                if not again or self._stopped.is_set():
                    raise
                self._pause(BACKOFF_S[0])
            else:
                return

    def _renew(self, error: ClientError) -> None:
        """Destroy the producer and start another. What the old one had open is over when this returns."""
        self.last_error = error.str()
        _log.warning("transactional producer renewed after: %s", error.str())
        now = self._clock()
        if error.code() in FENCED or error.fatal():
            if len(self._renewals) == RENEWALS_MAX and now - self._renewals[0] < RENEWALS_WITHIN_S:
                raise KafkaError(
                    f"another process keeps taking our transactional id ({error.str()}): give each worker its own"
                    " worker.slot"
                ) from KafkaException(error)
            self._renewals.append(now)
        old, self._producer = self._producer, None
        old.purge()
        del old
        self._producer = self._connected()
        self._begun = False

    def _connected(self) -> Any:
        wait_s = BACKOFF_S[0]
        while True:
            producer = self._connect()
            try:
                producer.init_transactions(self._timeout_s)
            except KafkaException as error:
                passing = error.args[0].retriable() or error.args[0].code() == ClientError._TIMED_OUT
                if not passing or self._stopped.is_set():
                    raise translate(error, doing="opening transactions") from error
                _log.warning("transactions cannot be opened yet: %s", error.args[0].str())
                self._pause(wait_s)
                wait_s = min(2 * wait_s, BACKOFF_S[1])
            else:
                self._note("opened")
                return producer

    def _reached(self, offsets: Offsets) -> bool:
        """Whether the group's offsets show that the transaction was committed. They stand or fall together."""
        found = self._committed(offsets.keys())
        return all(found.get(partition, -1) >= offset for partition, offset in offsets.items())


class _Output:
    """What goes into one transaction: messages, how many of them the client has, and the offsets that it commits."""

    __slots__ = ("attempts", "messages", "offsets", "produced", "size")

    def __init__(self) -> None:
        self.messages: list[OutMessage] = []
        self.produced = self.size = self.attempts = 0
        self.offsets: Offsets | None = None

    def add(self, messages: Sequence[OutMessage]) -> None:
        self.messages += messages
        self.size += sum([len(message.value) for message in messages])
