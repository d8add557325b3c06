"""A role in a thread or in a process of its own, for tests of any role: bind ``run`` or the program, then call."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.config import Config

WAIT_S = 60.0
Run = Callable[[Config, threading.Event], None]


class Role:
    """The role in a thread; ``stop`` ends it and raises what it raised."""

    def __init__(self, run: Run, config: Config) -> None:
        self._stop = threading.Event()
        self._error: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(run, config))
        self._thread.start()

    def _run(self, run: Run, config: Config) -> None:
        try:
            run(config, self._stop)
        except BaseException as error:  # noqa: BLE001 raised again in stop, on the test's thread
            self._error.append(error)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the role did not stop"
        if self._error:
            raise self._error[0]


@contextmanager
def running(run: Run, config: Config) -> Iterator[Role]:
    """The role while the context is open."""
    role = Role(run, config)
    try:
        yield role
    finally:
        role.stop()


def program(module: str) -> str:
    """Python that runs a role until it is killed, with the configuration whose path it is given."""
    return f"""
import sys, threading
from pathlib import Path
from {module} import run
from worker.config import load_config
run(load_config(Path(sys.argv[1])), threading.Event())
"""


@contextmanager
def process(program: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The role in a process of its own, killed at the end; the program is given ``config.json`` of the folder."""
    with (folder / "role.out").open("ab") as log:
        role = subprocess.Popen([sys.executable, "-c", program, str(folder / "config.json")], stdout=log, stderr=log)
    try:
        yield role
    finally:
        role.kill()
        role.wait(WAIT_S)
