"""Two stages beside the main loop: the next batch's states are read while the current one is on the encoder.

Each stage is a thread; batches in flight are bounded, so the queues between are too. Nothing is decided here.

A batch that is not back within the time-out hangs: a driver that stopped answering cannot be interrupted from
within, so the device is given up with a `DeviceError`, and with it the process.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from worker.errors import DeviceError
from worker.scoring.batcher import Batch
from worker.scoring.results import Fetched, Scored
from worker.scoring.score import BatchScorer

DEPTH: Final = 2
"""Batches in flight: one on the encoder, one made ready. More would only add to latency."""
LOOK_S: Final = 0.2
"""How often a stage that waits looks whether it should end."""


class Device(Protocol):
    """Batches in, results out, in order."""

    @property
    def in_flight(self) -> int:
        """Batches submitted and not collected."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another batch may be submitted."""
        ...

    def submit(self, batch: Batch) -> None:
        """Begin a batch. Only while `has_room`."""
        ...

    def collect(self, timeout_s: float) -> list[Scored]:
        """What is finished; waits at most this long for the first. Raises what a stage raised, and `DeviceError` when
        the oldest batch in flight has been waited for too long."""
        ...

    def close(self) -> None:
        """End the stages; what is in flight is dropped."""
        ...


class InlineDevice:
    """`Device` without threads: a batch is computed when it is collected. For simulations and tests."""

    def __init__(self, scorer: BatchScorer) -> None:
        self._scorer = scorer
        self._waiting: list[Batch] = []

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        return len(self._waiting) < DEPTH

    def submit(self, batch: Batch) -> None:
        self._waiting.append(batch)

    def collect(self, timeout_s: float) -> list[Scored]:
        batches, self._waiting = self._waiting, []
        return [self._scorer.compute(self._scorer.fetch(batch)) for batch in batches]

    def close(self) -> None:
        self._waiting.clear()


class ThreadedDevice:
    """`Device` on two threads."""

    def __init__(
        self, scorer: BatchScorer, timeout_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._waited_since_s = clock()
        # in_flight never exceeds DEPTH, so no put ever waits.
        self._batches: queue.Queue[Batch] = queue.Queue(DEPTH)
        self._fetched: queue.Queue[Fetched] = queue.Queue(DEPTH)
        self._scored: queue.Queue[Scored | BaseException] = queue.Queue(DEPTH)
        self._stop = threading.Event()
        self._in_flight = 0
        self._threads = [
            threading.Thread(target=self._fetch, args=(scorer.fetch,), name="fetch", daemon=True),
            threading.Thread(target=self._compute, args=(scorer.compute,), name="compute", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def has_room(self) -> bool:
        return self._in_flight < DEPTH

    def submit(self, batch: Batch) -> None:
        if not self._in_flight:
            self._waited_since_s = self._clock()
        self._in_flight += 1
        self._batches.put_nowait(batch)

    def collect(self, timeout_s: float) -> list[Scored]:
        done: list[Scored] = []
        try:
            while self._in_flight:
                result = (
                    self._scored.get(timeout=timeout_s) if timeout_s > 0 and not done else self._scored.get_nowait()
                )
                self._in_flight -= 1
                if isinstance(result, BaseException):
                    raise result
                done.append(result)
        except queue.Empty:
            pass
        if done:
            self._waited_since_s = self._clock()
        elif self._in_flight and (waited_s := self._clock() - self._waited_since_s) > self._timeout_s:
            raise DeviceError(
                f"the device has not answered for {waited_s:.0f} s (worker.device_timeout_ms): it hangs. This process"
                " ends, others take its partitions; if it happens again, restart the device or the machine"
            )
        return done

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10 * LOOK_S)

    def _fetch(self, fetch: Callable[[Batch], Fetched]) -> None:
        self._serve(self._batches, lambda batch: self._fetched.put(fetch(batch)))

    def _compute(self, compute: Callable[[Fetched], Scored]) -> None:
        self._serve(self._fetched, lambda fetched: self._scored.put(compute(fetched)))

    def _serve(self, inbox: queue.Queue[Any], handle: Callable[[Any], None]) -> None:
        while not self._stop.is_set():
            try:
                work = inbox.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            try:
                handle(work)
            except BaseException as error:  # noqa: BLE001 raised again in the main loop, by collect
                self._scored.put(error)
