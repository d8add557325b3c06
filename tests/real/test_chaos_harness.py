"""The harness of the chaos runs: that it does to three brokers and two Redis what it says it does."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.chaos.cluster import KafkaCluster
from tests.chaos.disk import refusal
from tests.chaos.proxy import Proxy
from tests.chaos.redis_pair import RedisPair
from tests.real.proof import read_all
from tests.servers import free_ports, or_skip, redis_program
from tests.worker_harness import until
from worker.config import KafkaConfig
from worker.kafka.clients import transactional_config
from worker.kafka.records import OutMessage
from worker.kafka.session import Session

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
TOPIC = "t"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    disks = {} if refusal(folder / "probe") else {3: 160}
    with or_skip(), KafkaCluster(folder, small_disks_mb=disks) as running:
        admin = AdminClient({"bootstrap.servers": running.direct})
        admin.create_topics([NewTopic(TOPIC, 3, 3)])[TOPIC].result(timeout=30)
        running.wait_until_in_sync()
        yield running


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[RedisPair]:
    with or_skip(), RedisPair(tmp_path / "redis") as running:
        yield running


def send(cluster: KafkaCluster, count: int = 30, timeout_s: float = 60.0, **options: object) -> list[KafkaError | None]:
    """Produce through the proxies with acks=all; what became of each record."""
    producer = Producer(
        {"bootstrap.servers": cluster.bootstrap, "message.timeout.ms": 60_000, "log_level": 0, **options}
    )
    outcomes: list[KafkaError | None] = []
    for n in range(count):
        producer.produce(TOPIC, b"x" * 100, partition=n % 3, on_delivery=lambda error, _: outcomes.append(error))
    producer.flush(timeout_s)
    return outcomes


def test_a_killed_broker_costs_its_leaders_and_comes_back_in_sync(cluster: KafkaCluster) -> None:
    victim = cluster.leader(TOPIC, 0)
    cluster.kill(victim)
    assert send(cluster) == [None] * 30
    assert cluster.leader(TOPIC, 0) != victim
    cluster.start(victim)
    cluster.wait_until_in_sync()


def test_with_two_brokers_gone_writes_wait_and_are_not_lost(cluster: KafkaCluster) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap, "message.timeout.ms": 90_000, "log_level": 0})
    outcomes: list[KafkaError | None] = []
    for node in (1, 2):
        cluster.kill(node)
    producer.produce(TOPIC, b"kept", partition=0, on_delivery=lambda error, _: outcomes.append(error))
    producer.flush(4)
    assert outcomes == []
    for node in (1, 2):
        cluster.start(node)
    assert producer.flush(60) == 0
    assert outcomes == [None]
    cluster.wait_until_in_sync()


def test_a_paused_broker_is_led_around_and_resumes(cluster: KafkaCluster) -> None:
    victim = cluster.leader(TOPIC, 1)
    cluster.pause(victim)
    assert send(cluster) == [None] * 30
    cluster.resume(victim)
    cluster.wait_until_in_sync()


def test_leaders_and_coordinators_move_where_they_are_told(cluster: KafkaCluster) -> None:
    before = cluster.leader(TOPIC, 2)
    target = 1 + before % 3
    assert cluster.move_leader(TOPIC, 2, target) == target == cluster.leader(TOPIC, 2)
    group = f"g-{uuid.uuid4().hex[:6]}"
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": group, "log_level": 0})
    consumer.subscribe([TOPIC])
    consumer.poll(5)
    admin = AdminClient({"bootstrap.servers": cluster.direct})
    told = admin.describe_consumer_groups([group])[group].result(timeout=30).coordinator.id
    assert cluster.group_coordinator(group) == told
    moved = cluster.move_leader(*cluster.group_home(group))
    assert moved == cluster.group_coordinator(group) != told
    consumer.close()
    producer = Producer({"bootstrap.servers": cluster.bootstrap, "transactional.id": "tx-1", "log_level": 0})
    producer.init_transactions(30)
    assert cluster.transaction_coordinator("tx-1") in cluster.brokers


def test_a_full_disk_ends_its_broker_and_space_brings_it_back(cluster: KafkaCluster, tmp_path: Path) -> None:
    if why := refusal(tmp_path / "probe"):
        pytest.skip(f"not tested here: {why}")
    assert cluster.fill_disk(3) > 0
    # Larger than what is left in the last page of a segment; two of three copies are enough for the others.
    payload = Producer({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
    for n in range(300):
        payload.produce(TOPIC, b"x" * 10_000, partition=n % 3)
    assert payload.flush(60) == 0
    assert cluster.brokers[3].wait(60) != 0
    assert "No space left" in cluster.brokers[3].log.read_text(errors="replace")
    cluster.free_disk(3)
    cluster.start(3)
    cluster.wait_until_in_sync()


def test_a_held_network_delays_and_a_reset_one_is_retried(cluster: KafkaCluster) -> None:
    for node in cluster.brokers:
        cluster.weather(node, hold_down=True)
    assert send(cluster, timeout_s=2.0) == [], "an answer came through a network that holds answers"
    for node in cluster.brokers:
        cluster.weather(node, loss=0.1, delay_ms=20, jitter_ms=20)
    # One record a request, so that there are many chances for a reset.
    assert send(cluster, **{"enable.idempotence": True, "batch.num.messages": 1}) == [None] * 30
    assert sum(cluster.proxy.stats(str(node))["resets"] for node in cluster.brokers) > 0
    for node in cluster.brokers:
        cluster.weather(node)
    assert send(cluster) == [None] * 30


def test_what_was_sent_but_not_answered_when_it_was_rolled_back_is_there_once(cluster: KafkaCluster) -> None:
    """librdkafka's own way, an abort and the same producer again, loses the five: see `worker.kafka.session`."""
    name = f"tx-{uuid.uuid4().hex[:6]}"
    topic = f"t-{name}"
    admin = AdminClient({"bootstrap.servers": cluster.direct})
    admin.create_topics([NewTopic(topic, 3, 3)])[topic].result(timeout=30)
    cluster.wait_until_in_sync()
    given_up = 0

    def note(text: str) -> None:
        nonlocal given_up
        given_up = max(given_up, sum(int(broker["req_timeouts"]) for broker in json.loads(text)["brokers"].values()))

    kafka = KafkaConfig(bootstrap=cluster.bootstrap)
    settings = transactional_config(kafka, name, 60_000)
    # A request is given up after a second, and waits to be sent again for longer than the rest of this takes.
    settings |= {"request.timeout.ms": 1000, "retry.backoff.ms": 3000, "retry.backoff.max.ms": 3000, "log_level": 0}
    settings |= {"statistics.interval.ms": 100, "stats_cb": note, "reconnect.backoff.ms": 3000}
    session = Session(lambda: Producer(settings), lambda partitions: {}, TopicPartition, str, 60.0)
    coordinator = cluster.transaction_coordinator(name)
    slow = next(p for p in range(3) if cluster.leader(topic, p) != coordinator)
    quick = next(p for p in range(3) if cluster.leader(topic, p) == coordinator)
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": name, "log_level": 0})
    messages = [OutMessage(topic, None, b"%d" % n, None, slow) for n in range(5)]
    try:
        for partition in (quick, slow):  # and with that there are connections: a new one would wait for an answer too
            assert session.produce(OutMessage(topic, None, b"first", None, partition), watched=True)
        until(lambda: session.serve(0.1) or len(session._producer) == 0, "the first answers")
        cluster.weather(cluster.leader(topic, slow), hold_down=True)
        assert all(session.produce(message, watched=True) for message in messages)
        until(lambda: session.serve(0.1) or high(cluster, topic, slow) == 6, "the messages in the log")
        until(lambda: session.serve(0.1) or given_up, "a request that is given up")
        cluster.weather(cluster.leader(topic, slow))
        session.abort()
        assert all(session.produce(message, watched=True) for message in messages)
        assert session.commit({}, consumer.consumer_group_metadata())
    finally:
        cluster.weather(cluster.leader(topic, slow))
        session.close()
        consumer.close()
    found = [message.value() for message in read_all(cluster.direct, topic)]
    assert sorted(found) == [b"0", b"1", b"2", b"3", b"4"]


def high(cluster: KafkaCluster, topic: str, partition: int) -> int:
    """The end of a partition's log, open transactions and all."""
    reader = Consumer({"bootstrap.servers": cluster.direct, "group.id": "high", "isolation.level": "read_uncommitted"})
    try:
        return int(reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])
    finally:
        reader.close()


def test_all_brokers_restart_one_after_the_other(cluster: KafkaCluster) -> None:
    cluster.rolling_restart([1, 2])
    assert send(cluster) == [None] * 30
    assert cluster.controller() in cluster.brokers


def test_the_proxy_delays_limits_refuses_and_resets(tmp_path: Path) -> None:
    """Against an echo of our own, so that times are those of the proxy."""
    port, upstream = free_ports(2)
    echo = socket.create_server(("127.0.0.1", upstream))
    proxy = Proxy(tmp_path / "proxy.log", seed=1)
    try:
        proxy.add("r", port, upstream)
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            server, _ = echo.accept()
            client.settimeout(20)
            proxy.set("r", delay_ms=300)
            began = time.monotonic()
            client.sendall(b"hello")
            assert server.recv(10) == b"hello"
            assert time.monotonic() - began >= 0.3
            proxy.set("r", bytes_per_s=200_000)
            began = time.monotonic()
            client.sendall(b"x" * 100_000)
            got = 0
            while got < 100_000:
                got += len(server.recv(65536))
            assert time.monotonic() - began >= 0.45
            proxy.set("r", hold_up=True)
            client.sendall(b"late")
            server.settimeout(0.5)
            with pytest.raises(TimeoutError):
                server.recv(10)
            proxy.set("r")
            server.settimeout(20)
            assert server.recv(10) == b"late"
            assert proxy.reset("r") == 2
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            server.close()
        proxy.set("r", refuse=True)
        # Refused as soon as it is accepted: told to the connect or to the first read.
        with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", port), 10) as client:
            client.recv(1)
        assert proxy.stats("r") == {"accepted": 2, "resets": 2, "up": 100_009, "down": 0}
    finally:
        proxy.close()
        echo.close()


def test_redis_fails_over_to_the_present_and_to_the_past(pair: RedisPair) -> None:
    with redis.Redis.from_url(pair.url, socket_timeout=5) as client:
        client.set("a", 1)
        assert client.wait(1, 5000) == 1
        pair.fail_over()
        assert client.get("a") == b"1"
        pair.rejoin()
        pair.detach()
        client.set("a", 2)
        pair.fail_over()
        assert client.get("a") == b"1", "the replica was detached before the write"
        pair.rejoin()
        pair.flush()
        assert client.get("a") is None
        client.set("b", 3)
        pair.kill(pair.primary)
        with pytest.raises(redis.ConnectionError):
            client.get("b")
        pair.start(pair.primary)
        assert client.ping()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.chaos.redis_pair import RedisPair
pair = RedisPair(Path(sys.argv[1])).__enter__()
pair.pause(pair.replica)
print(*(process.pid for process in pair._processes.values()), pair.proxy._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_outlives_tests_that_are_killed(tmp_path: Path) -> None:
    """Not even a paused server, which takes no other signal."""
    with or_skip():
        redis_program()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "redis")]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = [int(word) for word in killed.stdout.split()]
    assert len(left) == 3
    deadline = time.monotonic() + 20
    while any(map(runs, left)):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in left if runs(pid)]}"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a process is there and is no corpse that nobody buried."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False
