"""One broker of the tests' cluster, as a process that can be killed, paused and started again."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from tests.chaos.disk import SmallDisk
from tests.chaos.reaper import Reaper

CLUSTER_SETTINGS: Final = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "cluster.properties"
END_TIMEOUT_S: Final = 60.0
# Quick starts and quick detection, small buffers: for tests on two cores. What the promises need is in the file above.
TEST_SETTINGS: Final = {
    "offsets.topic.num.partitions": "6",
    "transaction.state.log.num.partitions": "6",
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.fetch.timeout.ms": "2000",
    "controller.quorum.election.timeout.ms": "1000",
    "replica.lag.time.max.ms": "6000",
    # Leaders move when the tests move them.
    "auto.leader.rebalance.enable": "false",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": "16777216",
    # Every open segment maps its indexes: a small disk must hold those of some hundred partitions.
    "log.index.size.max.bytes": "65536",
}
HEAP: Final = ["-Xms96m", "-Xmx320m"]
FLAGS: Final = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:+ExitOnOutOfMemoryError", "-Dlog4j2.level=WARN"]


class Ports(NamedTuple):
    """Where a broker listens: clients through ``proxy`` at ``client``, brokers and our own checks at ``inner``."""

    proxy: int
    client: int
    inner: int
    controller: int


class Broker:
    """A broker and controller in one process. ``start`` does not wait for it to answer: the cluster does."""

    def __init__(
        self, node: int, ports: Ports, folder: Path, java: list[str], reaper: Reaper, disk: SmallDisk | None
    ) -> None:
        self.node, self.ports, self.folder, self.disk = node, ports, folder, disk
        self.log = folder / "broker.log"
        self.properties = folder / "broker.properties"
        self._java, self._reaper = java, reaper
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def data(self) -> Path:
        """Where records are: on the small disk where there is one. The controller's own log is always beside it."""
        return self.disk.folder if self.disk is not None else self.folder / "data"

    @property
    def metadata(self) -> Path:
        """Where the controller keeps its log, and what formatting makes."""
        return self.folder / "metadata"

    @property
    def running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process's number. Raises `AssertionError` when it was never started."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process; one that runs is left alone."""
        if self.running:
            return
        self._reaped()
        command = [*self._java, "kafka.Kafka", str(self.properties)]
        if self.disk is not None:
            command = self.disk.inside(command)
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._reaper.watch(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process is there."""
        if self.running:
            self._process.send_signal(number)  # type: ignore[union-attr]

    def end(self, number: signal.Signals = signal.SIGKILL) -> int | None:
        """Send a signal and wait for the end; the exit code. One that does not go by itself is killed."""
        self.send(number)
        self.send(signal.SIGCONT)  # a paused process takes no other signal but SIGKILL
        if self._process is not None and number is not signal.SIGKILL:
            try:
                self._process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._reaped()

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends by itself; the exit code. Raises `TimeoutExpired`."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        self._reaped()
        return code

    def tail(self) -> str:
        """The end of the broker's log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else "(no log)"

    def _reaped(self) -> int | None:
        if self._process is None:
            return None
        code = self._process.wait(END_TIMEOUT_S)
        self._reaper.forget(self._process.pid)
        self._process = None
        return code
