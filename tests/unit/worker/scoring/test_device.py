"""The stages overlap, results keep their order, what is in flight is bounded."""

import subprocess
import sys
import threading
from typing import Any

import pytest

from schemas.topics import TOPICS
from tests.worker_harness import events, produce
from worker.config import KafkaConfig
from worker.demo.embedded import EmbeddedBroker
from worker.errors import DeviceError
from worker.scoring.batcher import Batch
from worker.scoring.device import DEPTH, ThreadedDevice
from worker.scoring.results import Fetched, Scored

WAIT_S = 10.0


class Stages:
    """Stands for the scorer; `compute` waits until it is let go."""

    def __init__(self) -> None:
        self.fetched: list[Batch] = []
        self.second_fetched, self.go = threading.Event(), threading.Event()

    def fetch(self, batch: Batch) -> Fetched:
        self.fetched.append(batch)
        if len(self.fetched) == 2:
            self.second_fetched.set()
        return Fetched(batch, {}, {}, "known")

    def compute(self, fetched: Fetched) -> Scored:
        assert self.go.wait(WAIT_S)
        return Scored(fetched.batch, [], [], 0.0, 0.0)


def batches(n: int) -> list[Batch]:
    return [Batch([], i, "idle") for i in range(n)]


def test_the_next_batch_is_fetched_while_one_is_computed() -> None:
    stages: Any = Stages()
    device = ThreadedDevice(stages)
    first, second = batches(2)
    device.submit(first)
    device.submit(second)
    assert stages.second_fetched.wait(WAIT_S), "the second batch waited for the first one's computation"
    assert device.collect(0.0) == []
    assert (device.in_flight, device.has_room) == (DEPTH, False)
    stages.go.set()
    done: list[Scored] = []
    while len(done) < 2:
        done += device.collect(WAIT_S)
    assert [scored.batch for scored in done] == [first, second]
    assert (device.in_flight, device.has_room) == (0, True)
    device.close()


def test_closing_ends_the_threads() -> None:
    before = threading.active_count()
    stages: Any = Stages()
    device = ThreadedDevice(stages)
    assert threading.active_count() == before + 2
    device.close()
    assert threading.active_count() == before


class Hands:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_device_that_hangs_is_given_up_at_the_time_out_and_not_before() -> None:
    stages: Any = Stages()
    clock = Hands()
    device = ThreadedDevice(stages, timeout_s=60.0, clock=clock)
    clock.now = 1000.0  # idle time does not count
    first, second = batches(2)
    device.submit(first)
    clock.now = 1059.0
    device.submit(second)
    assert device.collect(0.0) == []
    clock.now = 1061.0
    with pytest.raises(DeviceError, match="61 s"):
        device.collect(0.0)
    stages.go.set()
    device.close()


def test_every_batch_has_the_whole_time_out() -> None:
    stages: Any = Stages()
    clock = Hands()
    device = ThreadedDevice(stages, timeout_s=60.0, clock=clock)
    first, second = batches(2)
    device.submit(first)
    device.submit(second)
    clock.now = 59.0
    stages.go.set()
    done: list[Scored] = []
    while len(done) < 2:
        done += device.collect(WAIT_S)
        clock.now += 59.0
    device.close()


HANGS = """
import sys, threading
from model.null import NullScorer
import worker.cli.app, worker.scoring.pipeline

class Hangs(NullScorer):
    def encode(self, prepared):
        print("hangs", flush=True)
        threading.Event().wait()

worker.scoring.pipeline.load_model = lambda config, routing: Hangs()
worker.cli.app.main(["worker", *sys.argv[1:]])
"""


def test_a_worker_whose_device_hangs_ends_with_one_line_and_its_exit_code() -> None:
    with EmbeddedBroker() as broker:
        broker.create_topics(TOPICS)
        produce(KafkaConfig(bootstrap=broker.bootstrap), "events.service", events(3, text="where is my parcel"))
        settings = {
            "kafka.bootstrap": broker.bootstrap,
            "kafka.embedded": "true",
            "kafka.fold_shards": "4",
            "worker.device_timeout_ms": "300",
            "worker.drain_timeout_ms": "300",
            "observe.log_level": "error",
        }
        flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        found = subprocess.run(
            [sys.executable, "-c", HANGS, *flags], capture_output=True, text=True, timeout=120, check=False
        )
    assert found.stdout.startswith("hangs"), found.stderr
    assert found.returncode == 5, found.stderr
    assert "worker.device_timeout_ms" in found.stderr.splitlines()[-1]
