"""What a shard is opened from, and what is refused."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock, create_autospec

import numpy as np
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_NOT_AVAILABLE
from prometheus_client import CollectorRegistry

from schemas.states import Fence, State, decode_fence, encode_fence, encode_state
from worker.config import KafkaConfig
from worker.errors import OffsetLostError
from worker.metrics import ProfilesMetrics
from worker.privacy.erasures import Erasures
from worker.profiles.features import SPACE_HEADER, Features, Published
from worker.profiles.foldstream import FoldStream
from worker.profiles.shard import Shard, ShardOpener
from worker.redis.store import StateStore

DAY_S = 86400
NOW_S = 2_000_000_000.0
FENCE = Fence(incarnation=7, fold_offset=5, marks={"t": {0: 3}})


class Opening:
    """One shard's surroundings: ``fence`` in Redis, ``states`` and ``last`` fence in features."""

    def __init__(
        self, fence: Fence | None, states: dict[str, Published] | None = None, last: Fence | None = None
    ) -> None:
        self.store: Any = create_autospec(StateStore, instance=True)
        self.store.ttl_s = 30 * DAY_S
        self.store.fence.return_value = None if fence is None else encode_fence(fence)
        features: Any = create_autospec(Features, instance=True)
        features.snapshot.return_value = (states or {}, last)
        stream: Any = create_autospec(FoldStream, instance=True)
        stream.bounds.return_value = (0, 9)
        stream.published.return_value = 5
        stream.topic.return_value = "shop.folds.user"
        stream.topic_id.return_value = "ours"
        metrics = ProfilesMetrics(CollectorRegistry())
        self._opener = ShardOpener(self.store, features, stream, Erasures(), metrics, lambda: NOW_S)

    def open(self) -> Shard:
        return self._opener.open("user", 2)


def with_folds(folds: str) -> Fence:
    return Fence(incarnation=7, fold_offset=5, marks={}, folds=folds)


def published(key: str, days_ago: float | None) -> Published:
    zeros = np.zeros((2, 1, 64), np.float32), np.zeros((2, 1), np.float32), np.zeros((1, 3), np.float32)
    state = State(
        kind="user", key=key, incarnation=1, fold_offset=1, time_ms=1,
        sums=zeros[0], weights=zeros[1], counts=zeros[2],
    )  # fmt: skip
    written_ms = 0 if days_ago is None else int((NOW_S - days_ago * DAY_S) * 1000)
    return Published(encode_state(state), state.time_ms, written_ms)


def test_a_fence_of_another_folds_topic_is_refused() -> None:
    with pytest.raises(OffsetLostError, match=r"shard 2: folded up to 5 of .* id theirs, but shop.folds.user has ours"):
        Opening(with_folds("theirs")).open()


def test_nothing_is_rebuilt_from_features_of_another_folds_topic() -> None:
    opening = Opening(None, {"a": published("a", 1)}, with_folds("theirs"))
    with pytest.raises(OffsetLostError, match="id theirs"):
        opening.open()
    opening.store.rebuild.assert_not_called()
    opening.store.finish_rebuild.assert_not_called()


def test_a_fence_without_a_topic_has_ours_from_its_next_writing_on() -> None:
    shard = Opening(FENCE).open()
    assert shard.fence == Fence(incarnation=7, fold_offset=5, marks={"t": {0: 3}}, folds="ours")
    assert shard.raw == encode_fence(FENCE), "it is compared with what stands in Redis"
    assert Opening(with_folds("ours")).open().fence.folds == "ours"


@pytest.mark.parametrize("last", [None, FENCE])
def test_a_rebuilt_fence_names_its_folds_topic(last: Fence | None) -> None:
    assert decode_fence(Opening(None, {}, last).open().raw).folds == "ours"


def test_states_that_have_expired_are_not_rebuilt_and_leave_features() -> None:
    ages = {"new": 1, "last day": 29.9, "expired": 30.1, "long ago": 400, "unknown": None}
    opening = Opening(None, {key: published(key, days) for key, days in ages.items()}, FENCE)
    shard = opening.open()
    assert set(opening.store.rebuild.call_args.args[3]) == {"new", "last day", "unknown"}
    assert list(shard.dirty) == ["expired", "long ago"]
    assert shard.unpublished


@pytest.mark.parametrize(
    ("timestamp", "written_ms"), [((TIMESTAMP_CREATE_TIME, 1234), 1234), ((TIMESTAMP_NOT_AVAILABLE, -1), 0)]
)
def test_a_snapshot_tells_when_each_state_was_published(timestamp: tuple[int, int], written_ms: int) -> None:
    state = published("a", 1)
    message = MagicMock()
    message.key.return_value, message.value.return_value, message.timestamp.return_value = b"a", state.data, timestamp
    message.headers.return_value = [(SPACE_HEADER, b"s1")]
    reader = MagicMock()
    reader.read.return_value = [message]
    states, _ = Features(KafkaConfig(embedded=True), "s1", reader).snapshot("user", 2)
    assert states == {"a": Published(state.data, state.time_ms, written_ms)}
