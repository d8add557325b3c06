"""Replay a file into an input topic: JSON Lines, gzipped or not, paced or as fast as the broker takes it.

The file is read twice: first every line is checked, so that a bad line in the middle of a file is told before
anything is sent; then it is sent. With ``skip_bad`` bad lines are counted and left out instead.
"""

from __future__ import annotations

import codecs
import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.topics import INPUTS
from worker.config import KafkaConfig
from worker.errors import InputError
from worker.kafka.admin import partition_counts
from worker.kafka.bulk import BulkProducer
from worker.tools.mapping import PRESET_OF, EventMapping, OwnRows

DELIVERY_TIMEOUT_S: Final = 60.0
"""How long a record may wait for the broker before the replay gives up and says how far it came."""
MAX_NAMED: Final = 20
"""Names of fields in one message."""
_PROGRESS_EVERY: Final = 500
Keyed = tuple[str, bytes]


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did: ``events`` were acknowledged by the broker, ``skipped`` lines were bad or passed over."""

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
        """``topic`` is a name of the contract or of the cluster, added ones too. Raises `InputError`."""
        name, contract = kafka.resolved(topic)
        if contract not in INPUTS:
            raise InputError(f"--topic {topic}: events go to {', '.join((*INPUTS, *kafka.added_topics))}")
        self._kafka, self._file, self._topic = kafka, file, name
        self._limit, self._skip_bad = limit, skip_bad
        self._mapping: EventMapping | OwnRows
        if self._topic in kafka.fields:
            if rules or constants or start_time_ms is not None or preset != "auto":
                raise InputError(
                    f"--topic {topic}: its rows are read by kafka.fields and sent as they are; --map, --set-field,"
                    " --start-time and --preset are for other topics"
                )
            self._mapping = OwnRows(kafka, self._topic)
            return
        if preset == "auto":
            preset = "none" if self._first_row_is_event() else PRESET_OF[contract]
        self._mapping = EventMapping(
            contract, preset=preset, rules=rules, constants=constants, start_time_ms=start_time_ms
        )

    def check(self) -> tuple[int, int]:
        """How many lines are events and how many are bad or passed over.

        Raises `InputError` at a bad one unless they are skipped, and for a rule whose source no row has.
        """
        events = bad = 0
        for event in self._events():
            events += event is not None
            bad += event is None
        for rule, name in self._mapping.unmet:
            rows = f"none of the first {self._limit} rows" if events == self._limit else "no row"
            raise InputError(f"--map {rule}: {rows} of {self._file} has {name}{self._spare()}")
        if not events:
            raise InputError(f"{self._file}: no events in it ({bad} bad lines)")
        return events, bad

    @property
    def unused(self) -> list[str]:
        """Fields of the rows so far that nothing reads."""
        return self._mapping.unused

    def send(self, *, rate: float | None = None, progress: Callable[[int], None] = lambda sent: None) -> ReplayReport:
        """Send every event, ``rate`` a second or as fast as possible; returns when all are acknowledged.

        Raises `KafkaError`, and `InputError` at a bad line unless they are skipped.
        """
        partition_counts(self._kafka, [self._topic])  # a missing topic or broker is told now, not after a time-out
        producer = BulkProducer(
            self._kafka,
            self._topic,
            doing=f"replaying to {self._topic}",
            advice="Replay the file again: events that were acknowledged are then there twice",
            timeout_s=DELIVERY_TIMEOUT_S,
        )
        began = time.monotonic()
        skipped = 0
        for event in self._events():
            if event is None:
                skipped += 1
                continue
            if rate:
                producer.wait_until(began + producer.queued / rate)
            key, value = event
            producer.write(value, key.encode())
            if producer.queued % _PROGRESS_EVERY == 0 or rate:
                progress(producer.queued)
        producer.finish()
        progress(producer.queued)
        seconds = time.monotonic() - began
        return ReplayReport(
            topic=self._topic,
            events=producer.acknowledged,
            skipped=skipped,
            seconds=round(seconds, 3),
            events_per_second=round(producer.acknowledged / max(seconds, 1e-9), 1),
        )

    def _first_row_is_event(self) -> bool:
        for _, row in _rows(self._file):
            return isinstance(row, dict) and "event_id" in row and "event_time_ms" in row
        return False

    def _events(self) -> Iterator[Keyed | None]:
        """Key and bytes of every line's event, up to the limit; None for a line that is skipped or passed over."""
        stem = self._file.name.split(".jsonl")[0]
        taken = 0
        for n, row in _rows(self._file):
            if self._limit is not None and taken >= self._limit:
                return
            try:
                if not isinstance(row, dict):
                    raise row if isinstance(row, ValueError) else ValueError("not a JSON object")
                event = self._mapping.event(row, file=stem, n=n, now_ms=time.time_ns() // 1_000_000)
            except ValueError as error:
                if not self._skip_bad:
                    raise InputError(
                        f"{self._file}:{n}: {error}{self._spare()}. Nothing was sent; --map and --set-field fill what"
                        " is missing, --skip-bad leaves such lines out"
                    ) from error
                event = None
            yield event
            taken += event is not None

    def _spare(self) -> str:
        """What may have been meant, where something is missing."""
        return f"; nothing reads {named(self.unused)}" if self.unused else ""


def named(fields: list[str]) -> str:
    """A list of names, cut where it gets long."""
    more = len(fields) - MAX_NAMED
    return ", ".join(fields[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Line number (from 1) and row of every line that is not blank; a ValueError in place of a row that is no JSON."""
    try:
        with file.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if zipped else raw as lines:
                for n, line in enumerate(lines, 1):
                    text = line.removeprefix(codecs.BOM_UTF8) if n == 1 else line
                    if text.strip():
                        yield n, _parsed(text, n)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


def _parsed(line: bytes, n: int) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if n == 1 and not line.lstrip().startswith(b"{"):
            return ValueError("not JSON Lines (is it CSV?)")
        return ValueError(f"not JSON: {error}")


def report_json(report: ReplayReport) -> str:
    """The report as one JSON line."""
    return json.dumps(msgspec.to_builtins(report))
