"""Records to units: decode, find each text's slot, tokenise the new ones together, sort out what is empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, cast

from model.scoring import Prepared, Scorer
from schemas.dead import DeadLetter
from schemas.events import ClickEvent, Event, ReviewEvent, ServiceEvent
from worker.config import Lane
from worker.kafka.dead import dead_letter, first_written_ms
from worker.kafka.ledger import OffsetLedger, Ticket
from worker.kafka.records import Record
from worker.privacy.erasures import NOBODY, Erasures
from worker.scoring.batcher import Unit
from worker.scoring.cache import Slot, VectorCache
from worker.scoring.decode import BACKFILL, Decoder
from worker.scoring.emit import Outcome

BYTES_PER_LOAD: Final = 64
"""Unfinished work is bounded in tokens; an event's bytes count too, so that long texts cannot fill the memory."""


class Intake:
    """Turns what a poll brought into units for the batcher and dead letters.

    ``lanes`` maps topics to lanes; those of ``backfill`` wait in a lane of their own, whatever they carry. A lane is a
    matter of the topic, never of the event: output leaves in source order, so an urgent event behind a backfilled one
    in the same partition would wait for it.
    What people who asked to be forgotten did before their cut-off comes out as nothing at all, and so does what a
    topic's own rules pass over: it is finished at once.
    """

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        scorer: Scorer,
        cache: VectorCache,
        erasures: Erasures = NOBODY,
        count_forgotten: Callable[[], None] = lambda: None,
        backfill: Collection[str] = (),
        decoder: Decoder | None = None,
        count_passed_over: Callable[[str], None] = lambda topic: None,
    ) -> None:
        self._lanes = lanes
        self._waits_in: dict[str, str] = {topic: BACKFILL if topic in backfill else lanes[topic] for topic in lanes}
        self._decoder = decoder or Decoder(lanes)
        self._decode = self._decoder.decode
        self._count_passed_over = count_passed_over
        self._prepare = scorer.prepare
        self._cache = cache
        self._erasures, self._count_forgotten = erasures, count_forgotten
        self._empty_tokens = scorer.prepare([""])[0].tokens

    def admit(
        self, records: Sequence[Record], ledger: OffsetLedger[Outcome], now_s: float, now_ms: int
    ) -> tuple[list[Unit], list[tuple[Ticket[Outcome], DeadLetter]]]:
        """Begin every record that is ours; each comes out as a unit or as a dead letter."""
        units: list[Unit] = []
        letters: list[tuple[Ticket[Outcome], DeadLetter]] = []
        fresh: list[Slot] = []
        for record in records:
            lane = self._lanes[record.topic]
            where = self._waits_in[record.topic]
            ticket = ledger.begin((record.topic, record.partition), record.offset, where, now_s)
            if ticket is None:
                continue
            event = self._decode(record, now_ms)
            if event is None:
                self._count_passed_over(record.topic)
                ledger.finish(ticket, Outcome([], []))
                continue
            if self._erasures and self._forgotten(event, record):
                self._count_forgotten()
                ledger.finish(ticket, Outcome([], []))
                continue
            if type(event) is DeadLetter:
                letters.append((ticket, event))
                continue
            before = len(fresh)
            texts = self._texts(cast("Event", event), fresh)
            # Until the texts are tokenised, `tokens` holds how many of them this unit is the first to bring.
            units.append(Unit(lane, cast("Event", event), record, ticket, texts, len(fresh) - before, now_s))
        if fresh:
            units = self._tokenise(fresh, units, letters)
        self._charge(ledger, units, letters)
        return units, letters

    def count(self, records: Sequence[Record]) -> dict[str, int]:
        """Records by the contract's topic name."""
        return Counter(f"events.{self._lanes[record.topic]}" for record in records)

    def keep(self, encoded: Sequence[Slot], spoilt: Sequence[Slot]) -> None:
        """Texts that are now encoded: the next events with them need no encoder. Those spoilt are forgotten, even where
        their own event needed nothing of what is no number."""
        self._cache.fill(encoded)
        self._cache.discard(spoilt)

    def cache_counts(self) -> tuple[int, int]:
        """Hits and misses of the vector cache since the last call."""
        counts = self._cache.hits, self._cache.misses
        self._cache.hits = self._cache.misses = 0
        return counts

    def forget(self, units: Sequence[Unit]) -> None:
        """Units that will not be scored: their texts wait for nothing."""
        self._cache.discard(slot for unit in units for slot in unit.texts if slot is not None)

    def _forgotten(self, event: Event | DeadLetter, record: Record) -> bool:
        if not isinstance(event, DeadLetter):
            return self._erasures.cover(event.user_id, event.event_time_ms)
        # It is from when it says, but not from later than when it was written.
        people, _, told_ms = self._decoder.told(record)
        times = (told_ms, first_written_ms(record))
        known = [time_ms for time_ms in times if time_ms is not None]
        return bool(known) and any(self._erasures.cover(user_id, min(known)) for user_id in people)

    def _texts(self, event: Event, fresh: list[Slot]) -> list[Slot | None]:
        if type(event) is ClickEvent:
            texts = [self._slot(event.title, fresh), self._slot(event.query, fresh)]
            texts += [self._slot(candidate.title, fresh) for candidate in event.candidates]
            return texts
        if type(event) is ReviewEvent and event.title:
            return [self._slot(f"{event.title} {event.text}", fresh)]  # as in training
        return [self._slot(cast("ServiceEvent", event).text, fresh)]

    def _slot(self, text: str, fresh: list[Slot]) -> Slot | None:
        if not text:
            return None
        slot, new = self._cache.slot(text)
        if new:
            fresh.append(slot)
        return slot

    def _tokenise(
        self, fresh: list[Slot], units: list[Unit], letters: list[tuple[Ticket[Outcome], DeadLetter]]
    ) -> list[Unit]:
        empty: list[Slot] = []
        for slot, prepared in zip(fresh, self._prepare([slot.text for slot in fresh]), strict=True):
            slot.prepared, slot.due = prepared, prepared.tokens
            if prepared.tokens <= self._empty_tokens:
                empty.append(slot)
        new = iter(fresh)
        for unit in units:
            unit.tokens = sum(cast("Prepared", next(new).prepared).tokens for _ in range(unit.tokens))
        if not empty:
            return units
        self._cache.discard(empty)
        return self._without_empty(set(map(id, empty)), units, letters)

    def _without_empty(
        self, empty: set[int], units: list[Unit], letters: list[tuple[Ticket[Outcome], DeadLetter]]
    ) -> list[Unit]:
        kept: list[Unit] = []
        for unit in units:
            if unit.lane != "click" and id(unit.texts[0]) in empty:
                detail = "nothing is left of the text after normalisation - at `$.text`"
                letters.append((unit.ticket, dead_letter(unit.record, "decode", "empty_text", detail)))
                continue
            unit.texts = [None if id(slot) in empty else slot for slot in unit.texts]
            kept.append(unit)
        return kept

    @staticmethod
    def _charge(
        ledger: OffsetLedger[Outcome],
        units: Sequence[Unit],
        letters: Sequence[tuple[Ticket[Outcome], DeadLetter]],
    ) -> None:
        for unit in units:
            ledger.charge(unit.ticket, 1 + max(unit.tokens, len(unit.record.value or b"") // BYTES_PER_LOAD))
        for ticket, letter in letters:
            ledger.charge(ticket, 1 + len(letter.value or b"") // BYTES_PER_LOAD)
