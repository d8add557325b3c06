"""Profiles through a Redis that loses, delays, garbles and refuses answers, or fails over to an older copy: exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis

from tests.embedded.test_erase import command
from tests.embedded.test_profiles import config, group, incarnations  # noqa: F401 fixtures
from tests.fold_harness import FoldWriter, Group, Running, assert_exact, states_in_features, states_in_redis, wait_for
from tests.redis_proxy import FAULTS, RedisProxy
from worker.config import Config


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles waits half a second for an answer, not five; and looks at its fences ten times a second."""
    monkeypatch.setattr("worker.redis.store.WRITE_TIMEOUT_S", 0.5)
    monkeypatch.setattr("worker.profiles.role.LOOK_S", 0.1)


@pytest.mark.usefixtures("quick")
def test_answers_lost_late_garbled_and_refused_leave_states_exact(
    config: Config,  # noqa: F811
    group: Group,  # noqa: F811
) -> None:
    writer = FoldWriter(config, seed=2)
    with RedisProxy(config.redis.url, 2, share=0.15) as proxy:
        through = msgspec.structs.replace(config, redis=msgspec.structs.replace(config.redis, url=proxy.url))
        with Running(through) as profiles:
            for _ in range(12):
                writer.write(writer.events(60), block_rows=6)
            wait_for(lambda: sum(proxy.counts[fault] for fault in FAULTS) >= 60, "enough faults", profiles.check)
            proxy.share = 0.0
            wait_for(group.published, "folds published", profiles.check)
    assert all(proxy.counts[fault] for fault in FAULTS), proxy.counts
    assert_exact(states_in_redis(config, config.redis.url), writer)
    assert_exact(states_in_features(config), writer)


class Copy:
    """All of Redis as it stood, to be put back in one step: what a replica that lagged behind becomes."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._kept: dict[bytes, Any] = {name: self._client.dump(name) for name in self._client.scan_iter(count=1000)}

    def take_over(self) -> None:
        with self._client.pipeline(transaction=True) as step:
            step.flushall()
            for name, data in self._kept.items():
                step.restore(name, 0, data)
            step.execute()
        self._client.close()


@pytest.fixture
def settled(config: Config, group: Group) -> Iterator[tuple[FoldWriter, Running, Copy]]:  # noqa: F811
    """Folds, a copy of Redis, and more folds."""
    writer = FoldWriter(config)
    with Running(config) as profiles:
        writer.write(writer.events(300))
        wait_for(group.published, "folds published", profiles.check)
        copy = Copy(config.redis.url)
        writer.write(writer.events(300))
        wait_for(group.published, "later folds published", profiles.check)
        yield writer, profiles, copy


@pytest.mark.usefixtures("quick")
def test_a_failover_to_an_older_copy_is_noticed_without_folds_and_caught_up(
    config: Config,  # noqa: F811
    group: Group,  # noqa: F811
    settled: tuple[FoldWriter, Running, Copy],
) -> None:
    writer, profiles, copy = settled
    before = incarnations(config)
    copy.take_over()
    wait_for(lambda: _same(config, writer), "the folds that the copy lacked", profiles.check)
    assert incarnations(config) == before, "caught up from its fence, not rebuilt"
    writer.write(writer.events(100))
    wait_for(group.published, "folds afterwards published", profiles.check)
    assert_exact(states_in_redis(config, config.redis.url), writer)
    assert_exact(states_in_features(config), writer)


@pytest.mark.usefixtures("quick")
def test_a_failover_to_a_copy_from_before_an_erasure_remembers_nobody(
    config: Config,  # noqa: F811
    group: Group,  # noqa: F811
    settled: tuple[FoldWriter, Running, Copy],
) -> None:
    writer, profiles, copy = settled
    user = next(key for kind, key in writer.folds if kind == "user")
    assert command(config, "erase", user, "--yes")["done"] is True
    copy.take_over()
    del writer.folds["user", user]
    wait_for(lambda: _same(config, writer), "the erasure to be carried out again", profiles.check)
    assert_exact(states_in_features(config), writer)


@pytest.mark.usefixtures("quick")
def test_an_emptied_redis_is_rebuilt_without_folds(
    config: Config,  # noqa: F811
    settled: tuple[FoldWriter, Running, Copy],
) -> None:
    writer, profiles, _ = settled
    before = incarnations(config)
    with redis.Redis.from_url(config.redis.url) as client:
        client.flushall()
    wait_for(lambda: len(incarnations(config)) == 8 and _same(config, writer), "the rebuild", profiles.check)
    assert not set(incarnations(config).values()) & set(before.values())


def _same(config: Config, writer: FoldWriter) -> bool:  # noqa: F811
    try:
        assert_exact(states_in_redis(config, config.redis.url), writer)
    except AssertionError:
        return False
    return True
