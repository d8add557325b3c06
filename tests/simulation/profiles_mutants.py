"""Safeguards of the profiles role broken on purpose, as in `tests.simulation.mutants`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.simulation.profiles_clients import SimFoldStream
from tests.simulation.redis_server import SimRedis
from worker.profiles import folding, role
from worker.profiles.publishing import Publishing
from worker.profiles.role import Profiles
from worker.profiles.shard import Shard, ShardOpener
from worker.redis.store import StateStore


def _always_true(original: Any) -> Any:
    return lambda self, *_: True


def _fence_alone(original: Any) -> Any:
    return lambda self, kind, shard, expected, fence, states, gone=(): original(self, kind, shard, expected, fence, [])


def _no_marks(original: Any) -> Any:
    def fresh(topic_ids: Any, topic: Any, partition: Any, offset: Any, marks: Any) -> Any:
        original(topic_ids, topic, partition, offset, marks)
        return np.ones(len(offset), np.bool_)

    return fresh


def _contained_again(original: Any) -> Any:
    def fold(selection: Any, states: Any, *more: Any) -> Any:
        never = np.full(len(selection.index), np.iinfo(np.int64).max)
        return original(replace(selection, block_offset=never), states, *more)

    return fold


def _whoever_we_are(original: Any) -> Any:
    def membership(self: Any) -> Any:
        self._hands.nap("membership")
        return self.metadata()

    return membership


def _offset_ahead(original: Any) -> Any:
    def send(self: Any) -> None:
        for shard_id, sent in self._sent.items():
            self._sent[shard_id] = type(sent)(sent.shard, sent.keys, sent.shard.fence.fold_offset)
        original(self)

    return send


def _not_dirty_again(original: Any) -> Any:
    def take_back(self: Any) -> None:
        for sent in self._sent.values():
            sent.keys.clear()
        original(self)

    return take_back


def _fence_record_early(original: Any) -> Any:
    def gather(self: Any, shard: Any) -> None:
        original(self, shard)
        self._sink.write(self._features.messages(shard.kind, shard.number, [], [], shard.raw))

    return gather


def _goes_on_from_memory(original: Any) -> Any:
    def fence_moved(self: Any, shard: Any, error: Any) -> None:
        shard.raw = self._store.fence(shard.kind, shard.number) or shard.raw

    return fence_moved


def _goes_on_without_an_answer(original: Any) -> Any:
    def redis_away(self: Any, error: Any) -> None:
        self._retry_at = self._clock() + 0.2

    return redis_away


def _nothing_to_withdraw(original: Any) -> Any:
    return lambda self, shards: None


def _from_the_fence(original: Any) -> Any:
    def opened(self: Any, kind: Any, number: Any) -> Any:
        shard = original(self, kind, number)
        shard.position = shard.fence.fold_offset
        return shard

    return opened


def _never_looks(original: Any) -> Any:
    return lambda self: None


def _not_caught_up(original: Any) -> Any:
    return property(lambda self: bool(self.dirty) or self.fence.fold_offset > self.published)


def _behind_features(original: Any) -> Any:
    def unpublished(self: Any) -> bool:
        caught_up = self.position >= self.fence.fold_offset
        return bool(caught_up and (self.dirty or self.fence.fold_offset > self.published))

    return property(unpublished)


def _end_of_before(original: Any) -> Any:
    def start(self: Any, shard: Any, offset: Any) -> Any:
        ends = dict(self._ends)
        started = original(self, shard, offset)
        self._ends = ends
        return started

    return start


MUTANTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "Redis's script does not compare the fence": (SimRedis, "expected", _always_true),
    "the fence moves without the states": (StateStore, "write", _fence_alone),
    "repeats are folded again": (folding, "_fresh", _no_marks),
    "what a state contains is folded into it again": (role, "fold", _contained_again),
    "features of a client that was expelled are sent": (SimFoldStream, "membership", _whoever_we_are),
    "features of shards that moved are sent": (Publishing, "withdraw", _nothing_to_withdraw),
    "the group's offset is ahead of what is published": (Publishing, "send", _offset_ahead),
    "keys taken back are not dirty again": (Publishing, "_take_back", _not_dirty_again),
    "the fence record leaves before its states": (Publishing, "gather", _fence_record_early),
    "states are published before a shard has caught up": (Shard, "unpublished", _not_caught_up),
    "states are published while Redis is behind features": (Shard, "unpublished", _behind_features),
    "a moved fence opens no shard again": (Profiles, "_fence_moved", _goes_on_from_memory),
    "an unknown write opens no shard again": (Profiles, "_redis_away", _goes_on_without_an_answer),
    "a shard is opened where it was folded, not published": (ShardOpener, "open", _from_the_fence),
    "fences are not looked at": (Profiles, "_look", _never_looks),
    "an end that was met before a seek stays": (SimFoldStream, "start", _end_of_before),
}

NOTICED: dict[str, int] = {
    "features of a client that was expelled are sent": 350,
    "features of shards that moved are sent": 151,
    "keys taken back are not dirty again": 88,
    "states are published while Redis is behind features": 208_039,
    "the group's offset is ahead of what is published": 54,
}
"""As `tests.simulation.mutants.NOTICED`."""
