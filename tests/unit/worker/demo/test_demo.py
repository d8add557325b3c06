"""How a demo fails: what never comes is waited for with a bound, and named."""

from types import SimpleNamespace

import pytest

import worker.demo.demo as module
from schemas.topics import OPINIONS
from worker.demo.demo import _Demo, summary
from worker.demo.meter import Meter
from worker.demo.roles import RoleError


class Quiet:
    """Everything at the edges, without a word from Kafka. ``counted`` is what alerts says it has counted."""

    folder = "logs"

    def __init__(self, ready=(), counted=None):
        self.pids = {"worker": 1, "alerts": 2}
        self.ready = set(ready)
        self.counted = counted
        self.sent = 0
        self.phases = []

    def send(self, count, *, timed=True):
        self.sent += count

    def collect(self, timeout_s):
        return 0

    def check(self):
        pass

    def value(self, role, name):
        return self.counted

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


def test_exactly_the_wanted_number_is_sent():
    quiet = Quiet(counted=0.0)
    demo(quiet, Meter(), events=1234).run(stay=False)
    assert quiet.sent == 1234


def test_the_summary_has_every_topic_also_when_nothing_came():
    found = summary(Meter())
    assert SimpleNamespace(**found).events_in == {"events.click": 0, "events.review": 0, "events.service": 0}
    assert set(found["scores_out"]) == {"scores.ctr", "scores.sentiment", "scores.intent", "opinions"}
    assert found["latency_ms"] == {"p50": 0.0, "p99": 0.0}
