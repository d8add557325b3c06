"""The scoring worker: source > intake > batcher > device (states, encoder, heads) > emit > ledger > sink > commit.

`Engine.step` is the picture of the design read top to bottom. Its edges (source, sink, device, clock) are
arguments, so that tests and simulations drive the same code; `worker.scoring.pipeline` builds the real ones.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from worker.config import WorkerConfig
from worker.kafka.dead import dead_message
from worker.kafka.ledger import OffsetLedger
from worker.kafka.records import Offsets, OutMessage, Partition
from worker.kafka.sink import Sink
from worker.kafka.source import Polled, Source
from worker.metrics import WorkerMetrics
from worker.scoring.batcher import Batcher
from worker.scoring.decode import BACKFILL, LANES
from worker.scoring.device import Device
from worker.scoring.emit import Emitter, FoldBuffer, Outcome
from worker.scoring.intake import Intake
from worker.scoring.regulator import Regulator, Spells
from worker.scoring.results import Failure, Scored
from worker.scoring.vitals import Vitals

IDLE_WAIT_S: Final = 0.05
"""How long an idle loop waits for a record before it looks at the clock again."""
BUSY_WAIT_S: Final = 0.002
"""The same while something is on the device or on its way out."""
POLL_EVERY_S: Final = 0.02
"""With enough waiting for the device the source is asked no more often than this: reading more would only pile up."""
LEAD_S: Final = 0.005
"""How long before the device is free the next batch leaves, so that its states are there in time."""
MEASURE_EVERY_S: Final = 0.1
"""How often the gauges are set, whatever else the loop waits for: they are looked at when it does."""
LAG_EVERY_S: Final = 1.0
"""The same for the lag, which costs two calls into the client for each partition."""

_log = logging.getLogger(__name__)


class Engine:
    """One worker's loop. Call `step` until told to stop, then `finish`."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        device: Device,
        intake: Intake,
        batcher: Batcher,
        emitter: Emitter,
        folds: FoldBuffer,
        regulator: Regulator,
        config: WorkerConfig,
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._source, self._sink, self._device = source, sink, device
        self._intake, self._batcher, self._emitter, self._folds = intake, batcher, emitter, folds
        self._regulator = regulator
        self._config, self._metrics, self._clock, self._wall_ms = config, metrics, clock, wall_ms
        self._ledger: OffsetLedger[Outcome] = OffsetLedger()
        self._latency: dict[str, Callable[[float], None]] = {
            lane: metrics.latency_seconds.labels(lane).observe for lane in (*LANES.values(), BACKFILL)
        }
        self._free_at_s = self._seal_at_s = self._polled_at_s = self._measure_at_s = self._lag_at_s = clock()
        self._vitals = Vitals(clock())
        metrics.oldest_unfinished_seconds.set_function(lambda: self._vitals.oldest_s(clock()))
        self._more = self._recommit = self._commits_fail = False
        self._paused: frozenset[str] = frozenset()
        self._spells = Spells()
        self._withdrawn = False
        self._rewinding: set[Partition] = set()  # held, but not read until the sink has taken back what it had of them

    def step(self) -> None:
        """One turn: finish what the device has done, read what there is, start what is due, write, commit."""
        wait_s = self._wait_s()
        busy = self._device.in_flight > 0
        self._score(self._device.collect(wait_s if busy else 0.0))
        if self._withdrawn:
            self._rewind()
        self._read(0.0 if busy else wait_s)
        self._submit()
        self._write()
        self._commit()
        self._regulate()
        self._look()

    def finish(self) -> None:
        """Score what is queued, write and commit it, all within the drain time; what is left is read again."""
        now = self._clock()
        drain_s = self._config.drain_timeout_ms / 1000
        self._source.pause()
        while (len(self._batcher) or self._device.in_flight) and self._clock() < now + 0.75 * drain_s:
            self._submit(drain=True)
            self._score(self._device.collect(BUSY_WAIT_S))
            self._write()
            self._commit(BUSY_WAIT_S if self._sink.full else 0.0)
            self._look()
        self._settle(self._ledger.partitions, now + drain_s)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether the loop turns and events get finished. Safe from any thread."""
        return self._vitals.health(self._clock())

    def _wait_s(self) -> float:
        if self._more:
            return 0.0
        at_work = self._device.in_flight or len(self._batcher) or self._vitals.oldest_arrived_s is not None
        return BUSY_WAIT_S if at_work else IDLE_WAIT_S

    def _read(self, wait_s: float) -> None:
        now = self._clock()
        batch_units = self._batcher.batch_units
        if self._batcher.live >= 2 * batch_units and now - self._polled_at_s < POLL_EVERY_S:
            self._more = False
            return
        count = min(self._config.poll_records, batch_units)
        polled = self._source.poll(count, wait_s, self._hand_over)
        self._polled_at_s = now = self._clock()
        self._more = len(polled.records) > 0
        self._answered(polled)
        if polled.lost:
            self._lose(polled)
        self._ledger.assign(polled.assigned)
        if polled.records:
            for topic, count in self._intake.count(polled.records).items():
                self._metrics.events.labels(topic).inc(count)
            units, letters = self._intake.admit(polled.records, self._ledger, now, self._wall_ms())
            for unit in units:
                self._batcher.add(unit)
            for ticket, letter in letters:
                self._ledger.finish(ticket, Outcome([dead_message(letter)], [], letter.reason))

    def _lose(self, polled: Polled) -> None:
        """Partitions are gone. Where their output is in an open transaction all of that is taken back, and what we
        still hold is read again from where it is committed."""
        self._rewinding.difference_update(polled.lost)
        if self._ledger.unsettled(polled.lost) and self._sink.abandon():
            self._rewinding.update(self._ledger.partitions)
            self._rewinding.difference_update(polled.lost)
            self._drop(self._ledger.partitions)
            self._folds.clear()
        else:
            self._drop(polled.lost)

    def _drop(self, partitions: list[Partition]) -> None:
        self._intake.forget(self._batcher.drop(set(partitions)))
        self._ledger.revoke(partitions)

    def _rewind(self) -> None:
        partitions, self._rewinding, self._withdrawn = sorted(self._rewinding), set(), False
        _log.info("%d partitions are read again from where they are committed", len(partitions))
        self._source.rewind(partitions)
        self._ledger.assign(partitions)

    def _submit(self, drain: bool = False) -> None:
        while self._device.has_room and not self._sink.full:
            now = self._clock()
            batch = self._batcher.take(now, self._free_at_s, LEAD_S, drain)
            if batch is None:
                return
            self._device.submit(batch)
            self._free_at_s = max(self._free_at_s, now) + self._batcher.cost.seconds(batch.tokens)
            self._metrics.batches.labels(batch.reason).inc()
            self._metrics.batch_tokens.observe(batch.tokens)

    def _score(self, done: list[Scored]) -> None:
        for scored in done:
            self._intake.keep(scored.encoded, scored.spoilt)
            now_ms = self._wall_ms()
            units, results = scored.batch.units, scored.results
            for unit, result, outcome in zip(units, results, self._emitter.emit(units, results, now_ms), strict=True):
                self._ledger.finish(unit.ticket, outcome)
                if type(result) is Failure:
                    self._intake.forget([unit])
            self._batcher.learn(scored.batch.tokens, scored.total_s, scored.out_of_memory)
            self._metrics.encode_seconds.observe(scored.total_s)
            self._metrics.encoder_busy_seconds.inc(scored.encode_s)
        if done and not self._device.in_flight:
            self._free_at_s = self._clock()

    def _write(self) -> None:
        released = self._ledger.release()
        if not released:
            return
        messages: list[OutMessage] = []
        for ticket in released:
            outcome = ticket.outcome
            if outcome is None:
                raise AssertionError("the ledger released an unfinished ticket")
            messages += outcome.messages
            self._folds.add(outcome.folds)
            if outcome.reason is not None:
                self._metrics.dead_letters.labels(outcome.reason).inc()
            ticket.outcome = None
        self._put(messages)

    def _put(self, messages: list[OutMessage]) -> None:
        self._sink.write(messages)
        for topic, count in Counter(message.topic for message in messages).items():
            self._metrics.outputs.labels(topic).inc(count)

    def _commit(self, wait_s: float = 0.0) -> None:
        answered = self._take_answers(wait_s)
        now = self._clock()
        if now >= self._seal_at_s and self._sink.ready:
            self._seal_at_s = now + self._config.commit_interval_ms / 1000
            self._seal()
            recommit, self._recommit = self._recommit, False
        else:
            recommit = False
        if (answered or recommit) and (offsets := self._ledger.uncommitted()):
            self._source.commit(offsets)

    def _take_answers(self, wait_s: float) -> bool:
        """Take what the sink has to say; whether it said anything."""
        answers = self._sink.poll(wait_s)
        for answer in answers:
            self._ledger.acknowledge(answer.offsets)
            if answer.committed:
                self._committed(answer.offsets)
            self._withdrawn |= answer.withdrawn
        return bool(answers)

    def _seal(self) -> None:
        offsets = self._ledger.seal()
        if offsets:
            self._put(self._folds.blocks())
            self._sink.seal(offsets)

    def _answered(self, polled: Polled) -> None:
        for offsets, error in polled.commits:
            if error is None:
                self._commits_fail = False
                self._committed(offsets)
                continue
            self._recommit = True
            if not self._commits_fail:  # said once: during a rebalance every commit is refused until it is over
                _log.warning("commit refused, trying again at every interval: %s", error)
            self._commits_fail = True

    def _regulate(self) -> None:
        load, blocked = self._ledger.load, self._sink.full
        budget = self._batcher.budget_tokens
        paused = self._regulator.paused(
            self._batcher.loads, self._batcher.tokens, load, blocked, budget, self._batcher.cost.seconds(budget)
        )
        if self._paused - paused:
            self._source.resume(self._paused - paused)
        if paused:
            self._source.pause(paused)
        self._paused = paused
        began, over = self._spells.look(paused, self._clock())
        if began:
            _log.info("held back %s: %d tokens unfinished, blocked: %s", ", ".join(began), load, blocked)
        for spell in over:
            lasted_s = spell.paused_s - spell.began_s
            _log.info("%s flows again, after %d pauses in %.0f s", spell.topic, spell.pauses, lasted_s)

    def _hand_over(self, partitions: list[Partition]) -> None:
        """Called while polling: partitions move to another worker. What is still queued of them it reads again."""
        self._settle(partitions, self._clock() + self._config.drain_timeout_ms / 1000)

    def _settle(self, partitions: list[Partition], deadline_s: float) -> None:
        """Finish what is on the device, write it, await acknowledgement, commit these partitions: by the deadline."""
        while self._device.in_flight and self._clock() < deadline_s:
            self._score(self._device.collect(BUSY_WAIT_S))
        self._write()
        while not self._sink.ready and self._clock() < deadline_s:
            self._take_answers(BUSY_WAIT_S)
        if self._sink.ready and self._clock() < deadline_s:  # later nobody waits for the answer
            self._seal()
        while self._sink.sealed and self._clock() < deadline_s:
            self._take_answers(BUSY_WAIT_S)
        offsets = {p: offset for p, offset in self._ledger.uncommitted().items() if p in partitions}
        if self._source.commit_now(offsets):
            self._committed(offsets)

    def _committed(self, offsets: Offsets) -> None:
        now = self._clock()
        for ticket in self._ledger.committed(offsets):
            self._latency[ticket.lane](now - ticket.arrived_s)

    def _look(self) -> None:
        """Put down what other threads may ask for; now and then set the gauges."""
        now, ledger = self._clock(), self._ledger
        self._vitals = Vitals(
            now, ledger.oldest_s(), ledger.load, len(ledger.partitions), self._paused, self._sink.full
        )
        if now >= self._measure_at_s:
            self._measure_at_s = now + MEASURE_EVERY_S
            self._measure()
        if now >= self._lag_at_s:
            self._lag_at_s = now + LAG_EVERY_S
            for topic, records in self._source.lag().items():
                self._metrics.lag_records.labels(topic).set(records)

    def _measure(self) -> None:
        self._metrics.paused_partitions.set(sum(topic in self._paused for topic, _ in self._ledger.partitions))
        for lane, tokens in self._batcher.tokens.items():
            self._metrics.queue_tokens.labels(lane).set(tokens)
        hits, misses = self._intake.cache_counts()
        self._metrics.cache_hits.inc(hits)
        self._metrics.cache_misses.inc(misses)
