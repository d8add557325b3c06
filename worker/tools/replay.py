"""Replay a file into an input topic: JSON Lines, gzipped or not, paced or as fast as the broker takes it.

The file is read twice: first every line is checked, so that a bad line in the middle of a file is told before
anything is sent; then it is sent. With ``skip_bad`` bad lines are counted and left out instead.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import confluent_kafka
import msgspec

from schemas.topics import INPUTS
from worker.config import KafkaConfig
from worker.errors import InputError, KafkaError
from worker.kafka.admin import partition_counts
from worker.kafka.clients import producer_config, translate
from worker.tools.mapping import PRESET_OF, EventMapping

DELIVERY_TIMEOUT_S: Final = 60.0
"""How long a record may wait for the broker before the replay gives up and says how far it came."""
_POLL_EVERY = 500
Keyed = tuple[str, bytes]


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did: ``events`` were acknowledged by the broker, ``skipped`` lines were bad."""

    topic: str
    events: int
    skipped: int
    seconds: float
    events_per_second: float


class Replay:
    """One file, one topic. ``check`` reads and judges the lines; ``send`` sends them."""

    def __init__(
        self,
        kafka: KafkaConfig,
        file: Path,
        topic: str,
        *,
        preset: str = "auto",
        rules: tuple[str, ...] = (),
        constants: tuple[str, ...] = (),
        start_time_ms: int | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
    ) -> None:
        """``topic`` is a name of the contract or of the cluster. Raises `InputError`."""
        contract = kafka.contract_topic(topic)
        if contract not in INPUTS:
            raise InputError(f"--topic {topic}: events go to {', '.join(INPUTS)}")
        self._kafka, self._file, self._topic = kafka, file, kafka.topic(contract)
        self._start_time_ms, self._limit, self._skip_bad = start_time_ms, limit, skip_bad
        if preset == "auto":
            preset = "none" if self._first_row_is_event() else PRESET_OF[contract]
        self._mapping = EventMapping(contract, preset=preset, rules=rules, constants=constants)

    def check(self) -> tuple[int, int]:
        """How many lines are events and how many are bad. Raises `InputError` at a bad one unless they are skipped."""
        events = bad = 0
        for event in self._events():
            events += event is not None
            bad += event is None
        if not events:
            raise InputError(f"{self._file}: no events in it ({bad} bad lines)")
        return events, bad

    def send(self, *, rate: float | None = None, progress: Callable[[int], None] = lambda sent: None) -> ReplayReport:
        """Send every event, ``rate`` a second or as fast as possible; returns when all are acknowledged."""
        partition_counts(self._kafka, [self._topic])  # a missing topic or broker is told now, not after a time-out
        sender = _Sender(self._kafka, self._topic)
        began = time.monotonic()
        skipped = 0
        for event in self._events():
            if event is None:
                skipped += 1
                continue
            if rate:
                sender.wait_until(began + sender.sent / rate)
            sender.send(*event)
            if sender.sent % _POLL_EVERY == 0 or rate:
                progress(sender.sent)
        sender.finish()
        progress(sender.sent)
        seconds = time.monotonic() - began
        return ReplayReport(
            topic=self._topic,
            events=sender.acknowledged,
            skipped=skipped,
            seconds=round(seconds, 3),
            events_per_second=round(sender.acknowledged / max(seconds, 1e-9), 1),
        )

    def _first_row_is_event(self) -> bool:
        for _, row in _rows(self._file):
            return isinstance(row, dict) and "event_id" in row and "event_time_ms" in row
        return False

    def _events(self) -> Iterator[Keyed | None]:
        """Key and bytes of every line's event, up to the limit; None for a line that is bad and skipped."""
        stem = self._file.name.split(".jsonl")[0]
        taken = 0
        for n, row in _rows(self._file):
            if self._limit is not None and taken >= self._limit:
                return
            try:
                if not isinstance(row, dict):
                    raise row if isinstance(row, ValueError) else ValueError("not a JSON object")
                yield self._mapping.event(row, file=stem, n=n, now_ms=self._now_ms())
                taken += 1
            except ValueError as error:
                if not self._skip_bad:
                    raise InputError(
                        f"{self._file}:{n}: {error}. Nothing was sent; --map and --set-field fill what is missing,"
                        " --skip-bad leaves such lines out"
                    ) from error
                yield None

    def _now_ms(self) -> int:
        return self._start_time_ms if self._start_time_ms is not None else time.time_ns() // 1_000_000


class _Sender:
    """A producer whose failures are ours, and whose waits are bounded by the delivery time-out."""

    def __init__(self, kafka: KafkaConfig, topic: str) -> None:
        self._topic = topic
        self._failure: confluent_kafka.KafkaError | None = None
        self.sent = self.acknowledged = 0
        self._producer = confluent_kafka.Producer(
            producer_config(kafka, message_timeout_ms=int(DELIVERY_TIMEOUT_S * 1000))
        )

    def send(self, key: str, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key.encode(), on_delivery=self._delivered)
                break
            except BufferError:
                self._poll(1.0)
            except confluent_kafka.KafkaException as error:
                raise translate(error, doing=f"replaying to {self._topic}") from error
        self.sent += 1
        if self.sent % _POLL_EVERY == 0:
            self._poll(0)

    def wait_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            self._poll(min(left, 1.0))

    def finish(self) -> None:
        deadline = time.monotonic() + DELIVERY_TIMEOUT_S + 10
        while len(self._producer):
            self._poll(0.2)
            if time.monotonic() > deadline:
                raise KafkaError(
                    f"{len(self._producer)} of {self.sent} events not acknowledged; is the broker healthy?"
                )

    def _poll(self, timeout_s: float) -> None:
        self._producer.poll(timeout_s)
        if self._failure is not None:
            failure = translate(self._failure, doing=f"replaying to {self._topic}")
            raise type(failure)(f"{failure}; {self.acknowledged} events had been acknowledged")

    def _delivered(self, error: confluent_kafka.KafkaError | None, message: Any) -> None:
        if error is None:
            self.acknowledged += 1
        elif self._failure is None:
            self._failure = error


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Line number (from 1) and row of every line that is not blank; a ValueError in place of a row that is no JSON."""
    try:
        with file.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if zipped else raw as lines:
                for n, line in enumerate(lines, 1):
                    if line.strip():
                        yield n, _parsed(line)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


def _parsed(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return ValueError(f"not JSON: {error}")


def report_json(report: ReplayReport) -> str:
    """The report as one JSON line."""
    return json.dumps(msgspec.to_builtins(report))
