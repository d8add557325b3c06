"""Three real Kafka brokers behind a bad network, to be killed, paused, filled, moved and restarted.

    with KafkaCluster(folder, small_disks_mb={3: 300}) as cluster:
        config = {"bootstrap": cluster.bootstrap}     # what is under test comes through the proxies
        cluster.kill(1); cluster.start(1); cluster.wait_until_in_sync()
        cluster.weather(2, delay_ms=200, loss=0.01)   # see tests.chaos.proxy.Weather
        cluster.move_leader("events.click", 0)

`bootstrap` leads through the proxies, `direct` past them: checks and faults are not hindered by the faults. Brokers
talk to each other directly. Every wait has a deadline and names what it waited for; every broker's log is in its
folder; whatever happens to the tests, `Reaper` ends the servers.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import confluent_kafka
import kafka.errors
from confluent_kafka.admin import AdminClient
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from tests.chaos.broker import FLAGS, HEAP, Broker, Ports
from tests.chaos.disk import SmallDisk
from tests.chaos.layout import Layout
from tests.chaos.proxy import Proxy
from tests.chaos.reaper import Reaper
from tests.servers import free_ports, kafka_script

START_TIMEOUT_S: Final = 120.0
SETTLE_TIMEOUT_S: Final = 90.0
REQUEST_TIMEOUT_S: Final = 5.0
TRANSACTION_LOG: Final = "__transaction_state"
GROUP_LOG: Final = "__consumer_offsets"


class KafkaCluster:
    """The cluster; a context that runs while it is open. Nodes are 1, 2, 3.

    ``settings`` go to every broker, over those of ``deploy/kafka/cluster.properties``. ``protocol`` is what clients
    must speak (``SASL_SSL``, with the settings it needs); ``scram`` are users and passwords that exist from the
    start. ``small_disks_mb`` puts the records of a node on a disk of its own that `fill_disk` can fill.

    Raises `tests.servers.MissingError` without Java, Maven or the jars.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 3,
        seed: int = 0,
        protocol: str = "PLAINTEXT",
        settings: Mapping[str, str] | None = None,
        scram: Mapping[str, str] | None = None,
        small_disks_mb: Mapping[int, int] | None = None,
    ) -> None:
        self.folder, self._seed, self._protocol = folder, seed, protocol
        self._settings, self._scram = dict(settings or {}), dict(scram or {})
        self._disks_mb = dict(small_disks_mb or {})
        chosen = free_ports(4 * nodes)
        self._ports = {node: Ports(*chosen[4 * node - 4 : 4 * node]) for node in range(1, nodes + 1)}
        self.bootstrap = ",".join(f"127.0.0.1:{ports.proxy}" for ports in self._ports.values())
        self.direct = ",".join(f"127.0.0.1:{ports.inner}" for ports in self._ports.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.brokers: dict[int, Broker] = {}
        self._asleep: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> KafkaCluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        jars, classes = kafka_script("jars"), kafka_script("archive")
        quick = [f"-XX:SharedArchiveFile={classes}"] if classes else []
        self._java = ["java", *HEAP, *quick, *FLAGS, "-cp", f"{jars}/*"]
        with ExitStack() as stack:
            reaper = Reaper()
            stack.callback(reaper.close)
            self.proxy = Proxy(self.folder / "proxy.log", self._seed)
            stack.callback(self.proxy.close)
            for node, ports in self._ports.items():
                folder = self.folder / f"broker-{node}"
                disk = SmallDisk(folder / "disk", self._disks_mb[node]) if node in self._disks_mb else None
                if disk is not None:
                    stack.callback(disk.close)
                broker = self.brokers[node] = Broker(node, ports, folder, self._java, reaper, disk)
                stack.callback(broker.end)
                self.proxy.add(str(node), ports.proxy, ports.client)
            layout = Layout(self._ports, self._protocol, self._settings)
            layout.prepare(self.folder / "formatted", list(self.brokers.values()), self._java, self._scram)
            for broker in self.brokers.values():
                broker.start()
            self._admin = AdminClient({"bootstrap.servers": self.direct, "socket.timeout.ms": 4000, "log_level": 0})
            self.wait_until_joined(START_TIMEOUT_S)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -- processes

    def kill(self, node: int) -> None:
        """kill -9, and wait until it is gone."""
        self.brokers[node].end(signal.SIGKILL)
        self._asleep.discard(node)

    def stop(self, node: int) -> None:
        """A clean end: leaders move away first."""
        self.brokers[node].end(signal.SIGTERM)
        self._asleep.discard(node)

    def pause(self, node: int) -> None:
        """SIGSTOP: the machine hangs, its connections stay open."""
        self._asleep.add(node)
        self.brokers[node].send(signal.SIGSTOP)

    def resume(self, node: int) -> None:
        """SIGCONT."""
        self.brokers[node].send(signal.SIGCONT)
        self._asleep.discard(node)

    def start(self, node: int) -> None:
        """Start a broker that was killed or stopped; does not wait for it."""
        self.brokers[node].start()

    def rolling_restart(self, order: list[int] | None = None) -> None:
        """Stop and start one broker after the other, each only when all copies are in sync again."""
        for node in order or list(self.brokers):
            self.stop(node)
            self.start(node)
            self.wait_until_in_sync()

    # -- disk and network

    def fill_disk(self, node: int) -> int:
        """Leave no byte on the broker's small disk: Kafka gives such a log folder up, and the broker ends."""
        disk = self.brokers[node].disk
        assert disk is not None, f"broker {node} has no small disk: small_disks_mb={{{node}: …}}"
        return disk.fill()

    def free_disk(self, node: int) -> None:
        """Give the space back; a broker that ended is not started."""
        disk = self.brokers[node].disk
        assert disk is not None
        disk.free()

    def weather(self, node: int, **weather: Any) -> None:
        """Set the network in front of a broker: fields of `tests.chaos.proxy.Weather`; none means fair."""
        self.proxy.set(str(node), **weather)

    def cut(self, node: int) -> int:
        """Reset every client's connection to a broker."""
        return self.proxy.reset(str(node))

    # -- leaders and coordinators

    def leader(self, topic: str, partition: int) -> int:
        """The leader of a partition, -1 where there is none now."""
        return int(self._topic(topic).partitions[partition].leader)

    def move_leader(self, topic: str, partition: int, to: int | None = None) -> int:
        """Make another copy the leader: reorder the copies and elect the preferred one. Returns the new leader.

        Without ``to`` the next copy that is in sync is taken, as soon as there is one.
        """
        if to is None:
            self._until(lambda: bool(self._others(topic, partition)), f"another copy of {topic}/{partition} in sync")
        found = self._topic(topic).partitions[partition]
        target = to if to is not None else next(iter(self._others(topic, partition)), None)
        assert target in found.replicas, f"{topic}/{partition}: {target} is none of the copies {found.replicas}"
        order = [target, *(node for node in found.replicas if node != target)]
        answer = self._ask(lambda tool: tool.alter_partition_reassignments({TopicPartition(topic, partition): order}))
        assert not any(answer.values()), f"{topic}/{partition} to {target}: {answer}"
        self._ask(lambda tool: tool.elect_leaders(0, {topic: [partition]}))
        self._until(lambda: self.leader(topic, partition) == target, f"{topic}/{partition} led by {target}")
        return target

    def group_coordinator(self, group: str) -> int:
        """The broker that coordinates a consumer group."""
        return self.leader(*self.group_home(group))

    def transaction_coordinator(self, transactional_id: str) -> int:
        """The broker that coordinates a transactional id."""
        return self.leader(*self.transaction_home(transactional_id))

    def group_home(self, group: str) -> tuple[str, int]:
        """Topic and partition that hold a group, for `move_leader`."""
        return GROUP_LOG, _slot(group, len(self._topic(GROUP_LOG).partitions))

    def transaction_home(self, transactional_id: str) -> tuple[str, int]:
        """Topic and partition that hold a transactional id, for `move_leader`."""
        return TRANSACTION_LOG, _slot(transactional_id, len(self._topic(TRANSACTION_LOG).partitions))

    def controller(self) -> int:
        """The active controller."""
        quorum = self._ask(lambda tool: tool.describe_metadata_quorum())
        return int(quorum["topics"][0]["partitions"][0]["leader_id"])

    # -- waiting

    def wait_until_joined(self, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait until every broker that runs serves requests and is known to the others."""
        # Listening first: the others know a broker that was killed until its session ends, and only then may a new
        # one take its place and open its port.
        self._until(lambda: all(map(self._listens, self._running())), "all brokers listening", timeout_s)
        self._until(lambda: set(self._metadata().brokers) >= self._running(), "all brokers in the cluster", timeout_s)

    def wait_until_in_sync(self, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait until every copy of every partition is in sync: then one more broker may be lost."""
        self.wait_until_joined(timeout_s)
        self._until(lambda: not self._behind(), "all copies in sync", timeout_s)

    def _behind(self) -> list[str]:
        topics = self._metadata().topics.items()
        parts = ((f"{name}/{number}", part) for name, topic in topics for number, part in topic.partitions.items())
        return [name for name, part in parts if part.leader < 0 or set(part.isrs) != set(part.replicas)]

    def _listens(self, node: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._ports[node].inner), REQUEST_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    def _others(self, topic: str, partition: int) -> list[int]:
        found = self._topic(topic).partitions[partition]
        return [node for node in found.isrs if node != found.leader]

    def _running(self) -> set[int]:
        return {node for node, broker in self.brokers.items() if broker.running}

    def _topic(self, name: str) -> Any:
        # A broker may be asked that has not heard of a topic just made.
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while (found := self._metadata().topics.get(name)) is None or not found.partitions:
            if time.monotonic() > deadline:
                raise TimeoutError(f"topic {name}: not listed within {SETTLE_TIMEOUT_S:.0f} s")
            time.sleep(0.1)
        return found

    def _metadata(self) -> Any:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            try:
                return self._admin.list_topics(timeout=REQUEST_TIMEOUT_S)
            except confluent_kafka.KafkaException as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no broker tells of the cluster: {error}\n{self._tails()}") from error

    def _until(self, condition: Callable[[], bool], what: str, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {timeout_s:.0f} s\n{self._tails()}")
            time.sleep(0.1)

    def _tails(self) -> str:
        return "\n".join(f"broker {node}: {broker.tail()}" for node, broker in self.brokers.items())

    def _ask(self, request: Callable[[KafkaAdminClient], Any]) -> Any:
        """One of Kafka's admin requests that librdkafka does not have; all of those used here may be repeated.

        The client is made anew for each try: it finds its controller once, and controllers and brokers come and go.
        A broker that sleeps takes the connection and says nothing, so it is not asked.
        """
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            try:
                awake = [f"127.0.0.1:{self._ports[node].inner}" for node in self.brokers if node not in self._asleep]
                with closing(KafkaAdminClient(bootstrap_servers=awake, request_timeout_ms=10_000)) as tool:
                    return request(tool)
            except kafka.errors.KafkaError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


def _slot(name: str, partitions: int) -> int:
    """The partition of a coordinator's log that holds a name: Java's ``abs(name.hashCode()) % partitions``."""
    value = 0
    for character in name:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >> 31 else value
    return (0 if signed == -(1 << 31) else abs(signed)) % partitions
