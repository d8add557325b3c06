"""A shard of profiles, and how it is opened: from its fence in Redis, or rebuilt where Redis has none."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import structlog

from schemas.folds import FormatError
from schemas.redis_keys import Kind
from schemas.states import Fence, decode_fence, encode_fence, restamped
from worker.errors import OffsetLostError
from worker.metrics import ProfilesMetrics
from worker.privacy.erasures import Erasures
from worker.profiles.features import Features
from worker.profiles.foldstream import FoldStream, ShardId
from worker.redis.store import CorruptStateError, StateStore

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Shard:
    """What profiles knows of an open shard. ``raw`` is the fence's bytes as this writer left them.

    position  next offset of the folds partition to read; below the fence's while unpublished folds are caught up with
    published the group's offset: everything below is in the features topic
    dirty     keys whose states changed since then (an ordered set)
    idle_at   where the fence stood when it was last looked at whether the shard is idle
    """

    kind: Kind
    number: int
    fence: Fence
    raw: bytes
    position: int
    published: int
    dirty: dict[str, None] = field(default_factory=dict)
    idle_at: int = -1

    @property
    def id(self) -> ShardId:
        """Kind and number."""
        return self.kind, self.number

    @property
    def unpublished(self) -> bool:
        """Whether there is something to publish: not before it has caught up with its fence, when all of it is known,
        nor before the fence has caught up with features. A Redis that failed over to an older copy is behind them, and
        a state of then beside a fence record of later would, at a rebuild, lack the folds in between for good.
        """
        caught_up = self.position >= self.fence.fold_offset >= self.published
        return caught_up and (bool(self.dirty) or self.fence.fold_offset > self.published)


class ShardOpener:
    """Opens shards. Raises what store, features and stream raise. ``now_s``: Unix time."""

    def __init__(
        self,
        store: StateStore,
        features: Features,
        stream: FoldStream,
        erasures: Erasures,
        metrics: ProfilesMetrics,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._now_s = now_s
        self._store, self._features, self._stream = store, features, stream
        self._erasures, self._metrics = erasures, metrics

    def open(self, kind: Kind, number: int) -> Shard:
        """A shard from its fence, to be read from what is not yet published or not yet folded, whichever is earlier.

        Raises `OffsetLostError` when folds that were not folded are gone, or what is folded is of another topic;
        `FenceMovedError` while another process rebuilds it.
        """
        expired: Iterable[str] = ()
        raw = self._store.fence(kind, number)
        if raw is None:
            raw, expired = self._rebuild(kind, number)
        # Asked after the fence: bounds from before it (a process may sleep in between) could seem to be behind it.
        low, high = self._stream.bounds((kind, number))
        try:
            fence = decode_fence(raw)
        except FormatError as error:
            raise CorruptStateError(f"{kind} shard {number}: {error}. Delete its fence to have it rebuilt") from error
        fence = self._of_our_folds(fence, kind, number)
        if not low <= fence.fold_offset <= high:
            raise OffsetLostError(
                f"{self._stream.topic(kind)} partition {number}: folded up to {fence.fold_offset}, but Kafka holds"
                f" {low} to {high}. Retention was shorter than the outage, or the topic was made anew: restore it, or"
                " begin anew with an empty Redis database and empty features topics"
            )
        published = self._stream.published((kind, number))
        # States touched only by folds that retention has taken cannot be told: they are published when next touched.
        published = low if published is None else min(max(low, published), high)
        return Shard(kind, number, fence, raw, min(published, fence.fold_offset), published, dict.fromkeys(expired))

    def _of_our_folds(self, fence: Fence, kind: Kind, number: int) -> Fence:
        """The fence, with the id of our folds topic from its next writing on, where it had none."""
        ours = self._stream.topic_id(kind)
        if fence.folds not in ("", ours):
            raise OffsetLostError(
                f"{kind} shard {number}: folded up to {fence.fold_offset} of a folds topic with the id {fence.folds},"
                f" but {self._stream.topic(kind)} has {ours}. Another deployment uses this Redis database or these"
                " features topics, or the topic was made anew: give each its own, or begin anew with an empty Redis"
                " database and empty features topics"
            )
        return msgspec.structs.replace(fence, folds=ours)

    def _rebuild(self, kind: Kind, number: int) -> tuple[bytes, list[str]]:
        """A new incarnation of a shard without fence: states, marks and offset from features; later folds follow.

        Returns the fence, and the keys whose states had expired: to be deleted from features, which never does.
        Without a fence record (nothing was ever published) it begins at the first fold there is.
        """
        low, _ = self._stream.bounds((kind, number))
        incarnation = secrets.randbits(63)
        claim = incarnation.to_bytes(8, "big")
        self._store.begin_rebuild(kind, number, claim)
        states, last = self._features.snapshot(kind, number)
        fence = Fence(incarnation=incarnation, fold_offset=low, marks={}, folds=self._stream.topic_id(kind))
        if last is not None:
            fence = msgspec.structs.replace(self._of_our_folds(last, kind, number), incarnation=incarnation)
        elif low > 0:
            _log.warning("nothing was published and early folds are gone", kind=kind, shard=number, first_fold=low)
        # By when they were published, as in Redis: events may be older than anybody's states.
        oldest_ms = (self._now_s() - self._store.ttl_s) * 1000
        expired = [key for key, state in states.items() if 0 < state.written_ms < oldest_ms]
        for key in expired:
            del states[key]
        kept = {
            key: restamped(state.data, incarnation)
            for key, state in states.items()
            # Erased, but not yet deleted from features.
            if kind != "user" or not self._erasures.cover(key, state.time_ms)
        }
        self._store.rebuild(kind, number, claim, kept)
        raw = encode_fence(fence)
        self._store.finish_rebuild(kind, number, claim, raw)
        self._metrics.rebuilds.inc()
        _log.info("shard rebuilt", kind=kind, shard=number, states=len(kept), fold_offset=fence.fold_offset)
        return raw, expired
