"""One sink at work: its outbox, its sender, and the task that empties the one through the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from worker.metrics import NotifyMetrics
from worker.notify.notice import Notice
from worker.notify.outbox import Entry, Outbox, Settled
from worker.notify.senders import Sender

_log = structlog.get_logger(__name__)


class Lane:
    """One sink. ``settled`` is for the owner to take; ``wake`` is to be set after a `put` and when it is to stop."""

    def __init__(
        self, name: str, outbox: Outbox, sender: Sender, silenced: Callable[[Notice], bool], metrics: NotifyMetrics
    ) -> None:
        """``silenced``: whether nobody is to be told of this any more, asked before every attempt."""
        self.name, self.outbox = name, outbox
        self.wake = asyncio.Event()
        self.settled: list[Settled] = []
        self._sender, self._silenced, self._metrics = sender, silenced, metrics
        self.stopping = False

    async def pump(self) -> None:
        """Deliver, one after the other, until told to stop."""
        while not self.stopping:
            self.wake.clear()
            entry = self.outbox.take(time.monotonic())
            if entry is not None and self._silenced(entry.notice):
                self.settled.append(self.outbox.withdraw())
                continue
            if entry is not None:
                await self._attempt(entry)
                continue
            wait_s = self.outbox.wait_s(time.monotonic())
            try:
                await asyncio.wait_for(self.wake.wait(), wait_s)
            except TimeoutError:
                continue

    async def _attempt(self, entry: Entry) -> None:
        began = time.monotonic()
        verdict = await self._sender.send(entry.notice)
        now = time.monotonic()
        self._metrics.attempt_seconds.labels(self.name).observe(now - began)
        self._metrics.attempts.labels(self.name, verdict.outcome).inc()
        if verdict.outcome == "retry":
            _log.warning("sink did not take an alert", sink=self.name, attempt=entry.attempts, detail=verdict.detail)
        self.settled += self.outbox.answer(verdict, now)

    async def close(self) -> None:
        """Let go of the sender's connections."""
        await self._sender.close()
