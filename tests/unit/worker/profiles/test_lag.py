"""What profiles says of its lag and its loop, on a simulated cluster and Redis."""

from __future__ import annotations

import math
from typing import Any

from tests.simulation.profiles_world import METRICS, ProfilesWorld
from worker.profiles.role import LOOK_S


class Site:
    """One process of profiles; blocks come when they are written."""

    def __init__(self) -> None:
        self.world = ProfilesWorld(3, [])
        self.blocks, self.world._arriving = self.world._arriving, []

    def start(self) -> None:
        self.world._start(0)

    def write(self, count: int) -> None:
        for _ in range(count):
            partition, value = self.blocks.pop()
            self.world.cluster.inputs[partition].append(value)

    def turns(self, seconds: float = 2 * LOOK_S) -> None:
        until_s = self.world.clock() + seconds
        while self.world.clock() < until_s:
            self.world.processes[0].turn()


def value(gauge: Any) -> float:
    return float(gauge.collect()[0].samples[0].value)


def test_lag_grows_while_redis_is_away_and_is_gone_when_all_is_folded() -> None:
    site = Site()
    site.start()
    site.write(9)
    site.turns()
    assert value(METRICS.lag_blocks) == 0
    site.world.redis.away_until_s = math.inf
    for written in (4, 10):
        site.write(written - int(value(METRICS.lag_blocks)))
        site.turns()
        assert value(METRICS.lag_blocks) == written, "every shard is shut, and nothing is fetched of it"
    site.world.redis.away_until_s = 0.0
    site.turns()
    assert value(METRICS.lag_blocks) == 0


def test_a_process_that_starts_without_redis_counts_from_what_is_published() -> None:
    site = Site()
    site.start()
    site.write(9)
    site.turns()
    site.world.processes.pop(0).stop()
    site.world.redis.away_until_s = math.inf
    site.write(5)
    site.start()
    site.turns(4 * LOOK_S)
    assert value(METRICS.lag_blocks) == 5
