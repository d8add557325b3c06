"""Nothing outlives the tests: a process that kills the servers it was told of when its standard input ends.

Servers of the tests are stopped, paused and killed on purpose, and the tests themselves may be killed with -9; what
cleans up must be a third process. (A parent-death signal is bound to the thread that started the server, and faults
come from threads that end.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path


class Reaper:
    """The process. Closing it kills whatever is still on its list."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, start_new_session=True, cwd=Path(__file__).parent
        )

    def watch(self, pid: int) -> None:
        """Kill this process when we are gone."""
        self._tell(f"+{pid}")

    def forget(self, pid: int) -> None:
        """It has ended and was waited for: its number may be somebody else's soon."""
        self._tell(f"-{pid}")

    def close(self) -> None:
        """Kill what is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()


def reap() -> None:
    """Read ``+PID`` and ``-PID`` until the input ends, then kill what is on the list."""
    watched: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            watched.add(pid)
        else:
            watched.discard(pid)
    for pid in watched:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    reap()
