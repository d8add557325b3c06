"""What `millrace erase` tells: what is gone, and what will be gone when, by each topic's settings. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from schemas.topics import (
    ALERTS_CONTROL,
    ERASURES,
    EVENTS_DEAD,
    FEATURES_ITEM,
    FEATURES_USER,
    FOLDS_ITEM,
    TRENDS_OPINION,
)

SEGMENT_MS: Final = 7 * 24 * 3_600_000
"""Kafka's own default of ``segment.ms``, where the broker does not tell."""
SLACK_MS: Final = 15 * 60_000
"""The broker looks for what may go every five minutes, and takes it from the disk a minute later."""
NEVER_MS: Final = 2**62
YEAR_10000_MS: Final = 253_402_300_800_000
_NAMES_NOBODY: Final = {
    FOLDS_ITEM: "items, vectors and positions; no person",
    FEATURES_ITEM: "sums over many people; no person",
    ALERTS_CONTROL: "what operators muted and acknowledged; no customer",
    TRENDS_OPINION: "counts of many people; no person",
}

What = Literal["deleted", "expires", "kept", "pending", "names nobody"]


class TopicReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the person's records in a topic. ``gone_by_ms``: from then on not on the brokers' disks either,
    by the topic's settings; None where that is not bounded or there is nothing."""

    topic: str
    what: What
    gone_by_ms: int | None
    detail: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was done. ``done`` is False while something is pending: run the command again.

    states_deleted   keys deleted from Redis by this command beside what profiles deleted: other vector spaces
    newer_states     states in Redis of what the person did after the cut-off
    letters_deleted  dead letters of the person
    letters_unread   dead letters left that name nobody in plain words: nobody can tell whose they are
    letters_newer    dead letters of what the person did after the cut-off, left
    standing_since_ms when an earlier run recorded the cut-off that stands; None where this run recorded it
    """

    user_id: str
    cutoff_ms: int
    erasure_offset: int
    done: bool
    redis: str
    states_deleted: int
    newer_states: int
    letters_deleted: int
    letters_unread: int
    topics: list[TopicReceipt]
    notes: list[str]
    letters_newer: int = 0
    standing_since_ms: int | None = None


PENDING: Final = (
    "profiles did not carry it out in time (does it run?). The erasure is recorded: it will, before anything else,"
    " when it runs. Run this again then for a receipt that says so"
)
NOTES: Final = [
    "events, scores and folds that the worker wrote before it saw the erasure expire with their topics",
    "alerts remembers the latest authors and texts of a subject for an hour of its opinions, in its own changelog;"
    " alerts may quote masked excerpts of reviews, without their authors, and expire with their topic",
    "Redis's own snapshots, Kafka's copies elsewhere, files and trained models are not ours to reach",
]


def standing_note(cutoff_ms: int, since_ms: int, letters_newer: int) -> str:
    """Which cut-off stands, where an earlier run recorded it. Pure."""
    kept = f", {letters_newer} dead letters too" if letters_newer else ""
    return (
        f"an earlier run recorded this erasure at {_utc(since_ms)}: its cut-off stands, {_utc(cutoff_ms)}. What they"
        f" did since is theirs{kept}. To forget that as well, run it with --anew"
    )


def _utc(time_ms: int) -> str:
    if time_ms >= YEAR_10000_MS:  # a cut-off that another tool wrote as "for ever"
        return f"{time_ms} ms"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def topic_receipt(
    contract: str,
    name: str,
    settings: dict[str, str],
    now_ms: int,
    *,
    pending: bool = False,
    deleted: int | None = None,
) -> TopicReceipt:
    """What becomes of a person's records in a topic of these settings, as of ``now_ms``. Pure.

    A record goes with its segment: at the latest when the segment that was begun with it is full or ``segment.ms`` old,
    and then ``retention.ms`` old. In a compacted topic what was deleted goes within ``max.compaction.lag.ms``.
    """
    if contract in _NAMES_NOBODY:
        return TopicReceipt(topic=name, what="names nobody", gone_by_ms=None, detail=_NAMES_NOBODY[contract])
    if contract == ERASURES:
        detail = "this user id and the cut-off, so that a replay does not bring the person back"
        return TopicReceipt(topic=name, what="kept", gone_by_ms=None, detail=detail)
    if pending:
        return TopicReceipt(topic=name, what="pending", gone_by_ms=None, detail="profiles deletes it when it runs")
    if "compact" in settings.get("cleanup.policy", "delete"):
        lag_ms = int(settings.get("max.compaction.lag.ms", NEVER_MS))
        if contract not in (FEATURES_USER, EVENTS_DEAD):
            detail = "compacted: it keeps the last record of every key. Delete the person's in it yourself"
            return TopicReceipt(topic=name, what="kept", gone_by_ms=None, detail=detail)
        if lag_ms >= NEVER_MS:
            detail = "deleted for readers; no bound on the disks, for max.compaction.lag.ms is not set"
            return TopicReceipt(topic=name, what="deleted", gone_by_ms=None, detail=detail)
        count = "" if deleted is None else f"{deleted} letters "
        detail = f"{count}deleted for readers; on the disks until compacted"
        return TopicReceipt(topic=name, what="deleted", gone_by_ms=now_ms + lag_ms + SLACK_MS, detail=detail)
    retention_ms = int(settings.get("retention.ms", -1))
    if retention_ms < 0:
        return TopicReceipt(topic=name, what="kept", gone_by_ms=None, detail="without end: retention.ms is -1")
    segment_ms = int(settings.get("segment.ms", SEGMENT_MS))
    days = retention_ms / 86_400_000
    detail = f"after {days:.4g} days, and up to {segment_ms / 86_400_000:.4g} more with its segment"
    gone_by_ms = now_ms + retention_ms + segment_ms + SLACK_MS
    return TopicReceipt(topic=name, what="expires", gone_by_ms=gone_by_ms, detail=detail)
