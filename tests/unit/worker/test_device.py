"""The stages overlap, results keep their order, what is in flight is bounded."""

import threading
from typing import Any

from worker.batcher import Batch
from worker.device import DEPTH, ThreadedDevice
from worker.score import Fetched, Scored

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
