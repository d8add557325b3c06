"""A Redis primary and its replica behind a proxy: killed, paused, flushed, failed over, failed over to the past.

Clients use `url`, which always leads to the present primary: fail-over moves the proxy, as a floating address would.
Both write an append-only file, so that a killed server comes back with what it had up to a second before.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import redis

from tests.chaos.proxy import Proxy
from tests.chaos.reaper import Reaper
from tests.servers import free_ports, redis_program

ROUTE: Final = "redis"
TIMEOUT_S: Final = 30.0


class RedisPair:
    """Two servers, numbered 0 and 1; a context that runs while it is open. ``settings`` go to both.

    Raises `tests.servers.MissingError` without redis-server 7.
    """

    def __init__(self, folder: Path, *, seed: int = 0, settings: Mapping[str, str] | None = None) -> None:
        self.folder, self._seed = folder, seed
        own = {"bind": "127.0.0.1", "save": "", "appendonly": "yes", "appendfsync": "everysec"}
        fast = {"repl-diskless-sync-delay": "0", "maxmemory-policy": "noeviction"}
        self._settings = {**own, **fast, **(settings or {})}
        self._proxy_port, *self._ports = free_ports(3)
        self.url = f"redis://127.0.0.1:{self._proxy_port}/0"
        self.primary = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    @property
    def replica(self) -> int:
        """The server that is not the primary."""
        return 1 - self.primary

    def __enter__(self) -> RedisPair:
        self._program = redis_program()
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._reaper = Reaper()
            stack.callback(self._reaper.close)
            self.proxy = Proxy(self.folder / "proxy.log", self._seed)
            stack.callback(self.proxy.close)
            self.proxy.add(ROUTE, self._proxy_port, self._ports[self.primary])
            for server in (0, 1):
                stack.callback(self.kill, server)
                self.start(server)
            self.rejoin()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def client(self, server: int) -> redis.Redis:
        """A client of one server, past the proxy. The caller closes it."""
        return redis.Redis(port=self._ports[server], socket_timeout=5)

    def start(self, server: int) -> None:
        """Start a server with what its file holds, as a primary of its own, and wait until it answers."""
        folder = self.folder / f"redis-{server}"
        folder.mkdir(exist_ok=True)
        command = [self._program, "--port", str(self._ports[server]), "--dir", str(folder)]
        for name, value in self._settings.items():
            command += [f"--{name}", *(value.split() if value else [""])]
        with (folder / "redis.log").open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._processes[server] = process
        self._reaper.watch(process.pid)
        with self.client(server) as client:
            self._until(lambda: _answers(client), f"Redis {server} answering", server)

    def kill(self, server: int) -> None:
        """kill -9, and wait until it is gone."""
        process = self._processes.pop(server, None)
        if process is not None:
            process.kill()
            process.wait(TIMEOUT_S)
            self._reaper.forget(process.pid)

    def pause(self, server: int) -> None:
        """SIGSTOP."""
        self._processes[server].send_signal(signal.SIGSTOP)

    def resume(self, server: int) -> None:
        """SIGCONT."""
        self._processes[server].send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Forget everything, on the primary and so on its replica."""
        with self.client(self.primary) as client:
            client.flushall()

    def detach(self) -> None:
        """The replica follows no more: failing over to it later is failing over to the past."""
        with self.client(self.replica) as client:
            client.replicaof("NO", "ONE")

    def fail_over(self) -> None:
        """The primary dies, the replica takes its place with what it has; see `rejoin`."""
        self.kill(self.primary)
        self.detach()
        self.primary = self.replica
        self.proxy.redirect(ROUTE, self._ports[self.primary])

    def rejoin(self) -> None:
        """The other server, started if need be, becomes the primary's replica and holds all that it holds."""
        if self.replica not in self._processes:
            self.start(self.replica)
        with self.client(self.replica) as client:
            client.replicaof("127.0.0.1", str(self._ports[self.primary]))
            self._until(lambda: _follows(client), "the replica in step", self.replica)

    def weather(self, **weather: Any) -> None:
        """Set the network in front of the primary: fields of `tests.chaos.proxy.Weather`; none means fair."""
        self.proxy.set(ROUTE, **weather)

    def _until(self, condition: Callable[[], bool], what: str, server: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                log = (self.folder / f"redis-{server}" / "redis.log").read_text(errors="replace")
                raise TimeoutError(f"{what}: not within {TIMEOUT_S:.0f} s\n{log[-2000:]}")
            time.sleep(0.05)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


def _follows(client: redis.Redis) -> bool:
    found = client.info("replication")
    return found["role"] == "slave" and found["master_link_status"] == "up" and not found["master_sync_in_progress"]
