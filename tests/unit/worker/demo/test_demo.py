"""How a demo fails: what never comes is waited for with a bound, and named. And that one of any length ends."""

import asyncio
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, start_http_server

import worker.demo.demo as module
from schemas.events import ReviewEvent
from schemas.topics import OPINIONS
from worker.alerts.watch import OpinionWatch
from worker.config import Config, WorkerConfig
from worker.demo.catalogue import Catalogue
from worker.demo.demo import RATE, SEED, _Demo, plan, summary
from worker.demo.meter import Meter
from worker.demo.roles import RoleError, scrape
from worker.demo.shop import Shop
from worker.errors import InputError
from worker.kafka.ledger import Ticket
from worker.kafka.records import Record
from worker.metrics import AlertsMetrics
from worker.scoring.batcher import Unit
from worker.scoring.emit import Emitter
from worker.scoring.results import ReviewResult
from worker.scoring.routing import load_routing


class Quiet:
    """Everything at the edges, without a word from Kafka. ``counted``: what alerts has counted, or all that it says."""

    folder = "logs"

    def __init__(self, ready=(), counted=None):
        self.pids = {"worker": 1, "alerts": 2}
        self.ready = set(ready)
        self.told = counted if isinstance(counted, dict) else {}
        if isinstance(counted, float):
            self.told = {"millrace_alerts_opinions_total": counted}
        self.sent = 0
        self.phases = []

    def send(self, count, *, timed=True):
        self.sent += count

    def collect(self, timeout_s):
        return 0

    def check(self):
        pass

    def samples(self, role):
        return self.told if role == "alerts" else {}

    def refresh(self, phase):
        self.phases.append(phase)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "START_TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "STALL_TIMEOUT_S", 0.1)


pytestmark = pytest.mark.timeout(30)


def demo(quiet, meter, events=10):
    return _Demo(quiet, quiet, quiet, meter, quiet, events, 1e6)


def test_a_role_that_does_not_come_up_is_named():
    quiet = Quiet(ready=["worker"])
    with pytest.raises(RoleError, match=r"alerts not up after 0 s; logs: logs"):
        demo(quiet, Meter()).start()
    assert quiet.phases[0] == "starting alerts"


def test_first_events_without_scores_are_told():
    meter = Meter()
    meter.sent_broken("events.click", 0.0)
    with pytest.raises(RoleError, match="the first events have no scores"):
        demo(Quiet(ready=["worker", "alerts"]), meter).start()


def test_events_that_get_no_score_end_the_demo():
    meter = Meter()
    meter.sent_broken("events.click", 0.0)
    with pytest.raises(RoleError, match="in vain for scores"):
        demo(Quiet(), meter).run(stay=False)


def test_an_endless_demo_ends_too_when_scores_stop_coming():
    meter = Meter()
    meter.sent_broken("events.click", 0.0)
    with pytest.raises(RoleError, match="in vain for scores"):
        demo(Quiet(), meter, events=None).run(stay=True)


def test_a_slow_demo_with_nothing_due_is_no_stall(monkeypatch):
    monkeypatch.setattr(module, "STALL_TIMEOUT_S", 0.02)
    quiet = Quiet(counted=0.0)
    slow = _Demo(quiet, quiet, quiet, Meter(), quiet, 3, 20.0)
    slow.run(stay=False)
    assert quiet.sent == 3


def test_opinions_that_alerts_does_not_count_are_waited_for_in_vain():
    meter = Meter()
    meter.outputs[OPINIONS] = 5
    with pytest.raises(RoleError, match="opinions counted by alerts"):
        demo(Quiet(counted=4.0), meter).run(stay=False)
    demo(Quiet(counted=5.0), meter).run(stay=False)


def opinions_of_a_demo(events):
    """What the worker writes to opinions in a demo of so many events, were its model always right."""
    times = plan(events, RATE, 1_767_225_600_000)
    sent = islice(Shop(SEED, Catalogue.load(), times.surge).events(times.start_ms, times.spacing_ms), events)
    emitter = Emitter("null", load_routing(), WorkerConfig())
    moods = {"negative": [1.0, 0.0, 0.0], "neutral": [0.0, 1.0, 0.0], "positive": [0.0, 0.0, 1.0]}
    for offset, event in enumerate(sent):
        if isinstance(event.event, ReviewEvent):
            record = Record(event.topic, 0, offset, 0, event.key, b"")
            unit = Unit("review", event.event, record, Ticket((event.topic, 0), 1, offset, "review", 0.0), [], 1, 0.0)
            result = ReviewResult(event.meant, moods[event.meant], "", 0.0, np.zeros(64, np.float16))
            (outcome,) = emitter.emit([unit], [result], event.event.event_time_ms)
            yield from (message.value for message in outcome.messages if message.topic == OPINIONS)


def test_copies_and_the_many_opinions_of_an_author_do_not_hold_up_the_end():
    registry = CollectorRegistry()
    watch = OpinionWatch(Config(), AlertsMetrics(registry))
    watch.open([0])
    values = list(opinions_of_a_demo(2000))
    records = [
        SimpleNamespace(partition=0, offset=offset, timestamp=1_800_000_000_000, value=value)
        for offset, value in enumerate([*values, values[-1], b"no opinion"])
    ]
    asyncio.run(watch.feed(0, records))
    assert watch.failure is None
    server, thread = start_http_server(0, "127.0.0.1", registry)
    told = scrape(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    thread.join()
    assert told["millrace_alerts_skipped_total{reason=apart}"] > 10
    meter = Meter()
    meter.outputs[OPINIONS] = len(records)
    demo(Quiet(counted=told), meter).run(stay=False)
    meter.outputs[OPINIONS] += 1
    with pytest.raises(RoleError, match="opinions counted by alerts"):
        demo(Quiet(counted=told), meter).run(stay=False)


def test_exactly_the_wanted_number_is_sent():
    quiet = Quiet(counted=0.0)
    demo(quiet, Meter(), events=1234).run(stay=False)
    assert quiet.sent == 1234


def test_the_summary_has_every_topic_also_when_nothing_came():
    found = summary(Meter())
    assert SimpleNamespace(**found).events_in == {"events.click": 0, "events.review": 0, "events.service": 0}
    assert set(found["scores_out"]) == {"scores.ctr", "scores.sentiment", "scores.intent", "opinions"}
    assert found["latency_ms"] == {"p50": 0.0, "p99": 0.0}


def test_a_picture_that_could_not_be_written_is_refused_before_the_demo(tmp_path):
    with pytest.raises(InputError, match="No such file or directory"):
        module.run_demo(Config(), picture=tmp_path / "gone" / "demo.svg")
