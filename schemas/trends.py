"""Rolling sentiment of a subject by minute, as the alerts role writes it to ``trends.opinion``."""

from __future__ import annotations

from typing import Final

import msgspec

BUCKET_MINUTES: Final = 30
MINUTE_MS: Final = 60_000


class TrendMinute(msgspec.Struct, frozen=True, array_like=True):
    """Opinions of one minute of event time: how many, and the sums of p(negative) and p(positive)."""

    minute_ms: int
    total: int
    negative: float
    positive: float


class TrendBucket(msgspec.Struct, frozen=True, kw_only=True):
    """Minutes of half an hour of a subject, as one process has counted them; those without opinions are left out.

    A later record of the same key replaces it. What several processes counted, one after the other, bears different
    ``part``s and adds up. Records of a subject stand in the partition ``shard_of(subject, partitions)``.
    """

    subject: str
    start_ms: int
    part: str
    minutes: list[TrendMinute]
    v: int = 1

    def key(self) -> str:
        """Kafka key."""
        return f"{self.subject}@{self.start_ms}#{self.part}"
