"""The source on a client that does what a test says: pauses, refusals, partitions that move within one poll."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException, TopicPartition

from tests.simulation.clients import SimMessage
from worker.config import KafkaConfig
from worker.errors import DeviceError, KafkaError
from worker.kafka.records import Partition
from worker.kafka.source import KafkaSource

ONE, TWO = ("events.click", 1), ("events.click", 2)
AWAY = ClientError(ClientError._TIMED_OUT, "the coordinator is away")


class Client:
    """Of `confluent_kafka.Consumer` what the source asks. ``turns`` happen one a `consume`; ``calls``: what it saw."""

    def __init__(self) -> None:
        self.turns: list[Callable[[], list[Any]]] = []
        self.calls: list[tuple[str, list[Partition]]] = []
        self.refuses: dict[str, ClientError] = {}
        self.offsets = {ONE: 5}
        self.commit_error: ClientError | None = None
        self.positions: dict[Partition, int] = {}
        self.watermarks: dict[Partition, tuple[int, int]] = {}

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.on_assign, self.on_revoke, self.on_lost = on_assign, on_revoke, on_lost

    def assigns(self, *partitions: Partition) -> None:
        self.on_assign(self, places(partitions))

    def revokes(self, *partitions: Partition) -> None:
        self.on_revoke(self, places(partitions))

    def loses(self, *partitions: Partition) -> None:
        self.on_lost(self, places(partitions))

    def consume(self, most: int, timeout_s: float) -> list[Any]:
        return self.turns.pop(0)() if self.turns else []

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._note("committed", partitions)
        return [TopicPartition(*p, self.offsets.get(p, -1001)) for p in (key(p) for p in partitions)]

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._note("pause", partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._note("resume", partitions)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._note("assign", partitions)

    def unassign(self) -> None:
        self._note("unassign", [])

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._note("assign", partitions)

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self._note("unassign", partitions)

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition] | None:
        self._note("commit", offsets)
        if asynchronous:
            return None
        done = Committed(offsets[-1], self.commit_error)
        return [*(Committed(p, None) for p in offsets[:-1]), done]  # type: ignore[list-item]

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(*p, self.positions.get(p, -1001)) for p in (key(p) for p in partitions)]

    def get_watermark_offsets(self, partition: TopicPartition, cached: bool) -> tuple[int, int]:
        assert cached, "a request to the broker"
        return self.watermarks.get(key(partition), (-1001, -1001))

    def _note(self, call: str, partitions: list[TopicPartition]) -> None:
        if call in self.refuses:
            raise KafkaException(self.refuses[call])
        self.calls.append((call, [key(p) for p in partitions]))


class Committed:
    """A position as a commit answers it: the client's own type takes no error from outside."""

    def __init__(self, position: TopicPartition, error: ClientError | None) -> None:
        self.topic, self.partition, self.offset, self.error = *key(position), position.offset, error


def key(partition: TopicPartition) -> Partition:
    return partition.topic, partition.partition


def places(partitions: Any) -> list[TopicPartition]:
    return [TopicPartition(*partition) for partition in partitions]


def made(protocol: Any = "cooperative") -> tuple[KafkaSource, Client]:
    client = Client()
    config = KafkaConfig(bootstrap="nowhere:1", group_protocol=protocol)
    return KafkaSource(config, {"events.click": "id"}, "group", connect=lambda settings: client), client


def turn(source: KafkaSource, client: Client, *events: Callable[[], Any], hand_over: Any = lambda gone: None) -> Any:
    """One poll in which the events happen; the messages that they bring."""
    client.turns.append(lambda: [message for event in events for message in (event() or [])])
    return source.poll(10, 0.0, hand_over)


@pytest.mark.parametrize("way", ["revokes", "loses"])
def test_a_pause_ends_before_its_partition_goes(way: str) -> None:
    source, client = made()
    turn(source, client, lambda: client.assigns(ONE, TWO))
    source.pause()
    assert client.calls.pop() == ("pause", [ONE, TWO])
    client.calls.clear()
    turn(source, client, lambda: getattr(client, way)(ONE))
    assert client.calls == [("resume", [ONE]), ("unassign", [ONE])]
    turn(source, client, lambda: client.assigns(ONE))
    client.calls.clear()
    source.pause()
    assert client.calls == [("pause", [ONE])], "it is paused again only when somebody asks for it"


def test_a_rewind_ends_pauses() -> None:
    source, client = made()
    turn(source, client, lambda: client.assigns(ONE, TWO))
    source.pause()
    client.calls.clear()
    source.rewind([ONE])
    assert client.calls == [("committed", [ONE]), ("resume", [ONE]), ("unassign", [ONE]), ("assign", [ONE])]


@pytest.mark.parametrize("protocol", ["cooperative", "eager"])
def test_a_rewind_of_nothing_that_is_held_does_nothing(protocol: str) -> None:
    source, client = made(protocol)
    turn(source, client, lambda: client.assigns(ONE))
    client.calls.clear()
    source.rewind([])
    source.rewind([TWO])
    assert client.calls == [], "the eager client takes everything away at once"


def test_a_commit_that_is_refused_at_once_is_answered_by_the_next_poll() -> None:
    source, client = made()
    turn(source, client, lambda: client.assigns(ONE))
    client.refuses["commit"] = AWAY
    source.commit({ONE: 6})
    ((offsets, error),) = turn(source, client).commits
    assert offsets == {ONE: 6}
    assert "the coordinator is away" in error
    assert turn(source, client).commits == []


def test_a_commit_that_waits_is_refused_when_one_partition_is() -> None:
    source, client = made()
    turn(source, client, lambda: client.assigns(ONE, TWO))
    assert source.commit_now({ONE: 6, TWO: 1})
    client.commit_error = ClientError(ClientError.ILLEGAL_GENERATION, "the group has moved on")
    assert not source.commit_now({ONE: 6, TWO: 1})
    client.refuses["commit"] = AWAY
    assert not source.commit_now({ONE: 6})


@pytest.mark.parametrize(("protocol", "anew"), [("cooperative", [ONE]), ("eager", [ONE, TWO])])
def test_what_was_fetched_before_a_partition_went_and_came_is_read_again(protocol: str, anew: list[Partition]) -> None:
    source, client = made(protocol)
    turn(source, client, lambda: client.assigns(ONE))
    client.calls.clear()
    fetched = [SimMessage(ONE, 9, b"{}"), SimMessage(TWO, 3, b"{}")]
    polled = turn(source, client, lambda: client.revokes(ONE), lambda: client.assigns(ONE, TWO), lambda: fetched)
    assert [(r.partition, r.offset) for r in polled.records] == ([(2, 3)] if TWO not in anew else [])
    assert (polled.lost, polled.assigned) == ([ONE], [ONE, TWO])
    assert client.calls[-1] == ("assign", anew)


def test_a_broker_that_is_away_when_partitions_come_is_our_error() -> None:
    source, client = made()
    client.refuses["committed"] = AWAY
    with pytest.raises(KafkaError, match="finding where to begin"):
        turn(source, client, lambda: client.assigns(ONE))


def test_a_broker_that_is_away_when_all_is_read_again_is_our_error() -> None:
    source, client = made()
    turn(source, client, lambda: client.assigns(ONE))
    client.refuses["committed"] = AWAY
    with pytest.raises(KafkaError, match="asking where to read again"):
        source.rewind([ONE])


def test_an_error_while_handing_over_is_raised_when_the_partitions_have_been_given_back() -> None:
    def hand_over(gone: list[Partition]) -> None:
        raise DeviceError("hangs")

    source, client = made()
    turn(source, client, lambda: client.assigns(ONE))
    client.calls.clear()
    with pytest.raises(DeviceError, match="hangs"):
        turn(source, client, lambda: client.revokes(ONE), hand_over=hand_over)
    assert client.calls == [("unassign", [ONE])]


def test_lag_is_what_is_held_and_not_read_as_far_as_the_client_knows() -> None:
    source, client = made()
    assert source.lag() == {"events.click": 0}
    turn(source, client, lambda: client.assigns(ONE, TWO))
    assert source.lag() == {"events.click": 0}, "before the first fetch nothing is known"
    client.watermarks = {ONE: (0, 12), TWO: (100, 104)}
    assert source.lag() == {"events.click": 7 + 4}, "from where it was committed, or from the first that there is"
    client.positions = {ONE: 9, TWO: 104}
    assert source.lag() == {"events.click": 3}
    turn(source, client, lambda: client.revokes(ONE))
    assert source.lag() == {"events.click": 0}, "who has it now tells of it"


def test_lag_of_what_is_read_again_counts_from_where_it_is_committed() -> None:
    source, client = made()
    turn(source, client, lambda: client.assigns(ONE))
    client.watermarks, client.positions = {ONE: (0, 12)}, {ONE: 12}
    assert source.lag() == {"events.click": 0}
    source.rewind([ONE])
    client.positions = {}  # as the client: given anew, it has no position before the next record
    assert source.lag() == {"events.click": 7}
