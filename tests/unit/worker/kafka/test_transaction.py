"""One transaction at a time; what happens at each bound: output, attempts, renewals, a message that can never go."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError as ClientError
from confluent_kafka import TopicPartition

from tests.simulation.clients import SimConsumer, SimProducer, sim_source
from tests.simulation.cluster import Cluster, failure
from tests.simulation.turns import SimExecutor
from worker.errors import KafkaError
from worker.kafka import transaction
from worker.kafka.clients import within
from worker.kafka.records import OutMessage
from worker.kafka.session import HUNG_MAX, Session
from worker.kafka.sink import Answer
from worker.kafka.transaction import TransactionalSink

INPUT = ("events.click", 0)


class Setting:
    """A sink on a simulated cluster, whose member holds one partition."""

    def __init__(self, fault: Callable[[str], str | None] = lambda call: None) -> None:
        self.now = 100.0
        self.fault = fault
        self.cluster = Cluster([INPUT], lambda: self.now)
        self.notes: list[str] = []
        self.consumer = SimConsumer(self.cluster, "me", lambda most: most, self.advance)
        self.source = sim_source(self.consumer, [INPUT[0]])
        self.source.poll(10, 0.0, lambda partitions: None)
        self.executor = SimExecutor()
        self.made = 0
        self.session = Session(
            self.connect,
            self.source.committed,
            lambda partition, offset: TopicPartition(*partition, offset),
            str,
            10.0,
            note=self.notes.append,
            clock=lambda: self.now,
            pause=self.advance,
            watch=lambda call, timeout_s: call(),
        )
        self.sink = TransactionalSink(
            self.session, self.executor, self.source.membership, lambda: self.now, lambda call, timeout_s: call.done()
        )

    def connect(self) -> SimProducer:
        self.made += 1
        return SimProducer(self.cluster, "id", lambda call: self.fault(call), self.advance)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.consumer.heartbeat()

    def settle(self, turns: int = 20) -> list[Answer]:
        answers: list[Answer] = []
        for _ in range(turns):
            self.executor.run()
            self.advance(0.2)
            answers += self.sink.poll()
        return answers

    def visible(self) -> list[bytes]:
        return [record.value for record in self.cluster.visible()]


def message(value: bytes) -> OutMessage:
    return OutMessage("scores.ctr", b"k", value)


def failing(call: str, *faults: str) -> Callable[[str], str | None]:
    left = list(faults)
    return lambda asked: left.pop(0) if asked == call and left else None


def test_output_and_offsets_become_visible_together() -> None:
    run = Setting()
    run.sink.write([message(b"a"), message(b"b")])
    assert run.visible() == []
    run.sink.seal({INPUT: 2})
    run.sink.write([message(b"next")])  # waits for the next transaction
    assert run.settle() == [Answer({INPUT: 2}, committed=True)]
    assert run.visible() == [b"a", b"b"]
    assert run.cluster.committed == {INPUT: 2}
    run.sink.seal({INPUT: 3})
    run.settle()
    assert run.visible() == [b"a", b"b", b"next"]
    assert run.notes == ["opened", "committed", "committed"]


@pytest.mark.parametrize("fault", ["refused", "retriable", "timeout", "happened", "fatal"])
@pytest.mark.parametrize("call", ["produce", "offsets", "commit"])
def test_whatever_goes_wrong_once_the_output_is_there_once(call: str, fault: str) -> None:
    run = Setting(failing(call, fault))
    run.sink.write([message(b"a")])
    run.sink.write([message(b"b")])
    run.sink.seal({INPUT: 2})
    assert run.settle(40) == [Answer({INPUT: 2}, committed=True)]
    assert run.visible() == [b"a", b"b"]
    assert run.cluster.committed == {INPUT: 2}


@pytest.mark.parametrize("call", ["offsets", "commit", "init"])
def test_a_call_that_never_returns_is_left_behind(call: str) -> None:
    run = Setting(failing(call, "hung", *["hung"] * (call == "init")))
    run.sink.write([message(b"a")])
    run.sink.seal({INPUT: 1})
    assert run.settle(40) == [Answer({INPUT: 1}, committed=True)]
    assert run.visible() == [b"a"]
    assert "hung" in run.notes
    assert run.made >= 2


def test_a_report_of_a_producer_that_was_left_behind_says_nothing_of_the_next() -> None:
    reports: list[Callable[..., None]] = []

    class Keeping(SimProducer):
        def produce(self, *args: Any, on_delivery: Any = None, **more: Any) -> None:
            reports.append(on_delivery)
            super().produce(*args, on_delivery=on_delivery, **more)

    run = Setting(failing("offsets", "hung"))
    run.session._connect = lambda: Keeping(run.cluster, "id", lambda call: run.fault(call), run.advance)
    run.session._renew(ClientError(ClientError._TIMED_OUT))
    run.sink.write([message(b"a")])
    run.sink.seal({INPUT: 1})
    assert run.settle(40) == [Answer({INPUT: 1}, committed=True)]
    late, present = reports[0], reports[-1]
    late(ClientError(ClientError.TOPIC_AUTHORIZATION_FAILED), None)
    assert run.session._refused is None
    present(ClientError(ClientError.TOPIC_AUTHORIZATION_FAILED), None)
    assert run.session._refused is not None


def test_a_client_that_hangs_again_and_again_ends_the_process() -> None:
    run = Setting(lambda call: "hung" if call == "offsets" else None)
    run.sink.write([message(b"a")])
    run.sink.seal({INPUT: 1})
    with pytest.raises(KafkaError, match="start this role again"):
        run.settle(200)
    assert run.notes.count("hung") == HUNG_MAX + 1


def test_what_waits_for_ever_on_a_thread_of_its_own_keeps_nobody() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError):
        within(never.wait, 0.05)
    never.set()
    found: list[int] = []
    within(lambda: found.append(1), 10)
    assert found == [1]
    with pytest.raises(ZeroDivisionError):
        within(lambda: 1 / 0, 10)


@pytest.mark.parametrize("fault", ["timeout", "happened", "fatal"])
def test_a_producer_whose_outcome_is_unknown_is_never_used_again(fault: str) -> None:
    run = Setting(failing("commit", fault))
    run.sink.write([message(b"a")])
    run.sink.seal({INPUT: 1})
    run.settle(40)
    assert run.made == 2
    assert "unknown" in run.notes


@pytest.mark.parametrize("fault", ["refused", "fatal", "timeout"])
def test_a_producer_whose_transaction_failed_is_never_used_again(fault: str) -> None:
    """What it drops may have been sent: the broker would take as many of the next messages for repeats of it."""
    offsets = failing("offsets", fault)
    run = Setting(lambda call: "linger" if call == "linger" else offsets(call))
    run.sink.write([message(b"a"), message(b"b")])
    run.sink.seal({INPUT: 1})
    assert run.settle(40) == [Answer({INPUT: 1}, committed=True)]
    assert run.visible() == [b"a", b"b"]
    assert run.made == 2


def test_a_producer_whose_output_is_withdrawn_is_never_used_again() -> None:
    run = Setting(lambda call: "linger" if call == "linger" else None)
    run.sink.write([message(b"a")])
    assert run.sink.abandon()
    assert run.settle() == [Answer({}, withdrawn=True)]
    run.sink.write([message(b"b")])
    run.sink.seal({INPUT: 1})
    assert run.settle() == [Answer({INPUT: 1}, committed=True)]
    assert run.visible() == [b"b"]
    assert run.made == 2


def test_a_full_client_queue_is_tried_again_without_an_abort() -> None:
    run = Setting(failing("produce", "full", "full"))
    run.sink.write([message(b"a")])
    run.sink.seal({INPUT: 1})
    assert run.settle() == [Answer({INPUT: 1}, committed=True)]
    assert "aborted" not in run.notes


def test_abandoned_output_is_taken_back_and_said_so() -> None:
    run = Setting()
    run.sink.write([message(b"a")])
    assert run.sink.abandon()
    run.sink.write([message(b"b")])
    assert run.settle() == [Answer({}, withdrawn=True)]
    run.sink.seal({INPUT: 1})
    run.settle()
    assert run.visible() == [b"b"]


def test_a_commit_that_has_not_begun_is_abandoned_too() -> None:
    run = Setting()
    run.sink.write([message(b"a")])
    run.sink.seal({INPUT: 1})
    assert run.sink.abandon()
    assert run.settle() == [Answer({}, withdrawn=True)]
    assert run.visible() == []
    assert run.cluster.committed == {}
    run.sink.write([message(b"b")])
    run.sink.seal({INPUT: 2})
    assert run.settle() == [Answer({INPUT: 2}, committed=True)]
    assert run.visible() == [b"b"]


def test_retained_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "RETAINED_BYTES", 100)
    run = Setting()
    run.sink.write([message(b"x" * 60)])
    assert not run.sink.full
    run.sink.seal({INPUT: 1})
    run.sink.write([message(b"x" * 60)])
    assert run.sink.full
    run.settle()
    assert not run.sink.full


def test_a_transaction_that_is_aborted_again_and_again_stops_the_worker() -> None:
    run = Setting(lambda call: "refused" if call == "commit" else None)
    run.sink.write([message(b"a")])
    run.sink.seal({INPUT: 1})
    with pytest.raises(KafkaError, match=f"aborted {transaction.ATTEMPTS_MAX} times: refused"):
        run.settle(1000)
    assert run.visible() == []


def test_a_slot_that_others_keep_taking_is_said() -> None:
    run = Setting()
    run.sink.write([message(b"a")])

    def fight() -> None:
        for _ in range(100):
            run.cluster.open_id("id")
            run.settle(2)
            run.sink.write([message(b"b")])

    with pytest.raises(KafkaError, match=r"worker\.slot"):
        fight()


class Refusing(SimProducer):
    """Reports that the broker will never have one of the messages."""

    def produce(self, topic: str, value: bytes, *rest: Any, on_delivery: Any = None, **named: Any) -> None:
        super().produce(topic, value, *rest, on_delivery=on_delivery, **named)
        if value == b"bad" and on_delivery is not None:
            on_delivery(ClientError(ClientError.TOPIC_AUTHORIZATION_FAILED), None)

    def commit_transaction(self, timeout_s: float) -> None:
        self._abortable = True
        raise failure(ClientError._INCONSISTENT, "1 message failed delivery", abort=True)


def test_a_message_that_the_broker_refuses_is_named_at_the_second_attempt() -> None:
    run = Setting()
    run.session._connect = lambda: Refusing(run.cluster, "id", lambda call: None, run.advance)
    run.session._renew(ClientError(ClientError._TIMED_OUT))
    run.sink.write([message(b"good"), message(b"bad")])
    run.sink.seal({INPUT: 1})
    with pytest.raises(KafkaError, match="refused us while writing output"):
        run.settle()
    assert run.visible() == []


def test_closing_rolls_back_what_is_open() -> None:
    run = Setting()
    run.sink.write([message(b"a")])
    run.sink.close(1.0)
    assert run.cluster.ids["id"].open is None
    assert run.visible() == []


def test_two_seals_at_once_are_a_defect() -> None:
    run = Setting()
    run.sink.write([message(b"a")])
    run.sink.seal({INPUT: 1})
    with pytest.raises(AssertionError, match="ready"):
        run.sink.seal({INPUT: 2})


def test_no_transactions_at_all_are_said_in_a_line() -> None:
    with pytest.raises(KafkaError, match="opening transactions"):
        Setting(lambda call: "fatal" if call == "init" else None)
