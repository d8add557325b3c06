"""What a batch of click events asks the click head, by column."""

from __future__ import annotations

from typing import Any, cast

from model.clicks.context import title_context
from schemas.events import ClickEvent
from worker.scoring.batcher import Unit
from worker.scoring.cache import Slot


class ClickRows:
    """The item of each event and each of its candidates, one row each; ``owner``: which event of the batch."""

    def __init__(self) -> None:
        self.owner: list[int] = []
        self.candidate: list[str | None] = []
        self.users: list[str | None] = []
        self.items: list[str | None] = []
        self.slots: list[Slot | None] = []
        self.times_ms: list[int] = []
        self.contexts: list[dict[str, float | str]] = []

    def add(self, n: int, unit: Unit) -> None:
        event = cast("ClickEvent", unit.event)
        if event.item_id is not None or unit.texts[0] is not None:
            self._row(n, event, None, event.item_id, unit.texts[0], event.context)
        for candidate, slot in zip(event.candidates, unit.texts[2:], strict=True):
            # What the event says of the moment (device, hour) holds for each candidate; its own context goes first.
            self._row(n, event, candidate.item_id, candidate.item_id, slot, {**event.context, **candidate.context})

    def _row(
        self, n: int, event: ClickEvent, candidate: str | None, item: str | None, slot: Slot | None, context: Any
    ) -> None:
        self.owner.append(n)
        self.candidate.append(candidate)
        self.users.append(event.user_id)
        self.items.append(item)
        self.slots.append(slot)
        self.times_ms.append(event.event_time_ms)
        # What the title says in so many words; what the event says itself goes before it.
        self.contexts.append(context if slot is None else title_context(slot.text) | context)
