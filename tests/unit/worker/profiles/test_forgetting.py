"""Erasures on the shards of profiles: each shard's own, from its mark on, under its fence."""

from __future__ import annotations

from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from schemas.erasures import ERASURES_PARTITION
from schemas.redis_keys import Kind
from schemas.shards import shard_of
from schemas.states import Fence, decode_fence, encode_fence
from tests.simulation.profiles_clients import SimErasures
from worker.metrics import ProfilesMetrics
from worker.privacy.erasure_feed import ErasureFeed
from worker.profiles.forgetting import Forgetting
from worker.profiles.shard import Shard
from worker.redis.store import MAX_KEYS_PER_CALL, StateStore

SHARDS = 2


class Store:
    """Notes what is deleted, and the mark that is written with it."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.marks: list[int] = []

    def write(self, kind: Kind, number: int, old: bytes, new: bytes, states: Any, gone: list[str]) -> None:
        self.deleted += gone
        self.marks.append(decode_fence(new).marks[SimErasures.topic_id][ERASURES_PARTITION])


def shard(kind: Kind, number: int, mark: int) -> Shard:
    fence = Fence(incarnation=1, fold_offset=0, marks={SimErasures.topic_id: {ERASURES_PARTITION: mark}})
    return Shard(kind, number, fence, encode_fence(fence), 0, 0)


@pytest.mark.parametrize("users", [10, 3 * MAX_KEYS_PER_CALL])
def test_a_shard_opened_publishes_all_of_its_erasures_and_carries_out_those_after_its_mark(users: int) -> None:
    feed, store = SimErasures(), Store()
    known = [f"u{n}" for n in range(users)]
    for offset, user in enumerate(known):
        feed.known.add(user, 1, offset)
    metrics = ProfilesMetrics(CollectorRegistry())
    forgetting = Forgetting(cast("ErasureFeed", feed), cast("StateStore", store), SHARDS, metrics)
    feed.known.add("late", 1, users)
    known.append("late")
    for number in range(SHARDS):
        store.deleted.clear()
        store.marks.clear()
        opened = shard("user", number, 4)
        forgetting.opened(opened)
        ours = [user for user in known if shard_of(user, SHARDS) == number]
        assert list(opened.dirty) == ours
        assert store.deleted == [user for user in ours if known.index(user) > 4]
        assert store.marks == sorted(store.marks)
        assert store.marks[-1] == known.index(ours[-1])
        before = len(store.deleted)
        forgetting.carry_out(opened)
        assert len(store.deleted) == before, "carried out once"
    items = shard("item", 0, -1)
    forgetting.opened(items)
    assert not items.dirty
