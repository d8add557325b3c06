"""Small runs of `make outages`, `storms` and `upgrade`: what is felt is measured there, that nothing is left here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from tests.chaos.outages import redis_gone, replays, stall
from tests.chaos.redis_pair import RedisPair
from tests.chaos.storms import storm
from tests.chaos.upgrade import RELEASE, ROOT, NoReleaseError, release, upgrade
from tests.servers import or_skip
from worker.config import GroupProtocol

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
CLEAN = {"lost": 0, "duplicated": 0, "reordered": 0}


def counts(figures: dict[str, Any]) -> dict[str, int]:
    return {name: figures[name] for name in CLEAN}


def test_a_killed_workers_partitions_go_on_elsewhere(kafka_bootstrap: str, tmp_path: Path) -> None:
    figures = stall(kafka_bootstrap, tmp_path, times=1, rate=100, seed=3)
    assert counts(figures) == CLEAN
    assert 2 < figures["longest_stall_s"] < 60


def test_without_redis_scoring_goes_on_and_folds_are_complete_afterwards(kafka_bootstrap: str, tmp_path: Path) -> None:
    with or_skip():
        figures = redis_gone(kafka_bootstrap, tmp_path, seconds=4, rate=100, seed=3)
    assert counts(figures) == CLEAN
    assert min(figures["outputs"]) > 0
    assert figures["state_mismatches"] == 0


def test_folds_that_come_again_change_nothing(kafka_bootstrap: str, tmp_path: Path) -> None:
    with or_skip():
        figures = replays(kafka_bootstrap, tmp_path, times=400, seed=3)
    assert figures["wrong"] == []
    assert figures["replays"] >= 400


@pytest.mark.parametrize("protocol", get_args(GroupProtocol))
def test_one_worker_becomes_eight_becomes_three(protocol: GroupProtocol, kafka_bootstrap: str, tmp_path: Path) -> None:
    found, running = storm(protocol, 1, kafka_bootstrap, tmp_path, seed=3)
    assert found.clean, found.examples
    assert len(running.settles_s) == 4


def test_an_earlier_release_becomes_this_one(kafka_bootstrap: str, tmp_path: Path) -> None:
    try:
        earlier = release(RELEASE, tmp_path / "earlier")
    except NoReleaseError:
        earlier = ROOT  # a checkout without history: the same steps, from this release to itself
    with or_skip(), RedisPair(tmp_path / "redis") as pair:
        figures = upgrade(kafka_bootstrap, pair.url, tmp_path, earlier, times=1, rate=100, seed=3)
    assert counts(figures) == CLEAN, figures["examples"]
    assert figures["state_mismatches"] == 0
    assert figures["changes"] == 3
    assert figures["events"] > 0
