"""Who is to be forgotten, and up to when. Pure; `worker.privacy.erasure_feed` fills it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

MAX_ERASURES: Final = 1_000_000
"""About 200 MB. Beyond it `Erasures.add` refuses: a person must never be remembered because there was no room."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One person's erasure and its offset in the topic."""

    cutoff_ms: int
    offset: int


class Erasures:
    """Users to be forgotten, by id. False while there are none."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, user_id: str, cutoff_ms: int, offset: int) -> None:
        """Note an erasure; the later cut-off of a user holds. Raises OverflowError for more users than the bound."""
        known = self._entries.get(user_id)
        if known is None and len(self._entries) >= MAX_ERASURES:
            raise OverflowError(f"more than {MAX_ERASURES} erasures")
        self._entries[user_id] = Entry(cutoff_ms if known is None else max(cutoff_ms, known.cutoff_ms), offset)

    def remove(self, user_id: str) -> None:
        """Take an erasure back: its record was deleted, for nothing from before its cut-off exists any more."""
        self._entries.pop(user_id, None)

    def cover(self, user_id: str | None, time_ms: int) -> bool:
        """Whether what this user did at ``time_ms`` is to be forgotten."""
        entry = None if user_id is None else self._entries.get(user_id)
        return entry is not None and time_ms <= entry.cutoff_ms

    def any_of(self, user_ids: Iterable[str]) -> bool:
        """Whether any of these users is to be forgotten up to some moment."""
        return bool(self._entries) and not self._entries.keys().isdisjoint(user_ids)

    def after(self, offset: int) -> dict[str, int]:
        """Offsets of the erasures that stand after an offset, by user."""
        return {user_id: entry.offset for user_id, entry in self._entries.items() if entry.offset > offset}


NOBODY: Final = Erasures()
"""Where there is no topic of erasures. Nobody adds to it."""
