"""Erasures carried out on the shards of profiles: states deleted under the fence, their deletion published.

How far a shard has carried out the topic ``erasures`` is one of its fence's marks, written together with the deletion:
nothing is carried out twice (it would forget what the person did since), and nothing is left out after a crash.
"""

from __future__ import annotations

import msgspec
import structlog

from schemas.erasures import ERASURES_PARTITION
from schemas.states import encode_fence
from worker.metrics import ProfilesMetrics
from worker.privacy.erasure_feed import ErasureFeed
from worker.profiles.shard import Shard
from worker.redis.store import MAX_KEYS_PER_CALL, StateStore

_log = structlog.get_logger(__name__)


class Forgetting:
    """What profiles knows of erasures. Raises what the store and the feed raise."""

    def __init__(self, feed: ErasureFeed, store: StateStore, shards: int, metrics: ProfilesMetrics) -> None:
        self._feed, self._store, self._metrics = feed, store, metrics
        feed.known.index(shards)

    def opened(self, shard: Shard) -> None:
        """Bring a shard that was just opened up to date, before anything is folded into it."""
        if shard.kind != "user":
            return
        # Whoever had the shard before may have seen erasures that we have not.
        self._feed.catch_up(self._mark(shard))
        # Had it been stopped between deleting and publishing, this publishes the deletions: of all that there were, for
        # the fence tells what was deleted, not what of it was published.
        shard.dirty.update(dict.fromkeys(self._feed.known.after(shard.number, -1)))
        self.carry_out(shard)

    def carry_out(self, shard: Shard) -> None:
        """Delete the states of the users whose erasures this shard has not carried out yet."""
        if shard.kind != "user":
            return
        users = self._feed.known.after(shard.number, self._mark(shard))
        order = list(users)
        for start in range(0, len(order), MAX_KEYS_PER_CALL):
            part = order[start : start + MAX_KEYS_PER_CALL]
            mark = {ERASURES_PARTITION: users[part[-1]]}
            fence = msgspec.structs.replace(shard.fence, marks={**shard.fence.marks, self._feed.topic_id: mark})
            raw = encode_fence(fence)
            self._store.write(shard.kind, shard.number, shard.raw, raw, (), part)
            shard.fence, shard.raw = fence, raw
            shard.dirty.update(dict.fromkeys(part))
            self._metrics.erasures.inc(len(part))
            _log.info("erasures carried out", shard=shard.number, users=len(part))

    def _mark(self, shard: Shard) -> int:
        return shard.fence.marks.get(self._feed.topic_id, {}).get(ERASURES_PARTITION, -1)
