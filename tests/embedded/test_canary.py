"""Canaries: ids and words that must turn up in no log, metric, health page or tool's output, whatever goes wrong.

Every role runs as a process at log level debug; the events hold canaries in every place where a person's id or words
may stand, good events and broken ones; blocks and states are damaged too.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from confluent_kafka import Producer

from model.null import NullScorer
from schemas.redis_keys import state_key
from schemas.shards import shard_of
from tests.real.proof import MILLRACE, Role, write_config
from tests.worker_harness import Reader, until
from worker.config import Config
from worker.demo.embedded import embedded_config, free_ports
from worker.kafka.admin import create_topics

USER = "canary-user-5e1f"
WORDS = "canaryword"
CARD = "4929123456789012"
CANARIES = (USER, WORDS, CARD, "Y2FuYXJ5")  # the last is how they begin in base64
ROLES = ("worker", "profiles", "alerts")


@pytest.fixture
def config(embedded_broker: str, embedded_redis: str, tmp_path: Path) -> Config:
    options = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
    return embedded_config(
        embedded_broker,
        embedded_redis,
        model={"artifact": "null"},
        kafka={"options": options},
        alerts={"data_dir": str(tmp_path / "alerts")},
    )


class Site:
    """The roles, running, and everything that they and the tools ever said."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.roles: dict[str, Role] = {}
        self.said: dict[str, str] = {}
        self.ports = dict(zip(ROLES, free_ports(len(ROLES)), strict=True))
        self.producer = Producer({"bootstrap.servers": config.kafka.bootstrap})
        tree = msgspec.to_builtins(config)
        for name, port in self.ports.items():
            (folder / name).mkdir()
            observe = {"log_level": "debug", "port": port}
            self.roles[name] = Role(name, write_config(folder / name, **{**tree, "observe": observe}))

    def send(self, topic: str, value: bytes | dict[str, Any], key: bytes | None = USER.encode(), **more: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.producer.produce(self.config.kafka.topic(topic), data, key, headers=[("h", CARD.encode())], **more)
        assert self.producer.flush(60) == 0

    def ask(self, name: str, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return str(error.read().decode())
        except OSError:
            return ""

    def tool(self, *arguments: str) -> None:
        """Run a command as people do; keep what it says."""
        config = self.folder / "worker" / "millrace.yaml"
        done = subprocess.run(
            [*MILLRACE, *arguments, "--config", str(config)], capture_output=True, text=True, timeout=120, check=False
        )
        self.said[" ".join(arguments)] = done.stdout + done.stderr

    def listen(self) -> None:
        """Keep what the roles have said so far."""
        for name, role in self.roles.items():
            self.said[f"{name} log"] = role.log.read_text(errors="replace")
            for path in ("metrics", "healthz", "livez"):
                if answer := self.ask(name, path):
                    self.said[f"{name} {path}"] = answer


@pytest.fixture
def site(config: Config, tmp_path: Path) -> Iterator[Site]:
    create_topics(config.kafka)
    site = Site(config, tmp_path)
    yield site
    for role in site.roles.values():
        if role.process.poll() is None:
            role.kill()


def good(now_ms: int) -> list[tuple[str, dict[str, Any]]]:
    person = {"event_time_ms": now_ms, "user_id": USER}
    return [
        ("events.click", {"event_id": "c", **person, "item_id": "i", "title": WORDS, "action": "click"}),
        ("events.click", {"event_id": "q", **person, "query": f"{WORDS} {CARD}", "action": "search"}),
        ("events.review", {"event_id": "r", **person, "item_id": "i", "text": f"{WORDS} {CARD}", "title": WORDS}),
        ("events.service", {"event_id": "s", **person, "text": f"my card is {CARD}, {WORDS}"}),
    ]


def bad(now_ms: int) -> list[tuple[str, bytes]]:
    known = b'"event_id": "b", "event_time_ms": %d, "user_id": "%s", "text": "%s"' % (
        now_ms,
        USER.encode(),
        CARD.encode(),
    )
    return [
        ("events.review", f"{USER} {WORDS} {CARD}".encode()),
        ("events.review", b"{" + known),
        ("events.review", b"{" + known + b', "stars": "%s"}' % WORDS.encode()),
        ("events.review", b"{" + known + b', "%s": NaN}' % WORDS.encode()),
        ("events.click", b"{" + known + b', "action": "%s"}' % WORDS.encode()),
        ("events.click", b"{" + known + b', "context": {"%s": []}}' % WORDS.encode()),
        (
            "events.service",
            b'{"event_id": "b", "event_time_ms": 1, "user_id": "%s", "text": "x"}' % (USER.encode() * 99),
        ),
        ("events.service", b'{"event_id": "b", "event_time_ms": "%s", "text": "x"}' % WORDS.encode()),
        ("events.service", WORDS.encode() + b"\xff"),
    ]


def test_no_canary_is_ever_said(site: Site) -> None:
    now_ms = int(time.time() * 1000)
    letters = Reader(site.config.kafka, "events.dead")
    for topic, event in good(now_ms):
        site.send(topic, event)
    for topic, value in bad(now_ms):
        site.send(topic, value)
    site.send("folds.user", USER.encode() + WORDS.encode(), partition=0)
    letters.wait(len(bad(now_ms)) + 1)
    name = state_key(NullScorer.space, "user", shard_of(USER, site.config.kafka.fold_shards), USER)
    with redis.Redis.from_url(site.config.redis.url) as client:
        until(lambda: client.get(name) is not None, "the canary's state")
        until(lambda: all(site.ask(role, "healthz") for role in ROLES), "every role to answer")
        site.listen()
        letter = letters.read()[0].key().decode()
        for arguments in (
            *(
                ("tail", "--from-beginning", "--count", "4"),
                ("tail", "events.click", "--from-beginning", "--count", "2"),
            ),
            *(("tail", "features.user", "--from-beginning", "--count", "2"), ("status",), ("status", "--json")),
            *(("tail", "events.dead", "events.review", "--from-beginning", "--count", "5", "--json"), ("doctor",)),
            *(
                ("dead", "list"),
                ("dead", "list", "--json"),
                ("dead", "show", letter),
                ("dead", "show", letter, "--json"),
            ),
            *(("dead", "replay", "--all"), ("dead", "replay", letter, "--json")),
        ):
            site.tool(*arguments)
        # Asked for, the id is there: the search below would find it.
        site.tool("tail", "events.click", "--from-beginning", "--count", "2", "--show-ids")
        assert USER in site.said.pop("tail events.click --from-beginning --count 2 --show-ids")
        # A state that is none stops profiles: it says where, not whose.
        client.set(name, f"{USER} {WORDS}")
    site.send("events.click", {"event_id": "d", "event_time_ms": now_ms, "user_id": USER, "item_id": "i"})
    for role in ROLES:
        # The tools took longer: a role that does not tell that its loop turns has stood since its start.
        assert json.loads(site.ask(role, "livez"))["loop_stood_s"] < 2
    profiles = site.roles["profiles"]
    until(lambda: profiles.process.poll() is not None, "profiles to refuse the damaged state")
    site.listen()
    for role in site.roles.values():
        if role.process.poll() is None:
            role.stop()
    site.listen()

    assert profiles.process.returncode == 4
    assert "Delete the shard's fence" in site.said["profiles log"]
    assert "dead_letters" in site.said["worker metrics"]
    assert all(site.said[f"{role} healthz"] for role in ROLES)
    assert "not_json" in site.said["dead list"]
    told = {
        source: [line for line in text.splitlines() if any(canary in line for canary in CANARIES)]
        for source, text in site.said.items()
    }
    assert {source: lines for source, lines in told.items() if lines} == {}
