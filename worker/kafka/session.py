"""One transactional id and its producer, which is replaced when it may not be used again.

librdkafka speaks the transaction protocol from before KIP-890. After a call whose outcome is unknown its producer must
not be used again: a new one under the same transactional id fences it, and the group's offsets, which are part of
the transaction, tell what became of it.

Nor is a producer used again once a transaction of it has failed, though librdkafka would go on after an abort. What
waits in its queues then is dropped, and the sequence numbers of it are given to the messages that come next
(rd_kafka_toppar_purge_queues: "advancing epoch base msgid"). But a request that timed out waits there too, to be sent
again, and a broker that was only slow has its batch: it takes the next messages under those numbers for repeats,
answers that it has them, and the commit after that succeeds without them. Seen in a chaos campaign: 23 outputs of a
million were lost to a broker that had been paused for eight seconds. A new producer numbers from zero in a new epoch.

And sending offsets may never return, whatever time-out it is given (confluentinc/librdkafka#5456, #5511: a group
coordinator that has gone): each call that waits for brokers has a thread of its own, and one that does not come back is
a time-out, its producer left behind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException, TopicPartition

from worker.errors import KafkaError
from worker.kafka.clients import FENCED, translate, within
from worker.kafka.records import Offsets, OutMessage, Partition
from worker.kafka.sink import ANY_PARTITION

BACKOFF_S: Final = (0.05, 1.0)
"""Waits between attempts: the first, and the longest."""
RENEWALS_MAX: Final = 8
RENEWALS_WITHIN_S: Final = 60.0
"""More new producers than that because others took our transactional id: two workers share a slot."""

HUNG_MORE_S: Final = 5.0
"""A call that takes so much longer than its time-out is not going to return."""
HUNG_MAX: Final = 8
"""Calls left behind, each with a thread and a producer, before the process must be started again."""

_log = logging.getLogger(__name__)
_MOVED: Final = ClientError(ClientError._PURGE_QUEUE, "its partitions moved to another worker")
_PURGED: Final = frozenset({ClientError._PURGE_QUEUE, ClientError._PURGE_INFLIGHT, ClientError._MSG_TIMED_OUT})


class Session:
    """One transactional id: its producer, renewed when it may not be used again.

    ``connect`` makes a producer; ``position`` makes an offset to commit; ``committed`` asks the group for offsets. It
    is None where output may be there twice: then, and only then, output of an unknown outcome is written again unasked.
    `produce` and `serve` are for the loop, the rest for the executor, never both at once. ``watch`` runs a call and
    raises TimeoutError when it has not returned after so many seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        committed: Callable[[Collection[Partition]], Offsets] | None,
        position: Callable[[Partition, int], TopicPartition],
        topic: Callable[[str], str],
        timeout_s: float,
        note: Callable[[str], None] = lambda result: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
        watch: Callable[[Callable[[], object], float], None] = within,
    ) -> None:
        self._connect, self._committed, self._position = connect, committed, position
        self._topic, self._timeout_s = topic, timeout_s
        self._note, self._clock = note, clock
        self._watch, self._hung = watch, 0
        self._turn = 0  # which producer, the first being 0
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
        more = {"on_delivery": partial(self._report, self._turn)} if watched or not self._sent else {}
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
        """Take back what is open, after an error. Always False: not committed."""
        _log.warning("transaction rolled back: %s", error.str())
        with suppress(KafkaException):  # fatal errors too come out of what serves reports: it is given up in any case
            self._producer.poll(0)  # the reports so far may say which message was refused, and why
        self._renew(error)
        self._note("aborted")
        refused, self._refused = self._refused, None
        if refused is not None and not refused.retriable():
            raise translate(refused, doing="writing output") from KafkaException(refused)
        return False

    def abort(self) -> bool:
        """Take back what is open, if anything. Always False: not committed."""
        if self._begun:
            self._renew(_MOVED)
        return False

    def stop(self) -> None:
        """From now on wait for nothing: a broker that is away stays away."""
        self._stopped.set()

    def close(self) -> None:
        """Abort what is open and let the producer go. Raises librdkafka's exception when it was not aborted."""
        try:
            if self._begun and self._producer is not None:  # None: it was to be renewed, and could not
                # An abort while the first produce request is in flight can be fatal (confluentinc/librdkafka#4849).
                deadline = self._clock() + self._timeout_s
                while self._sent and not self._reported and self._clock() < deadline:
                    self._producer.poll(0.05)
                self._patiently(lambda: self._producer.abort_transaction(self._timeout_s))
        finally:
            self._producer = None

    def _begin(self) -> None:
        if not self._begun:
            self._producer.begin_transaction()
            self._begun, self._sent, self._reported, self._refused = True, False, False, None

    def _report(self, turn: int, error: ClientError | None, _: object) -> None:
        if turn != self._turn:
            return  # of a producer that was left behind
        self._reported = True
        if error is not None and error.code() not in _PURGED:
            self._refused = self._refused or error

    def _patiently(self, call: Callable[[], object]) -> None:
        """Repeat a call that may be repeated, within the time-out. One that timed out may not: it may have happened."""
        deadline = self._clock() + self._timeout_s
        while True:
            try:
                self._answered(call)
            except KafkaException as error:
                cause = error.args[0]
                again = cause.retriable() and cause.code() != ClientError._TIMED_OUT and self._clock() < deadline
                if not again or self._stopped.is_set():
                    raise
                self._pause(BACKOFF_S[0])
            else:
                return

    def _answered(self, call: Callable[[], object]) -> None:
        """A call of the client; one that hangs is left behind, and raises as one that timed out. Raises `KafkaError`
        when too many have."""
        try:
            self._watch(call, self._timeout_s + HUNG_MORE_S)
        except TimeoutError as error:
            self._hung += 1
            self._note("hung")
            if self._hung > HUNG_MAX:
                raise KafkaError(
                    f"the Kafka client did not return from {self._hung} calls (librdkafka#5456): start this role again"
                ) from error
            told = "the client did not return: its producer is left behind (librdkafka#5456)"
            raise KafkaException(ClientError(ClientError._TIMED_OUT, told)) from error

    def _renew(self, error: ClientError) -> None:
        """Destroy the producer and start another. What the old one had open is over when this returns."""
        self.last_error = error.str()
        _log.info("transactional producer renewed after: %s", error.str())
        now = self._clock()
        if error.code() in FENCED or error.fatal():
            if len(self._renewals) == RENEWALS_MAX and now - self._renewals[0] < RENEWALS_WITHIN_S:
                raise KafkaError(
                    f"another process keeps taking our transactional id ({error.str()}): give each its own"
                    " worker.slot or profiles.slot"
                ) from KafkaException(error)
            self._renewals.append(now)
        old, self._producer = self._producer, None
        self._turn += 1
        old.purge()
        del old
        self._producer = self._connected()
        self._begun = False

    def _connected(self) -> Any:
        wait_s = BACKOFF_S[0]
        while True:
            producer = self._connect()
            try:
                self._answered(partial(producer.init_transactions, self._timeout_s))
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
        if self._committed is None:
            return False
        found = self._committed(offsets.keys())
        return all(found.get(partition, -1) >= offset for partition, offset in offsets.items())
