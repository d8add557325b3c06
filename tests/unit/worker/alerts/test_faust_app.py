"""Fetching and seeking by one task: what was fetched beside a wish to seek is never half taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from worker.alerts import faust_app
from worker.alerts.faust_app import _Consumer, _ConsumerThread

OPINIONS = "opinions"


class Keeper:
    """Counts on from the last record it was fed, like the watch."""

    def __init__(self) -> None:
        self.open: list[int] = []
        self.fed: list[tuple[int, int]] = []
        self.next = 0

    def partitions(self) -> list[int]:
        return self.open

    def positions(self, earliest: dict[int, int], ends: dict[int, int]) -> dict[int, int]:
        return dict.fromkeys(earliest, self.next)

    async def feed(self, partition: int, records: list[int]) -> None:
        self.fed += [(partition, offset) for offset in records]
        self.next = records[-1] + 1


class Broker:
    """Ten records a partition, two a fetch; ``meanwhile`` happens while a fetch is under way."""

    def __init__(self) -> None:
        self.at: dict[TP, int] = {}
        self.meanwhile: Callable[[], Any] = lambda: None

    async def fetch(self, wanted: set[TP], _timeout: float) -> dict[TP, list[int]]:
        found = {tp: list(range(self.at.get(tp, 5), 10))[:2] for tp in sorted(wanted)}
        for tp, records in found.items():
            self.at[tp] = self.at.get(tp, 5) + len(records)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        done = meanwhile()
        if done is not None:
            await done
        return {tp: records for tp, records in found.items() if records}

    async def seek(self, to: dict[TP, int]) -> None:
        self.at.update(to)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> tuple[_Consumer, Keeper, Broker]:
    broker, keeper = Broker(), Keeper()

    async def ends(_consumer: object, *tps: TP) -> dict[TP, int]:
        return dict.fromkeys(tps, 10)

    monkeypatch.setattr(driver.Consumer, "_getmany", broker.fetch)
    monkeypatch.setattr(driver.Consumer, "earliest_offsets", ends)
    monkeypatch.setattr(driver.Consumer, "highwaters", ends)
    monkeypatch.setattr(driver.Consumer, "seek_wait", broker.seek)
    monkeypatch.setattr(faust_app, "NOTHING_TO_FETCH_S", 0.0)
    consumer = object.__new__(_Consumer)
    consumer._sought, consumer._fetching = set(), None
    consumer.flow_active = True
    consumer.app = SimpleNamespace(keeper=keeper, kept_topic=OPINIONS)
    return consumer, keeper, broker


def fetch(consumer: _Consumer, times: int, *others: TP) -> list[Any]:
    async def go() -> list[Any]:
        return [await consumer._getmany({TP(OPINIONS, 0), *others}, 1.0) for _ in range(times)]

    return asyncio.run(go())


def test_an_open_partition_is_read_from_its_keepers_position(parts: tuple[_Consumer, Keeper, Broker]) -> None:
    consumer, keeper, _ = parts
    keeper.open = [0]
    assert fetch(consumer, 6) == [{}] * 6
    assert keeper.fed == [(0, offset) for offset in range(10)]


def test_nothing_of_a_closed_partition_is_fetched(parts: tuple[_Consumer, Keeper, Broker]) -> None:
    consumer, keeper, broker = parts
    consumer.sleep = asyncio.sleep
    assert fetch(consumer, 2) == [{}, {}]
    assert broker.at == {}
    changelog = TP("changelog", 0)
    assert fetch(consumer, 1, changelog) == [{changelog: [5, 6]}], "the table is recovered meanwhile"
    assert list(broker.at) == [changelog]
    assert keeper.fed == []


@pytest.mark.parametrize("wish", ["seek", "stopped flow"])
def test_what_is_fetched_beside_a_wish_to_seek_is_read_again(
    parts: tuple[_Consumer, Keeper, Broker], wish: str
) -> None:
    consumer, keeper, broker = parts
    keeper.open = [0]
    fetch(consumer, 1)

    def stop() -> None:
        consumer.flow_active = False

    broker.meanwhile = consumer.perform_seek if wish == "seek" else stop
    fetch(consumer, 1)
    assert keeper.fed == [(0, 0), (0, 1)]
    consumer.flow_active = True
    fetch(consumer, 4)
    assert keeper.fed == [(0, offset) for offset in range(10)]


def test_nothing_is_committed_of_partitions_that_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    committed: list[dict[TP, int]] = []

    async def commit(thread: _ConsumerThread, offsets: dict[TP, int]) -> bool:
        committed.append({tp: offset for tp, offset in offsets.items() if tp in thread.assignment()})
        return True

    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "_commit", commit)
    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "assignment", lambda _thread: {TP(OPINIONS, 1)})
    thread = object.__new__(_ConsumerThread)
    assert not asyncio.run(thread._commit({TP(OPINIONS, 0): 5}))
    assert asyncio.run(thread._commit({TP(OPINIONS, 0): 5, TP(OPINIONS, 1): 7}))
    assert committed == [{TP(OPINIONS, 1): 7}]


def test_a_fetch_that_outlives_its_caller_is_waited_for_and_read_again(parts: tuple[_Consumer, Keeper, Broker]) -> None:
    consumer, keeper, broker = parts
    keeper.open = [0]

    async def go() -> None:
        answer = asyncio.Event()
        broker.meanwhile = answer.wait
        tps = {TP(OPINIONS, 0)}
        first = asyncio.ensure_future(consumer._getmany(tps, 1.0))
        while not broker.at:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.ensure_future(consumer._getmany(tps, 1.0))
        await asyncio.wait([second], timeout=0.01)
        assert not second.done()
        answer.set()
        await second
        assert keeper.fed == [(0, 0), (0, 1)]

    asyncio.run(go())
