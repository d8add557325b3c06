"""Worker, profiles and alerts, each a process as an operator would start it, watched while the demo runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import redis
from prometheus_client.parser import text_string_to_metric_families

from worker.config import Config
from worker.demo.embedded import free_ports, leashed
from worker.errors import MillraceError

ROLES: Final = ("worker", "profiles", "alerts")
STOP_TIMEOUT_S: Final = 30.0
SCRAPE_EVERY_S: Final = 1.0
SCRAPE_TIMEOUT_S: Final = 2.0
HISTORY: Final = 6
LAST_WORDS: Final = 3

Samples = dict[str, float]
"""Metric name, with its labels as ``name{label=value}``, to value."""


class RoleError(MillraceError):
    """A role of the demo ended by itself, or does not do its work. The message names the folder with its log."""


class Roles:
    """Starts the roles when entered; stops them when left, by force where one does not listen.

    ``folder`` takes the configurations and logs of the roles.
    """

    def __init__(self, config: Config, folder: Path, roles: Sequence[str] = ROLES) -> None:
        self.folder = folder
        self._config = config
        self._ports = dict(zip(roles, free_ports(len(roles)), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for role in self._ports:
                self._processes[role] = self._start(role)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    @property
    def addresses(self) -> dict[str, str]:
        """Where each role serves its metrics."""
        return {role: f"http://127.0.0.1:{port}" for role, port in self._ports.items()}

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each role."""
        return {role: process.pid for role, process in self._processes.items()}

    def check(self) -> None:
        """Raises `RoleError` when a role has ended."""
        for role, process in self._processes.items():
            if process.poll() is not None:
                raise RoleError(f"{role} ended with exit code {process.returncode}: {self._said(role)}")

    def stop(self) -> None:
        """Ask every role to finish and wait for it. Raises `RoleError` when one does not, or says it failed."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for role, process in self._processes.items():
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise RoleError(f"{role} did not stop within {STOP_TIMEOUT_S:.0f} s; {self._log(role)}") from error
            if code != 0:
                raise RoleError(f"{role} ended with exit code {code} when asked to stop: {self._said(role)}")
        self._processes = {}

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        observe = msgspec.structs.replace(self._config.observe, host="127.0.0.1", port=self._ports[role])
        file = self.folder / f"{role}.yaml"
        # JSON is YAML.
        file.write_bytes(msgspec.json.encode(msgspec.structs.replace(self._config, observe=observe)))
        # Should this process be killed, the roles end too instead of asking a broker that is gone for ever.
        command = leashed([sys.executable, "-m", "worker.cli.app", role, "--config", str(file)])
        with self._log(role).open("wb") as log:
            # A session of its own: Ctrl-C is for us, and we end the roles in good order.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _log(self, role: str) -> Path:
        return self.folder / f"{role}.log"

    def _said(self, role: str) -> str:
        lines = self._log(role).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(_event(line) for line in lines[-LAST_WORDS:]) + f" (all of it: {self._log(role)})"

    def _kill(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S / 3
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = {}


class Scraper:
    """Reads the roles' metrics and the size of Redis once a second on a thread of its own, while the context is open.

    A role that does not answer keeps its last samples; `ready` tells which have ever answered.
    """

    def __init__(self, addresses: dict[str, str], redis_url: str) -> None:
        self._addresses = addresses
        self._redis_url = redis_url
        self._stop = Event()
        self._thread = Thread(target=self._run, name="scrape", daemon=True)
        self._history: dict[str, deque[tuple[float, Samples]]] = {}
        self.redis_keys: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(2 * SCRAPE_TIMEOUT_S * len(self._addresses))

    @property
    def ready(self) -> set[str]:
        """Roles that have answered."""
        return set(self._history)

    def samples(self, role: str) -> Samples:
        """All that a role served last; empty before it has answered."""
        history = self._history.get(role)
        return history[-1][1] if history else {}

    def value(self, role: str, name: str) -> float | None:
        """A sample of a role, None before it is known."""
        return self.samples(role).get(name)

    def per_second(self, role: str, name: str) -> float | None:
        """How fast a counter has grown over the last `HISTORY` scrapes, None before that is known."""
        history = self._history.get(role)
        if history is None or len(history) < 2:
            return None
        (begin_s, begin), (end_s, end) = history[0], history[-1]
        return (end.get(name, 0.0) - begin.get(name, 0.0)) / (end_s - begin_s)

    def _run(self) -> None:
        with redis.Redis.from_url(
            self._redis_url, socket_timeout=SCRAPE_TIMEOUT_S, socket_connect_timeout=SCRAPE_TIMEOUT_S
        ) as client:
            while not self._stop.wait(SCRAPE_EVERY_S):
                for role, address in self._addresses.items():
                    found = scrape(address)
                    if found is not None:
                        self._history.setdefault(role, deque(maxlen=HISTORY)).append((time.monotonic(), found))
                self.redis_keys = _size(client)


def scrape(address: str) -> Samples | None:
    """Samples that a role serves now, None where it does not answer."""
    try:
        with urllib.request.urlopen(f"{address}/metrics", timeout=SCRAPE_TIMEOUT_S) as answer:  # noqa: S310 - loopback
            text = answer.read().decode()
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return None
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = float(sample.value)
    return samples


def _size(client: Any) -> int | None:
    try:
        return int(client.dbsize())
    except redis.RedisError:
        return None


def _event(line: str) -> str:
    """What a log line says, be it JSON or text."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line.strip()
    return str(entry.get("event", line)) if isinstance(entry, dict) else line.strip()
