"""The loop between fake edges: nothing lost, order kept, commits behind acknowledgements, pauses, handing over."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from model.null import NullScorer
from schemas.dead import HEADER_OFFSET, HEADER_PARTITION, HEADER_TOPIC
from schemas.folds import decode_block
from tests.fakes import Clock, MemorySink, MemorySource
from worker.config import Config, KafkaConfig, WorkerConfig
from worker.errors import KafkaError
from worker.kafka.ledger import OffsetLedger
from worker.kafka.records import Partition
from worker.metrics import WorkerMetrics
from worker.scoring.device import InlineDevice, ThreadedDevice
from worker.scoring.pipeline import build
from worker.scoring.regulator import FREE_S, Regulator
from worker.scoring.routing import load_routing
from worker.scoring.score import BatchScorer, NoStates

CLICKS, REVIEWS, SERVICE = "events.click", "events.review", "events.service"
NOW_MS = 1_700_000_000_000


class Head:
    def click(self, features: Any) -> Any:
        return np.full(len(features), 0.25, np.float32)

    purchase = click


def features(users: Any, items: Any, vectors: Any, times: Any, contexts: Any) -> Any:
    return vectors


class Setting:
    """A pipeline on fakes."""

    def __init__(
        self, logs: Mapping[Partition, list[Any]], threaded: bool = False, reader: Any = None, **worker: Any
    ) -> None:
        values = {p: [v if v is None or isinstance(v, bytes) else encode(v) for v in log] for p, log in logs.items()}
        self.source, self.sink, self.clock = MemorySource(values), MemorySink(), Clock()
        self.scorer, routing = NullScorer(), load_routing()
        config = Config(kafka=KafkaConfig(embedded=True, fold_shards=4), worker=WorkerConfig(**worker))
        batches = BatchScorer(self.scorer, Head(), features, reader or NoStates(), (3600.0,), routing.heads)
        self.device: InlineDevice | ThreadedDevice = (ThreadedDevice if threaded else InlineDevice)(batches)
        self.registry = CollectorRegistry()
        self.engine = build(
            config,
            self.scorer,
            routing,
            self.source,
            self.sink,
            self.device,
            WorkerMetrics(self.registry),
            clock=self.clock,
            wall_ms=lambda: NOW_MS,
        )

    def steps(self, count: int = 30, advance_s: float = 0.06) -> None:
        for _ in range(count):
            self.clock.now += advance_s
            self.engine.step()

    def outcomes(self) -> list[tuple[str, int, int]]:
        """Source positions of all scores and dead letters, in the order written."""
        found = []
        for message in self.sink.messages:
            if message.topic.startswith("scores."):
                source = json.loads(message.value)["source"]
                found.append((source["topic"], source["partition"], source["offset"]))
            elif message.topic == "events.dead":
                headers = {k: v.decode() for k, v in message.headers or []}
                found.append((headers[HEADER_TOPIC], int(headers[HEADER_PARTITION]), int(headers[HEADER_OFFSET])))
        return found

    def batches(self) -> float:
        return sum(self.metric("batches_total", reason=reason) for reason in ("full", "deadline", "idle", "drain"))

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"millrace_worker_{name}", labels) or 0.0


def encode(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"event_id": "e", "event_time_ms": NOW_MS, **fields})


def clicks(n: int) -> list[Any]:
    return [{"user_id": f"u{i % 5}", "item_id": f"i{i % 3}", "title": f"thing {i}", "clicked": True} for i in range(n)]


def texts(n: int) -> list[Any]:
    return [{"text": f"text number {i}", "user_id": f"u{i % 5}"} for i in range(n)]


MIXED = {(CLICKS, 0): clicks(40), (CLICKS, 1): clicks(3), (REVIEWS, 0): texts(25), (SERVICE, 2): texts(17)}


@pytest.mark.parametrize("threaded", [False, True])
def test_every_record_has_one_outcome_in_order_and_offsets_follow(threaded: bool) -> None:
    bad = [b"", None, encode({"text": " "}), b"[]"]
    logs = {**MIXED, (SERVICE, 0): [*texts(3), *bad, *texts(2)]}
    run = Setting(logs, threaded, max_batch_units=8)
    for _ in range(1500):
        run.clock.now += 0.01
        run.engine.step()
        if run.source.committed == {p: len(log) for p, log in logs.items()}:
            break
    run.steps(2)  # the last commit's answer
    run.device.close()
    assert run.source.committed == {p: len(log) for p, log in logs.items()}
    outcomes = run.outcomes()
    for partition, log in logs.items():
        assert [o for t, p, o in outcomes if (t, p) == partition] == list(range(len(log)))
    assert len(run.sink.by_topic()["events.dead"]) == 4
    assert run.metric("events_total", topic=CLICKS) == 43
    assert run.metric("latency_seconds_count", lane="click") == 43
    assert run.metric("dead_letters_total", reason="tombstone") == 1
    assert run.engine.health()[1]["load"] == 0


def test_all_folds_are_written_before_their_offsets_are_committed() -> None:
    run = Setting({(CLICKS, 0): clicks(20)})
    committed_with: list[int] = []
    original = run.source.commit

    def commit(offsets: Any) -> None:
        blocks = [decode_block(m.value) for m in run.sink.messages if m.topic == "folds.user"]
        committed_with.append(sum(map(len, blocks)))
        assert sum(map(len, blocks)) >= offsets[(CLICKS, 0)]
        original(offsets)

    run.source.commit = commit  # type: ignore[method-assign]
    run.steps()
    assert committed_with[-1] == 20


def test_nothing_is_committed_before_it_is_acknowledged() -> None:
    run = Setting(MIXED)
    run.sink.hold = True
    run.steps()
    assert len(run.outcomes()) == 85
    assert run.source.committed == {}
    run.sink.hold = False
    run.steps(5)
    assert run.source.committed == {p: len(log) for p, log in MIXED.items()}


def test_a_refused_delivery_stops_the_worker_and_commits_nothing() -> None:
    run = Setting(MIXED)
    run.sink.failure = KafkaError("refused")
    with pytest.raises(KafkaError, match="refused"):
        run.steps()
    assert run.source.committed == {}


def test_a_failed_commit_is_tried_again() -> None:
    run = Setting({(CLICKS, 0): clicks(5)})
    run.source.fail_commits = 3
    run.steps()
    assert run.source.committed == {(CLICKS, 0): 5}


def test_revoked_partitions_are_finished_committed_and_let_go() -> None:
    run = Setting({(CLICKS, 0): clicks(30), (CLICKS, 1): clicks(30)}, max_batch_units=4, poll_records=1000)
    run.engine.step()  # reads all, two batches are in flight, the rest is queued
    run.source.revoke((CLICKS, 0))
    run.steps(1, advance_s=0.2)
    handed_over = run.source.committed.get((CLICKS, 0), 0)
    first = [o for t, p, o in run.outcomes() if p == 0]
    assert first == list(range(handed_over)), "what was handed over is not what was written"
    assert 0 < handed_over < 30
    run.steps()
    assert run.source.committed == {(CLICKS, 0): handed_over, (CLICKS, 1): 30}
    run.source.assign((CLICKS, 0))  # and back: goes on where it was committed
    run.steps()
    assert [o for t, p, o in run.outcomes() if p == 0] == list(range(30))
    assert run.source.committed == {(CLICKS, 0): 30, (CLICKS, 1): 30}


def test_lost_partitions_commit_nothing_and_their_late_results_are_dropped() -> None:
    run = Setting({(CLICKS, 0): clicks(30)}, max_batch_units=4, poll_records=1000)
    run.engine.step()
    run.source.lose((CLICKS, 0))
    run.steps()
    assert run.source.committed == {}
    assert run.engine.health()[1]["load"] == 0
    run.source.assign((CLICKS, 0))
    run.steps()
    assert run.source.committed == {(CLICKS, 0): 30}
    assert [o for _, _, o in run.outcomes()][-30:] == list(range(30))


def test_a_lane_with_enough_waiting_is_read_no_more_and_again_when_it_is_worked_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logs = {(REVIEWS, 0): texts(600), (CLICKS, 0): clicks(3)}
    run = Setting(logs, max_batch_units=4, max_batch_tokens=50, queue_tokens_high=400, queue_tokens_low=100)
    with monkeypatch.context() as jam:
        jam.setattr(InlineDevice, "has_room", False)
        run.steps(200)
        load = run.engine.health()[1]["load"]
        assert run.source.paused == {REVIEWS}, "clicks are read on"
        assert run.metric("paused_partitions") == 1
        assert 0.15 * 400 < load < 0.15 * 400 + 100, "more than one poll beyond the lane's share"
    run.steps(1000)
    assert run.source.committed == {(REVIEWS, 0): 600, (CLICKS, 0): 3}
    assert not run.source.paused


def test_a_full_client_queue_pauses_reading_and_is_not_ready() -> None:
    run = Setting({(REVIEWS, 0): texts(600)}, poll_records=600, max_batch_units=10)
    run.sink.room = 20
    run.steps(50)
    assert run.source.paused
    assert not run.engine.health()[0]
    started, asked = run.batches(), len(run.source.asked)
    assert started < 60, "all that was read was scored, with no room for its output"
    run.steps(10)
    assert run.batches() == started
    assert len(run.source.asked) > asked, "a paused source must still be polled"
    run.sink.room = None
    run.steps(300)
    assert run.source.committed == {(REVIEWS, 0): 600}


def test_finish_scores_and_commits_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Setting({(CLICKS, 0): clicks(30), (SERVICE, 0): texts(30)}, max_batch_units=4)
    with monkeypatch.context() as jam:
        jam.setattr(InlineDevice, "has_room", False)
        run.steps(60)
    run.engine.finish()
    assert run.source.committed == {(CLICKS, 0): 30, (SERVICE, 0): 30}
    assert len(run.outcomes()) == 60


def test_finish_gives_up_at_the_drain_time_and_commits_only_what_is_safe() -> None:
    run = Setting({(CLICKS, 0): clicks(30)}, max_batch_units=4, poll_records=1000, drain_timeout_ms=200)
    run.engine.step()
    run.sink.hold = True
    run.engine.finish()
    assert run.source.committed == {}


def test_finish_waits_for_room_and_goes_on_when_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Setting({(CLICKS, 0): clicks(30), (SERVICE, 0): texts(30)}, max_batch_units=4)
    with monkeypatch.context() as jam:
        jam.setattr(InlineDevice, "has_room", False)
        run.steps(60)
    run.sink.room = 0
    waits: list[float] = []
    flow = run.sink.poll

    def poll(timeout_s: float = 0.0) -> Any:
        waits.append(timeout_s)
        run.clock.now += timeout_s
        if len(waits) == 50:
            run.sink.room = None
        return flow(timeout_s)

    monkeypatch.setattr(run.sink, "poll", poll)
    run.engine.finish()
    assert run.source.committed == {(CLICKS, 0): 30, (SERVICE, 0): 30}
    assert sum(waits[:50]) > 0.04, "without room and with nothing on the device it turns as fast as it can"


class BrokenReader:
    """Breaks its promise never to raise."""

    def read(self, user_ids: Any, item_ids: Any) -> Any:
        raise RuntimeError("defect")


def test_a_defect_in_a_stage_surfaces_in_the_loop() -> None:
    run = Setting({(CLICKS, 0): clicks(3)}, threaded=True, reader=BrokenReader())
    with pytest.raises(RuntimeError, match="defect"):
        run.steps(2000, advance_s=0.001)
    run.device.close()


def test_health_tells_of_a_loop_that_stands_still() -> None:
    run = Setting({(CLICKS, 0): clicks(3)})
    run.steps()
    assert run.engine.health()[0]
    run.clock.now += 31
    assert not run.engine.health()[0]


def test_with_an_old_event_unfinished_the_worker_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    # Like a transaction: while its commit is not answered, no other begins.
    monkeypatch.setattr(MemorySink, "ready", property(lambda sink: not sink.sealed))
    run = Setting({(CLICKS, 0): clicks(3)})
    run.sink.hold = True
    run.steps(600)
    well, details = run.engine.health()
    assert not well
    assert details["oldest_unfinished_s"] > 30
    assert run.metric("oldest_unfinished_seconds") > 30, "set also while nothing can be committed"


def test_gauges_go_on_while_nothing_can_be_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Setting({(CLICKS, 0): clicks(3)})
    monkeypatch.setattr(type(run.sink), "ready", False)
    run.steps(100)
    assert run.metric("oldest_unfinished_seconds") > 5


def test_a_loop_that_stands_still_is_seen_by_who_scrapes() -> None:
    run = Setting({(CLICKS, 0): clicks(3)})
    run.sink.hold = True
    run.steps(3)
    assert run.metric("oldest_unfinished_seconds") < 1
    run.clock.now += 40
    assert run.metric("oldest_unfinished_seconds") > 40


def test_lag_is_told_by_topic_and_asked_for_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    logs = {(REVIEWS, 0): texts(600), (CLICKS, 0): clicks(3)}
    run = Setting(logs, max_batch_units=4, max_batch_tokens=50, queue_tokens_high=400, queue_tokens_low=100)
    asked: list[float] = []
    lag = run.source.lag
    monkeypatch.setattr(run.source, "lag", lambda: (asked.append(run.clock.now), lag())[1])
    with monkeypatch.context() as jam:
        jam.setattr(InlineDevice, "has_room", False)
        run.steps(100)
        read = run.source.position[REVIEWS, 0]
        assert run.source.paused == {REVIEWS}
        assert run.metric("lag_records", topic=REVIEWS) == 600 - read > 0
        assert run.metric("lag_records", topic=CLICKS) == 0
    assert len(asked) == 6, "six seconds"
    run.source.lose((REVIEWS, 0))
    run.steps()
    assert run.metric("lag_records", topic=REVIEWS) == 0, "who has it now tells of it"


def test_under_overload_the_log_tells_that_reading_is_held_back_once_and_once_that_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = Setting({(REVIEWS, 0): [], (CLICKS, 0): []})
    turns = iter([frozenset({REVIEWS}), frozenset()] * 50)
    with monkeypatch.context() as overload:
        overload.setattr(Regulator, "paused", lambda *_: next(turns))
        run.steps(100)
    assert [r.message for r in caplog.records] == [f"held back {REVIEWS}: 0 tokens unfinished, blocked: False"]
    caplog.clear()
    run.steps(int(2 * FREE_S), advance_s=1.0)
    assert [r.message for r in caplog.records] == [f"{REVIEWS} flows again, after 50 pauses in 6 s"]


def test_health_looks_at_nothing_that_the_loop_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Setting({(CLICKS, 0): clicks(3)})
    run.steps(1)

    def changing(ledger: Any) -> Any:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(OffsetLedger, "oldest_s", changing)
    monkeypatch.setattr(OffsetLedger, "partitions", property(changing))
    well, details = run.engine.health()
    assert (well, details["partitions"]) == (True, 1)


def test_texts_seen_before_are_counted_as_hits() -> None:
    run = Setting({(CLICKS, 0): [*clicks(10), *clicks(10)]}, poll_records=10)
    run.steps()
    assert run.metric("cache_misses_total") == 10
    assert run.metric("cache_hits_total") == 10
