"""What profiles publishes: states that changed, their shard's fence, and the group's offset, in one transaction.

    gather a shard's dirty keys > send > settle: committed, and the shard knows
                                         └ taken back: its keys are dirty again

The group's offset of a folds partition means "published up to here". The broker takes it from a member of the group
only, and the states with it: a process that was asleep cannot put old states over those of the shard's next owner.
One transaction at a time, of at most `STATES_MAX` states (15 MB). What a shard has more goes into the next ones: fence
and offset go with the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from schemas.redis_keys import Kind
from worker.kafka.sink import Sink
from worker.metrics import ProfilesMetrics
from worker.profiles.features import Features
from worker.profiles.foldstream import ShardId
from worker.profiles.shard import Shard
from worker.redis.store import StateStore

STATES_MAX: Final = 8192


@dataclass(frozen=True, slots=True)
class _Sent:
    """What of a shard is on its way, and the offset up to which it is published then."""

    shard: Shard
    keys: list[str]
    offset: int


class Publishing:
    """One process's publishing. Raises what the sink raises.

    ``commit`` commits offsets by shard where the sink does not, and tells whether it could.
    """

    def __init__(
        self,
        sink: Sink,
        features: Features,
        store: StateStore,
        topic: Callable[[Kind], str],
        commit: Callable[[dict[ShardId, int]], bool],
        metrics: ProfilesMetrics,
    ) -> None:
        self._sink, self._features, self._store, self._metrics = sink, features, store, metrics
        self._topic, self._commit = topic, commit
        self._sent: dict[ShardId, _Sent] = {}
        self._room = STATES_MAX
        self.cut = False
        """Whether the last `send` had no room for all that there was: publish again as soon as it is idle."""

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._sent and self._sink.ready and not self._sink.sealed

    def gather(self, shard: Shard) -> None:
        """Take what is not published of a shard, as far as there is room. Only while `idle`, each shard once.

        Raises `FenceMovedError` and `StoreError`, and has taken nothing then.
        """
        if shard.dirty and not self._room:
            return
        keys = list(islice(shard.dirty, self._room))
        # Read now rather than kept: the fence is checked with it.
        states = self._store.load(shard.kind, shard.number, shard.raw, keys)
        whole = len(keys) == len(shard.dirty)
        self._sink.write(self._features.messages(shard.kind, shard.number, keys, states, shard.raw if whole else None))
        self._sent[shard.id] = _Sent(shard, keys, shard.fence.fold_offset if whole else shard.published)
        self._room -= len(keys)
        for key in keys:
            del shard.dirty[key]

    def send(self) -> None:
        """Send what was gathered, if anything."""
        self.cut = self._room == 0
        if self._sent:
            self._sink.seal({(self._topic(kind), number): sent.offset for (kind, number), sent in self._sent.items()})

    def settle(self, timeout_s: float) -> None:
        """Take the answer of what is on its way, if it comes in time."""
        for answer in self._sink.poll(timeout_s):
            if answer.withdrawn or not (answer.committed or self._commit({i: s.offset for i, s in self._sent.items()})):
                self._take_back()
            else:
                self._published()

    def withdraw(self, shards: Iterable[ShardId]) -> None:
        """These are no longer ours: what is on its way of them must not be committed."""
        gone = [shard_id for shard_id in shards if shard_id in self._sent]
        if gone and not self._sink.abandon():
            for shard_id in gone:
                del self._sent[shard_id]

    def close(self, timeout_s: float) -> None:
        """Roll back what is on its way: whoever owns the shards next publishes it."""
        self._sink.close(timeout_s)

    def _published(self) -> None:
        for sent in self._sent.values():
            sent.shard.published = sent.offset
            self._metrics.published.labels(sent.shard.kind).inc(len(sent.keys))
        self._sent.clear()
        self._room = STATES_MAX

    def _take_back(self) -> None:
        for sent in self._sent.values():
            sent.shard.dirty = dict.fromkeys(sent.keys) | sent.shard.dirty
        self._sent.clear()
        self._room = STATES_MAX
