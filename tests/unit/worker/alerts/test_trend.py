"""Trends: every opinion once, whoever counted it, however late it came."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.scores import Opinion
from schemas.trends import TrendBucket
from tests.opinions import MINUTE_MS, START_MS, opinion
from worker.alerts.trend import BUCKET_MS, INTERVAL_S, KEPT_BUCKETS, TrendKeeper, added_up, span

HOUR_MS = 60 * MINUTE_MS


def at(minute: int, p_negative: float = 0.9, subject: str = "item:lamp") -> Opinion:
    return opinion(subject, START_MS + minute * MINUTE_MS + 7, p_negative, 0)


def test_a_minute_adds_up_what_was_said_in_it() -> None:
    keeper = TrendKeeper(0)
    for each in (at(0, 0.75), at(0, 0.25), at(3, 1.0)):
        keeper.add(each)
    minutes = added_up(keeper.take(0.0))
    assert [(each.minute_ms - START_MS, each.total, each.negative, each.positive) for each in minutes] == [
        (0, 2, 1.0, 1.0),
        (3 * MINUTE_MS, 1, 1.0, 0.0),
    ]
    last = span(minutes, START_MS + 4 * MINUTE_MS, 5)
    assert (last.total, last.negative_share, last.positive_share, last.polarity) == (3, 0.6667, 0.3333, -0.3333)
    assert span(minutes, START_MS + 4 * MINUTE_MS, 4).total == 3
    assert span(minutes, START_MS + 3 * MINUTE_MS, 3).total == 2
    empty = span(minutes, START_MS, 5)
    assert (empty.total, empty.negative_share, empty.polarity) == (0, None, None)


def test_what_changed_is_taken_once_a_minute_and_whole() -> None:
    keeper = TrendKeeper(0)
    keeper.add(at(0))
    assert [bucket.minutes[0].total for bucket in keeper.take(100.0)] == [1]
    keeper.add(at(0))
    assert keeper.take(100.0 + INTERVAL_S - 1) == []
    assert [bucket.minutes[0].total for bucket in keeper.take(100.0 + INTERVAL_S)] == [2]
    assert keeper.take(100.0 + 2 * INTERVAL_S) == [], "nothing new"
    keeper.add(at(1))
    assert len(keeper.take(100.0, last=True)) == 1, "at the end all goes"


def publish(topic: dict[str, TrendBucket], buckets: list[TrendBucket]) -> None:
    """A compacted topic: the latest record of a key stays."""
    topic.update({bucket.key(): bucket for bucket in buckets})


minutes_of = st.lists(st.integers(0, 600), max_size=60)


@given(st.lists(minutes_of, max_size=4), st.integers(1, 5))
def test_processes_one_after_the_other_add_up_to_every_opinion_once(parts: list[list[int]], room: int) -> None:
    topic: dict[str, TrendBucket] = {}
    offset = 0
    for minutes in parts:
        keeper = TrendKeeper(offset, max_buckets=room)
        for number, minute in enumerate(minutes):
            keeper.add(at(minute))
            assert len(keeper) <= room
            if number % 7 == 0:
                publish(topic, keeper.take(0.0, last=True))
        publish(topic, keeper.take(0.0, last=True))
        offset += len(minutes)
    found = {each.minute_ms: each.total for each in added_up(topic.values())}
    counted = [minute for minutes in parts for minute in minutes]
    assert found == {START_MS + minute * MINUTE_MS: counted.count(minute) for minute in set(counted)}


def test_a_late_opinion_does_not_overwrite_what_was_published() -> None:
    topic: dict[str, TrendBucket] = {}
    keeper = TrendKeeper(0)
    for minute in (0, 0, 0, KEPT_BUCKETS * 60):
        keeper.add(at(minute))
    publish(topic, keeper.take(0.0, last=True))
    assert len(keeper) == 1, "the old one is closed"
    keeper.add(at(0))
    publish(topic, keeper.take(0.0, last=True))
    assert added_up(topic.values())[0].total == 4


def test_keys_name_subject_bucket_and_part() -> None:
    keeper = TrendKeeper(17)
    keeper.add(at(45))
    (bucket,) = keeper.take(0.0)
    start = START_MS + 45 * MINUTE_MS - (START_MS + 45 * MINUTE_MS) % BUCKET_MS
    assert bucket.key() == f"item:lamp@{start}#17.0"
    assert msgspec.json.decode(msgspec.json.encode(bucket), type=TrendBucket) == bucket
