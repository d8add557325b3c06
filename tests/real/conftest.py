"""Real servers for the tests: Apache Kafka in KRaft mode from Maven's jars, and Debian's redis-server 7.

On a machine without them the tests are skipped, with one line that says how to get them. In CI (``CI`` is set)
they must run, so there the same line is a failure.
"""

from __future__ import annotations

import contextlib
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
from tests.servers import SCRIPT, free_ports, kafka_script, or_skip, redis_program

START_TIMEOUT_S = 90.0


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
    with or_skip():
        kafka_script("fetch")
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
    """URL of a redis-server 7 of the test's own, set up as the contract wants it: noeviction, and a file."""
    with or_skip():
        program = redis_program()
    (port,) = free_ports(1)
    url = f"redis://127.0.0.1:{port}/0"
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    log = tmp_path / "redis-server.out"
    with server([*command, "--maxmemory-policy", "noeviction", "--appendonly", "yes"], log, lambda: redis_answers(url)):
        yield url
