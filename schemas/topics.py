"""Every topic in one table: what it carries, how it is keyed, split, kept, copied and bounded.

``millrace topics create`` applies it, ``doctor`` checks a cluster against it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

DAY_MS: Final = 24 * 60 * 60 * 1000
MAX_EVENT_BYTES: Final = 1024 * 1024
"""Largest input record; larger ones are refused by the broker."""
HEADROOM_BYTES: Final = 64 * 1024
"""What the producer and ``events.dead`` take beyond it, so that a dead letter's headers always fit."""
COMPACTION_LAG_MS: Final = 7 * DAY_MS
"""In compacted topics what was deleted or written over is gone from the disks after so long, not just out of sight."""
FOLD_SHARDS: Final = 32
"""Partitions of folds and features on a real cluster. Changing it moves every state: it is refused, not guessed."""

EVENTS_CLICK: Final = "events.click"
EVENTS_REVIEW: Final = "events.review"
EVENTS_SERVICE: Final = "events.service"
SCORES_CTR: Final = "scores.ctr"
SCORES_SENTIMENT: Final = "scores.sentiment"
SCORES_INTENT: Final = "scores.intent"
OPINIONS: Final = "opinions"
ALERTS_OPINION: Final = "alerts.opinion"
ALERTS_CONTROL: Final = "alerts.control"
TRENDS_OPINION: Final = "trends.opinion"
FOLDS_USER: Final = "folds.user"
FOLDS_ITEM: Final = "folds.item"
FEATURES_USER: Final = "features.user"
FEATURES_ITEM: Final = "features.item"
EVENTS_DEAD: Final = "events.dead"
ERASURES: Final = "erasures"

INPUTS: Final = (EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE)
FOLDS: Final[dict[str, str]] = {"user": FOLDS_USER, "item": FOLDS_ITEM}
FEATURES: Final[dict[str, str]] = {"user": FEATURES_USER, "item": FEATURES_ITEM}


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """One topic. Without ``retention_ms`` it is compacted: the latest record of every key is kept for ever.

    With ``latest_only`` it is compacted and cut by age.
    """

    name: str
    carries: str
    key: str
    partitions: int
    retention_ms: int | None
    max_message_bytes: int = MAX_EVENT_BYTES + HEADROOM_BYTES
    replication_factor: int = 3
    min_insync_replicas: int = 2
    latest_only: bool = False

    @property
    def compacted(self) -> bool:
        """Whether only the latest record of a key is kept."""
        return self.retention_ms is None or self.latest_only

    def config(self, replication_factor: int) -> dict[str, Any]:
        """Kafka topic configuration for a cluster that has ``replication_factor`` copies to give."""
        age = {} if self.retention_ms is None else {"retention.ms": str(self.retention_ms)}
        policy = "compact,delete" if age else "compact"
        compaction = {"cleanup.policy": policy, "max.compaction.lag.ms": str(COMPACTION_LAG_MS)}
        return {
            **(compaction if self.compacted else {}),
            **age,
            "max.message.bytes": str(self.max_message_bytes),
            "min.insync.replicas": str(min(self.min_insync_replicas, max(1, replication_factor - 1))),
        }


def _topic(name: str, carries: str, key: str, retention_ms: int | None, **more: Any) -> Topic:
    return Topic(name=name, carries=carries, key=key, retention_ms=retention_ms, **{"partitions": 12, **more})


TOPICS: Final[dict[str, Topic]] = {
    topic.name: topic
    for topic in (
        _topic(EVENTS_CLICK, "ClickEvent", "user, else event", 7 * DAY_MS, max_message_bytes=MAX_EVENT_BYTES),
        _topic(EVENTS_REVIEW, "ReviewEvent", "user, else event", 7 * DAY_MS, max_message_bytes=MAX_EVENT_BYTES),
        _topic(EVENTS_SERVICE, "ServiceEvent", "user, else event", 7 * DAY_MS, max_message_bytes=MAX_EVENT_BYTES),
        _topic(SCORES_CTR, "CtrScore", "user, else event", 7 * DAY_MS),
        _topic(SCORES_SENTIMENT, "SentimentScore", "user, else event", 7 * DAY_MS),
        _topic(SCORES_INTENT, "IntentScore", "user, else event", 7 * DAY_MS),
        _topic(OPINIONS, "Opinion", "subject", 7 * DAY_MS),
        _topic(ALERTS_OPINION, "Alert", "subject", 90 * DAY_MS, partitions=4),
        _topic(ALERTS_CONTROL, "Control", "mute or ack", 60 * DAY_MS, partitions=1, latest_only=True),
        _topic(TRENDS_OPINION, "TrendBucket", "subject, half hour: partition by subject", 7 * DAY_MS, latest_only=True),
        _topic(FOLDS_USER, "FoldBlock", "none: partition = shard", 30 * DAY_MS, partitions=FOLD_SHARDS),
        _topic(FOLDS_ITEM, "FoldBlock", "none: partition = shard", 30 * DAY_MS, partitions=FOLD_SHARDS),
        _topic(FEATURES_USER, "State", "user: partition = shard", None, partitions=FOLD_SHARDS),
        _topic(FEATURES_ITEM, "State", "item: partition = shard", None, partitions=FOLD_SHARDS),
        _topic(EVENTS_DEAD, "original bytes", "source position", None, partitions=4),
        _topic(ERASURES, "Erasure", "user: partition 0", None, partitions=1),
    )
}
