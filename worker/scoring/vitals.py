"""What the loop tells of itself to other threads: one immutable picture, put down at the end of each turn. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

STALL_S: Final = 30.0
"""With an event unfinished for this long, or a loop that stands still for it, the worker is not ready."""


class Vitals(msgspec.Struct, frozen=True):
    """At ``turned_s``: arrival of the oldest event not committed (None where all are), load and number of partitions
    held, topics not read for now, and whether output waits for room."""

    turned_s: float
    oldest_arrived_s: float | None = None
    load: int = 0
    partitions: int = 0
    paused: frozenset[str] = frozenset()
    full: bool = False

    def oldest_s(self, now_s: float) -> float:
        """Age of the oldest event that is not committed."""
        return 0.0 if self.oldest_arrived_s is None else now_s - self.oldest_arrived_s

    def stood_s(self, now_s: float) -> float:
        """How long the loop has not turned."""
        return now_s - self.turned_s

    def health(self, now_s: float) -> tuple[bool, dict[str, Any]]:
        """Whether the loop turns and events get finished, and details."""
        stood_s, oldest_s = self.stood_s(now_s), self.oldest_s(now_s)
        details = {
            "load": self.load,
            "paused": sorted(self.paused),
            "partitions": self.partitions,
            "oldest_unfinished_s": round(oldest_s, 3),
            "loop_stood_s": round(stood_s, 3),
        }
        return stood_s < STALL_S and oldest_s < STALL_S and not self.full, details
