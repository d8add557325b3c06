"""Roles as processes that can be killed anywhere: forked from one that has everything imported, and never torch.

A forked role is up in a moment, so that a campaign can kill it hundreds of times. `CRASH_POINTS` names places in the
life of a transaction; a worker told to ends there by kill -9, on itself, so that it is exactly there.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from worker.config import Config

_context = mp.get_context("forkserver")
_context.set_forkserver_preload(["tests.chaos.fleet", "worker.scoring.pipeline", "worker.profiles.role", "worker.logs"])
STOP_TIMEOUT_S: Final = 60.0


class Process:
    """One role. ``crash`` is a crash point and how often it is passed before it kills."""

    def __init__(self, role: str, config: Config, log: Path, crash: tuple[str, int] | None = None) -> None:
        self.role, self.log = role, log
        settings = msgspec.json.encode(config)
        self._process = _context.Process(target=_serve, args=(role, settings, str(log), crash), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        """The operating system's number of it."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.exitcode

    def send(self, number: int) -> None:
        """A signal; to one that has ended, nothing."""
        if self._process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send(signal.SIGKILL)
        self._process.join(STOP_TIMEOUT_S)

    def stop(self) -> int | None:
        """SIGTERM, and what it ended with."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        return self.join(STOP_TIMEOUT_S)

    def join(self, timeout_s: float) -> int | None:
        """Wait for its end; its exit code, None when it still runs."""
        self._process.join(timeout_s)
        return self._process.exitcode

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]


def _serve(role: str, settings: bytes, log: str, crash: tuple[str, int] | None) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    config = msgspec.json.decode(settings, type=Config)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    from worker import logs
    from worker.profiles import role as profiles
    from worker.scoring import pipeline

    logs.configure(config.observe)
    if crash is not None:
        CRASH_POINTS[crash[0]](_Countdown(crash[1]))
    (pipeline.run if role == "worker" else profiles.run)(config, stop)
    assert "torch" not in sys.modules, "a role with the null model has no need of torch"


class _Countdown:
    """Kills this process at the so-manieth call."""

    def __init__(self, passes: int) -> None:
        self._left = passes
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _around(owner: Any, name: str, before: Callable[[], None] | None, after: Callable[[], None] | None) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        if before is not None:
            before()
        result = original(*args, **named)
        if after is not None:
            after()
        return result

    setattr(owner, name, wrapped)


def _method(module: str, owner: str, name: str, *, before: bool = False) -> Callable[[Callable[[], None]], None]:
    def install(die: Callable[[], None]) -> None:
        found = getattr(__import__(module, fromlist=[owner]), owner)
        _around(found, name, die if before else None, None if before else die)

    return install


def _call(name: str, *, before: bool) -> Callable[[Callable[[], None]], None]:
    """Before or after a call of the transactional producer, which is made by `worker.kafka.transaction`."""

    def install(die: Callable[[], None]) -> None:
        from worker.kafka import transaction

        class Dying(transaction.Producer):  # type: ignore[misc]
            pass

        original = getattr(transaction.Producer, name)

        def dying(self: Any, *args: Any, **named: Any) -> Any:
            if before:
                die()
            result = original(self, *args, **named)
            if not before:
                die()
            return result

        setattr(Dying, name, dying)
        transaction.Producer = Dying  # type: ignore[misc]

    return install


def _during_commit(die: Callable[[], None]) -> None:
    """While the commit is under way: from another thread, some time after it began."""
    from worker.kafka import transaction

    class Dying(transaction.Producer):  # type: ignore[misc]
        def commit_transaction(self, *args: Any) -> Any:
            timer = threading.Timer(0.003, die)
            timer.start()
            try:
                return super().commit_transaction(*args)
            finally:
                timer.join()

    transaction.Producer = Dying  # type: ignore[misc]


CRASH_POINTS: Final[dict[str, Callable[[Callable[[], None]], None]]] = {
    "records polled": _method("worker.kafka.source", "KafkaSource", "poll"),
    "records admitted": _method("worker.scoring.intake", "Intake", "admit"),
    "batch scored": _method("worker.scoring.engine", "Engine", "_score"),
    "transaction begun": _call("begin_transaction", before=False),
    "output half produced": _call("produce", before=False),
    "output gathered": _method("worker.scoring.engine", "Engine", "_write"),
    "folds in blocks": _method("worker.scoring.emit", "FoldBuffer", "blocks"),
    "before offsets are sent": _call("send_offsets_to_transaction", before=True),
    "after offsets are sent": _call("send_offsets_to_transaction", before=False),
    "before the commit": _call("commit_transaction", before=True),
    "during the commit": _during_commit,
    "after the commit": _call("commit_transaction", before=False),
    "commit noted": _method("worker.kafka.ledger", "OffsetLedger", "committed"),
    "transactions opened": _call("init_transactions", before=False),
}
