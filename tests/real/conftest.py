"""Real servers for the tests: Apache Kafka in KRaft mode from Maven's jars, and Debian's redis-server 7.

On a machine without them the tests are skipped, with one line that says how to get them. In CI (``CI`` is set)
they must run, so there the same line is a failure.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.topics import TOPICS

START_TIMEOUT_S = 90.0
FETCH_TIMEOUT_S = 600.0
SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "kafka"


def unavailable(what: str) -> None:
    """Skip, or fail where the tests must run."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} (CI is set, so the real tests must run)", pytrace=False)
    pytest.skip(what)


def free_ports(count: int) -> list[int]:
    """Ports that are free now. All are held until the last is known, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def server(command: list[str], log: Path, answers: Callable[[], bool]) -> Iterator[None]:
    """Run a server until the context closes; open once it answers. Fails with its log when it does not."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers():
            gone = process.poll() is not None
            if gone or time.monotonic() > deadline:
                state = f"ended with {process.returncode}" if gone else f"is silent after {START_TIMEOUT_S:.0f} s"
                pytest.fail(f"{command[0]} {state}:\n{log.read_text(errors='replace')[-2000:]}", pytrace=False)
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def kafka_answers(bootstrap: str) -> bool:
    """Whether a broker is listed at the address."""
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        return bool(client.list_topics(timeout=2).brokers)
    except KafkaException:
        return False


def redis_answers(url: str) -> bool:
    """Whether Redis answers at the URL."""
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of one real broker for the whole session."""
    if not shutil.which("java") or not shutil.which("mvn"):
        unavailable("Kafka needs Java 17 and Maven: apt-get install openjdk-17-jre-headless maven")
    fetched = subprocess.run([SCRIPT, "fetch"], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    if fetched.returncode != 0:
        unavailable(f"Kafka's jars could not be fetched by Maven: {fetched.stderr.strip()[-500:]}")
    folder = tmp_path_factory.mktemp("kafka")
    port, controller_port = free_ports(2)
    command = [str(SCRIPT), "run", "--port", str(port), "--controller-port", str(controller_port)]
    bootstrap = f"127.0.0.1:{port}"
    with server([*command, "--data", str(folder)], folder / "server.out", lambda: kafka_answers(bootstrap)):
        yield bootstrap


@pytest.fixture
def kafka_config(kafka_bootstrap: str) -> dict[str, Any]:
    """A ``kafka`` section of the test's own: topics and groups that nobody else names. The topics are not made."""
    run = uuid.uuid4().hex[:8]
    return {
        "bootstrap": kafka_bootstrap,
        "group_prefix": f"millrace-{run}",
        "fold_shards": 8,
        "topics": {name: f"{name}-{run}" for name in TOPICS},
    }


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """URL of a redis-server 7 of the test's own, set up as the contract wants it: noeviction."""
    program = shutil.which("redis-server")
    version = ""
    if program:
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    found = re.search(r"v=(\d+)", version)
    if found is None or int(found[1]) < 7:
        unavailable("Redis tests need redis-server 7 or later: apt-get install redis-server")
    (port,) = free_ports(1)
    url = f"redis://127.0.0.1:{port}/0"
    command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    log = tmp_path / "redis-server.out"
    with server([*command, "--maxmemory-policy", "noeviction"], log, lambda: redis_answers(url)):
        yield url
