"""What becomes of a shard that nobody writes to for longer than its folds are kept."""

from __future__ import annotations

from unittest.mock import MagicMock, patch

import pytest
from confluent_kafka import KafkaError

from schemas.redis_keys import fence_key
from schemas.states import decode_fence
from schemas.topics import FOLDS
from tests.simulation.folds import MARK, SPACE
from tests.simulation.profiles_clients import KIND, SimFoldStream
from tests.simulation.profiles_world import ProfilesWorld
from worker.config import KafkaConfig
from worker.kafka.records import Partition
from worker.profiles.foldstream import FoldStream, ShardId
from worker.profiles.role import CARRY_S, LOOK_S

SHARD = FOLDS["user"], 0


@pytest.fixture
def world() -> ProfilesWorld:
    """A process, and blocks in every shard with the mark of a transaction behind each."""
    world = ProfilesWorld(1, [])
    world._start(0)
    for partition, value in world._arriving:
        world.cluster.inputs[partition].append(value)
    world._arriving = []
    assert world.cluster.inputs[SHARD][-1] == MARK
    return world


def turns(world: ProfilesWorld, seconds: float) -> None:
    until_s = world.clock() + seconds
    while world.clock() < until_s:
        world.processes[0].turn()
        world.processes[0].run_calls()


def folded(world: ProfilesWorld, partition: Partition = SHARD) -> int:
    return decode_fence(world.redis.data[fence_key(SPACE, KIND[partition[0]], partition[1])]).fold_offset


def nothing_kept(self: SimFoldStream, shard: ShardId) -> tuple[int, int]:
    end = len(self._cluster.inputs[FOLDS[shard[0]], shard[1]])
    return end, end


def test_an_idle_shard_whose_folds_retention_has_taken_is_opened_again(world: ProfilesWorld) -> None:
    turns(world, 3 * CARRY_S)
    ends = {partition: len(log) for partition, log in world.cluster.inputs.items()}
    assert {partition: folded(world, partition) for partition in ends} == ends
    assert world.cluster.committed == ends
    world.processes.pop(0).stop()
    with patch.object(SimFoldStream, "bounds", nothing_kept):
        world._start(0)
        turns(world, 2 * LOOK_S)
        assert world.processes[0].profiles.health()[1]["shards_waiting"] == 0
        # And so it is where Redis was emptied as well.
        world.redis.flush()
        turns(world, 3 * LOOK_S)
        assert {partition: folded(world, partition) for partition in ends} == ends


def test_a_fence_is_carried_once_and_only_where_nothing_comes(world: ProfilesWorld) -> None:
    turns(world, CARRY_S / 2)
    at = len(world.cluster.inputs[SHARD])
    assert folded(world) == at - 1
    for _ in range(4):  # marks alone, of transactions that were aborted
        world.cluster.inputs[SHARD].append(MARK)
        turns(world, 1.0)
        assert folded(world) == at - 1
    turns(world, 3 * CARRY_S)
    assert folded(world) == at + 4
    published = len(world.cluster.log)
    turns(world, 5 * CARRY_S)
    assert len(world.cluster.log) == published


def test_a_shard_whose_fence_was_carried_and_not_published_is_published_by_the_next(world: ProfilesWorld) -> None:
    turns(world, 3 * CARRY_S)
    world.processes.pop(0).stop()
    world.cluster.committed.clear()
    world._start(0)
    turns(world, 2 * LOOK_S)
    assert world.cluster.committed == {partition: len(log) for partition, log in world.cluster.inputs.items()}


def test_an_end_that_was_met_before_a_seek_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that was opened again has not read what is below it, and its fence must not be carried over that."""
    client = MagicMock()
    monkeypatch.setattr("worker.profiles.foldstream.Consumer", lambda _: client)
    stream = FoldStream(KafkaConfig(embedded=True), *3 * (lambda _: None,))
    client.consume.return_value = [MagicMock()]
    client.consume.return_value[0].configure_mock(
        **{
            "error.return_value.code.return_value": KafkaError._PARTITION_EOF,
            "topic.return_value": FOLDS["user"],
            "partition.return_value": 3,
            "offset.return_value": 17,
        }
    )
    assert stream.ended(("user", 3)) == -1
    assert stream.poll(1, 0.0) == {}
    assert (stream.ended(("user", 3)), stream.ended(("item", 3))) == (17, -1)
    assert stream.start(("user", 3), 5)
    assert stream.ended(("user", 3)) == -1
