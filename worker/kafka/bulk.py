"""Many records that somebody waits for: all written, or said how many were and why no more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException, Producer

from schemas.dead import Headers
from worker.config import KafkaConfig
from worker.errors import KafkaError
from worker.kafka.clients import producer_config, translate
from worker.kafka.single import FLUSH_MORE_S
from worker.kafka.sink import ANY_PARTITION

POLL_S: Final = 0.2
"""One wait for delivery reports; it ends early when some come."""


class BulkProducer:
    """Records to one topic: `write` each, then `finish`. ``queued`` were taken, ``acknowledged`` are safe.

    Whatever waits raises `KafkaError` as soon as the client tells that a record could not be delivered, and again
    every time after; how far it came is in the text. Of the records not acknowledged some may be there all the same.
    For one thread.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        topic: str,
        *,
        doing: str,
        advice: str,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``topic`` is the cluster's name; ``doing`` as for `translate`; ``advice`` ends every error: what to do then.

        A record that is not acknowledged within ``timeout_s`` has failed. ``clock`` is in seconds.
        """
        self._topic, self._doing, self._advice, self._clock = topic, doing, advice, clock
        # The client tells of its time-out by itself; what it has not told of by then it is not going to.
        self._patience_s = timeout_s + FLUSH_MORE_S
        self._failure: confluent_kafka.KafkaError | None = None
        self.queued = self.acknowledged = 0
        self._producer = Producer(producer_config(kafka, message_timeout_ms=int(timeout_s * 1000)))

    def write(
        self, value: bytes | None, key: bytes | None, *, partition: int = ANY_PARTITION, headers: Headers | None = None
    ) -> None:
        """Queue a record. While the client's queue is full this waits, at most for the records' time-out and a bit."""
        deadline_s: float | None = None
        while True:
            try:
                self._producer.produce(self._topic, value, key, partition, self._delivered, headers=headers)
                break
            except BufferError:
                if deadline_s is None:
                    deadline_s = self._clock() + self._patience_s
                self._wait(deadline_s)
            except KafkaException as error:
                raise self._failed(error) from error
        self.queued += 1
        self._serve(0)

    def wait_until(self, moment_s: float) -> None:
        """Serve the client until the clock says ``moment_s``."""
        while (left_s := moment_s - self._clock()) > 0:
            self._serve(min(left_s, POLL_S))

    def finish(self) -> None:
        """Return once all that was written is acknowledged; more may be written then.

        Raises `KafkaError` also when Kafka has not answered for all after the records' time-out and a bit.
        """
        deadline_s = self._clock() + self._patience_s
        while self.acknowledged < self.queued:
            self._wait(deadline_s)

    def _wait(self, deadline_s: float) -> None:
        if self._clock() > deadline_s:
            raise KafkaError(
                f"Kafka does not answer while {self._doing}: {self.queued - self.acknowledged} of {self.queued} records"
                f" are not acknowledged after {self._patience_s:.0f} s. Check the brokers. {self._advice}"
            )
        self._serve(POLL_S)

    def _serve(self, timeout_s: float) -> None:
        self._producer.poll(timeout_s)
        if self._failure is not None:
            raise self._failed(self._failure) from KafkaException(self._failure)

    def _delivered(self, error: confluent_kafka.KafkaError | None, _message: Any) -> None:
        if error is None:
            self.acknowledged += 1
        elif self._failure is None:
            self._failure = error

    def _failed(self, error: KafkaException | confluent_kafka.KafkaError) -> KafkaError:
        ours = translate(error, doing=self._doing)
        return type(ours)(f"{ours}; {self.acknowledged} of {self.queued} records were acknowledged. {self._advice}")
