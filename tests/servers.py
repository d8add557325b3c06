"""What tests that start servers share: free ports, Kafka's jars, and saying what the machine lacks."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

FETCH_TIMEOUT_S = 600.0
REGISTRY = "3.0.9"
"""Apicurio's: the last releases want Java 21."""
NOT_YET = frozenset(
    {KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE}
    | {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART}
)
"""What a broker says that has just made a topic, or met a group for the first time: ask again."""
SCRIPT = Path(__file__).resolve().parents[1] / "deploy" / "kafka" / "kafka"


class MissingError(Exception):
    """The machine lacks what a server needs. The message says how to get it."""


@contextlib.contextmanager
def or_skip() -> Iterator[None]:
    """Skip the test where a server is missing, or fail where the tests must run (``CI`` is set)."""
    try:
        yield
    except MissingError as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{missing} (CI is set, so the real tests must run)", pytrace=False)
        pytest.skip(str(missing))


def free_ports(count: int) -> list[int]:
    """Ports that are free now. All are held until the last is known, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def kafka_script(*arguments: str) -> str:
    """Run ``deploy/kafka/kafka``; its output. Raises `MissingError` without Java, Maven or the jars."""
    if not shutil.which("java") or not shutil.which("mvn"):
        raise MissingError("Kafka needs Java 17 and Maven: apt-get install openjdk-17-jre-headless maven")
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise MissingError(f"deploy/kafka/kafka {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def registry_jar() -> Path:
    """The jar of a schema registry that speaks Confluent's API too, fetched by Maven once; `MissingError` without."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "millrace" / f"registry-{REGISTRY}"
    jar = folder / f"apicurio-registry-app-{REGISTRY}-runner.jar"
    if jar.exists():
        return jar
    if not shutil.which("java") or not shutil.which("mvn"):
        raise MissingError("the schema registry needs Java 17 and Maven: apt-get install openjdk-17-jre-headless maven")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        artifact = f"io.apicurio:apicurio-registry-app:{REGISTRY}:tar.gz:all"
        command = ["mvn", "--batch-mode", "--quiet", "dependency:copy", f"-Dartifact={artifact}"]
        done = subprocess.run(
            [*command, f"-DoutputDirectory={fresh}"],
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise MissingError(f"{' '.join(command)}: {done.stdout.strip()[-500:]}")
        (archive,) = Path(fresh).glob("*.tar.gz")
        shutil.unpack_archive(archive, fresh, filter="data")
        archive.unlink()
        with contextlib.suppress(OSError):  # another process was quicker
            Path(fresh).rename(folder)
            Path(fresh).mkdir()  # for the context to take away
    return jar


def redis_program() -> str:
    """The path of a redis-server 7 or later. Raises `MissingError` where there is none."""
    program = shutil.which("redis-server")
    version = ""
    if program:
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    found = re.search(r"v=(\d+)", version)
    if program is None or found is None or int(found[1]) < 7:
        raise MissingError("Redis tests need redis-server 7 or later: apt-get install redis-server")
    return program


def chromium_program() -> str:
    """The path of a Chromium. Raises `MissingError` where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if program := shutil.which(name):
            return program
    raise MissingError("Tests of pages need a browser: apt-get install chromium")


def read_properties(path: Path) -> dict[str, str]:
    """A Java properties file without continuation lines, as Kafka's are."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
