"""Who is to be forgotten, and up to when. Pure; `worker.privacy.erasure_feed` fills it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from schemas.shards import shard_of

MAX_ERASURES: Final = 1_000_000
"""About 200 MB, in profiles 280. Beyond it `Erasures.add` refuses: nobody may be remembered for want of room."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One person's erasure and its offset in the topic."""

    cutoff_ms: int
    offset: int


class Erasures:
    """Users to be forgotten, by id. False while there are none. Offsets are given in order, as they are read."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._shards: list[dict[str, None]] = []  # users of each, the latest erasure last

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, user_id: str, cutoff_ms: int, offset: int) -> None:
        """Note an erasure; the later cut-off of a user holds. Raises OverflowError for more users than the bound."""
        known = self._entries.get(user_id)
        if known is None and len(self._entries) >= MAX_ERASURES:
            raise OverflowError(f"more than {MAX_ERASURES} erasures")
        self._entries[user_id] = Entry(cutoff_ms if known is None else max(cutoff_ms, known.cutoff_ms), offset)
        if self._shards:
            shard = self._shards[shard_of(user_id, len(self._shards))]
            shard.pop(user_id, None)
            shard[user_id] = None

    def remove(self, user_id: str) -> None:
        """Take an erasure back: its record was deleted, for nothing from before its cut-off exists any more."""
        if self._entries.pop(user_id, None) is not None and self._shards:
            del self._shards[shard_of(user_id, len(self._shards))][user_id]

    def cover(self, user_id: str | None, time_ms: int) -> bool:
        """Whether what this user did at ``time_ms`` is to be forgotten."""
        entry = None if user_id is None else self._entries.get(user_id)
        return entry is not None and time_ms <= entry.cutoff_ms

    def any_of(self, user_ids: Iterable[str]) -> bool:
        """Whether any of these users is to be forgotten up to some moment."""
        return bool(self._entries) and not self._entries.keys().isdisjoint(user_ids)

    def index(self, shards: int) -> None:
        """Keep them by shard of this many from now on, for `after`. Each id is hashed once: the worker needs none."""
        self._shards = [{} for _ in range(shards)]
        for user_id in sorted(self._entries, key=lambda user_id: self._entries[user_id].offset):
            self._shards[shard_of(user_id, shards)][user_id] = None

    def after(self, shard: int, offset: int) -> dict[str, int]:
        """Offsets of a shard's erasures that stand after an offset, by user, in order. Looks at no others."""
        found: list[tuple[str, int]] = []
        for user_id in reversed(self._shards[shard]):
            at = self._entries[user_id].offset
            if at <= offset:
                break
            found.append((user_id, at))
        return dict(reversed(found))


NOBODY: Final = Erasures()
"""Where there is no topic of erasures. Nobody adds to it."""
