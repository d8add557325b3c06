"""What the simulated worlds share: faults, processes that take their turns, and time that is the simulation's.

A seed gives what arrives, the faults and the order of turns; the same seed and faults give the same run, record for
record. After `TICKS` turns there are no more faults, and then everything must be finished within `TICKS_MAX`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from tests.simulation.cluster import Cluster
from worker.errors import MillraceError
from worker.kafka.records import Partition

TICKS = 400
"""Turns in which faults may happen; after them there are none."""
TICKS_MAX = 6000


class Fault(msgspec.Struct, frozen=True, array_like=True):
    """What goes wrong at a turn, to which process; ``detail`` and ``amount`` mean what the kind wants."""

    tick: int
    kind: str
    worker: int
    detail: str = ""
    amount: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What a run came to. ``violations`` are empty when all promises were kept; ``events`` is all that arrived."""

    violations: list[str]
    digest: str
    events: int
    happened: Counter[str]


class Crash(BaseException):
    """A process dies in the middle of a call: nothing of it runs on, no handler catches it."""


class SimExecutor(Executor):
    """Runs a call when the world says so, on the world's own thread."""

    def __init__(self) -> None:
        self._calls: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, call: Any, /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.append((future, lambda: call(*args, **named)))
        return future

    def run(self) -> None:
        """Everything that waits."""
        calls, self._calls = self._calls, []
        for future, call in calls:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except Exception as error:  # noqa: BLE001 an executor passes on whatever it was
                future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.run()


@dataclass(slots=True)
class Plight:
    """What a process suffers: till when it is paused, till when its brokers are slow, which calls fail, where it naps.

    naps   call to seconds: the next time that it makes the call, it falls asleep before
    calls  call to what goes wrong with the next ones
    """

    paused_until_s: float = 0.0
    stuck_until_s: float = 0.0
    naps: dict[str, float] = field(default_factory=dict)
    calls: dict[str, list[str]] = field(default_factory=dict)


class SimProcess:
    """One process of a world: `turn`, `stop`, `heartbeat` and `mend` are the role's."""

    def __init__(self, world: Turns) -> None:
        self.world = world
        self.plight = Plight()
        self.executor = SimExecutor()
        world.born += 1

    def turn(self) -> None:
        """One step of the loop."""
        raise NotImplementedError

    def stop(self) -> None:
        """A clean end."""
        raise NotImplementedError

    def heartbeat(self) -> None:
        """The client's own thread."""
        raise NotImplementedError

    def mend(self) -> None:
        """No more faults."""
        self.plight.calls.clear()
        self.plight.naps.clear()

    def run_calls(self) -> None:
        """What waits on the executor, unless it is stuck."""
        if self.plight.stuck_until_s <= self.world.clock():
            self.executor.run()

    def await_call(self, call: Future[bool], timeout_s: float) -> bool:
        """For `TransactionalSink`: the executor may or may not come to it."""
        if self.world.rng.random() < 0.6:
            self.run_calls()
        self.world.advance(0.3 if self.plight.stuck_until_s > self.world.clock() else timeout_s)
        return call.done()

    def nap(self, call: str) -> None:
        """Fall asleep before a call, if it is time to."""
        if call in self.plight.naps:
            self.world.sleep(self, self.plight.naps.pop(call))

    def fault(self, call: str) -> str | None:
        """What goes wrong with a call. Raises `Crash` when the process dies of it."""
        if self.world.clock() < self.world.away_until_s and call in ("init", "offsets", "commit", "abort"):
            return "timeout"
        waiting = self.plight.calls.get(call)
        fault = waiting.pop(0) if waiting else None
        if fault == "crash":
            raise Crash
        return fault


class Turns:
    """Cluster, clock and processes of one run; a world says what arrives, what may happen and what is checked."""

    role: ClassVar[str]
    """Begins the transactional ids."""

    def __init__(self, seed: int, faults: Sequence[Fault], partitions: Iterable[Partition]) -> None:
        self.rng = random.Random(f"order {seed}")
        self._now = 1000.0
        self.away_until_s = 0.0
        self.born = 0
        self.processes: dict[int, Any] = {}
        self.happened: Counter[str] = Counter()
        self.violations: list[str] = []
        self._arriving: list[tuple[Partition, bytes | None]] = []
        self._faults = list(faults)
        self._trace = hashlib.blake2b(digest_size=16)
        self.cluster = Cluster(partitions, self.clock)

    def run(self) -> Outcome:
        """To the end, or to `TICKS_MAX` turns."""
        total = len(self._arriving)
        for slot in range(2):
            self._start(slot)
        for tick in range(TICKS_MAX):
            self._arrive(tick, total)
            while self._faults and self._faults[0].tick <= tick:
                self._happen(self._faults.pop(0))
            if tick == TICKS:
                self._mend()
            if tick > TICKS and self._finished():
                break
            self._turn(tick)
        else:
            self.violations.append(f"not finished after {TICKS_MAX} turns: {self._left()} events left")
        self._check()
        return Outcome(self.violations, self._trace.hexdigest(), total, self.happened)

    def clock(self) -> float:
        """Seconds; a little passes at every look, so that waiting loops end."""
        self._now += 1e-5
        return self._now

    def advance(self, seconds: float) -> None:
        """Time passes; the clients' own threads go on sending heartbeats."""
        self._now += seconds
        for process in self.processes.values():
            if process.plight.paused_until_s <= self._now:
                process.heartbeat()

    def sleep(self, process: SimProcess, seconds: float) -> None:
        """One falls asleep in the middle of its turn; the others take theirs until it wakes."""
        until_s, process.plight.paused_until_s = self._now + seconds, math.inf
        while self._now < until_s:
            self._turn(-1)
        process.plight.paused_until_s = 0.0

    def size(self, most: int) -> int:
        """How many records one poll brings."""
        return self.rng.randrange(most + 1) if self.rng.random() < 0.5 else self.rng.randrange(4)

    def _born(self, slot: int) -> SimProcess:
        """A new process. Raises `MillraceError` when it cannot begin."""
        raise NotImplementedError

    def _finished(self) -> bool:
        return self._left() <= 0 and all(owned.open is None for owned in self.cluster.ids.values())

    def _check(self) -> None:
        """Notes what was violated."""
        raise NotImplementedError

    def _ended(self, error: MillraceError) -> None:
        """A process ended by itself: its supervisor starts it again."""
        self.happened[f"ended: {type(error).__name__}"] += 1

    def _turn(self, tick: int) -> None:
        self.advance(self.rng.random() * 0.06)
        ready = sorted(slot for slot, p in self.processes.items() if p.plight.paused_until_s <= self._now)
        if not ready:
            return
        slot = self.rng.choice(ready)
        try:
            self.processes[slot].turn()
        except MillraceError as error:
            self._ended(error)
            del self.processes[slot]
            self._start(slot)
        except Crash:
            del self.processes[slot]
            self._start(slot)
        self._trace.update(f"{tick} {slot} {self._now:.5f} {len(self.cluster.log)}\n".encode())

    def _arrive(self, tick: int, total: int) -> None:
        due = total if tick >= TICKS else total * (tick + 40) // (TICKS + 40)
        while self._arriving and total - len(self._arriving) < due:
            partition, value = self._arriving.pop(0)
            self.cluster.inputs[partition].append(value)

    def _start(self, slot: int) -> None:
        try:
            self.processes[slot] = self._born(slot)
        except MillraceError as error:
            self.happened[f"not started: {type(error).__name__}"] += 1
        except Crash:
            self.happened["not started: Crash"] += 1

    def _happen(self, fault: Fault) -> None:
        self.happened[f"{fault.kind} {fault.detail}".strip()] += 1
        match fault.kind:
            case "away":
                self.away_until_s = self._now + 20 * fault.amount
            case "skip":
                self.advance(15 * fault.amount)
            case "move":
                self.cluster.balance(self.rng)
            case "hijack" if f"{self.role}.{fault.worker}" in self.cluster.ids:
                self.cluster.open_id(f"{self.role}.{fault.worker}")
            case "start" if fault.worker not in self.processes:
                self._start(fault.worker)
            case _ if fault.worker in self.processes:
                self._happen_to(self.processes[fault.worker], fault)

    def _happen_to(self, process: Any, fault: Fault) -> None:
        plight = process.plight
        match fault.kind:
            case "crash":
                del self.processes[fault.worker]
                if fault.amount < 0.7:
                    self._start(fault.worker)
            case "stop" if plight.paused_until_s <= self._now:
                try:
                    process.stop()
                except Crash:
                    self.happened["crash while stopping"] += 1
                except MillraceError as error:
                    self._ended(error)
                del self.processes[fault.worker]
            case "stuck":
                # Its brokers answer late, while partitions move.
                plight.stuck_until_s = self._now + 15 * fault.amount
                self.cluster.balance(self.rng)
            case "pause":
                # Often so long that the group goes on without it.
                plight.paused_until_s = self._now + 15 * fault.amount
                self.advance(14 * fault.amount)
            case "nap":
                # At the worst moment: before a call for which all is ready.
                plight.naps[fault.detail or "membership"] = 15 * fault.amount
            case "call":
                call, _, detail = fault.detail.partition(":")
                plight.calls.setdefault(call, []).append(detail)

    def _mend(self) -> None:
        self.away_until_s = 0.0
        for process in self.processes.values():
            process.mend()
        if not self.processes:
            self._start(0)

    def _left(self) -> int:
        return sum(len(log) - self.cluster.committed.get(p, 0) for p, log in self.cluster.inputs.items())
