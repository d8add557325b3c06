"""The whole path on servers that ask who one is: TLS, SCRAM and ACL on Kafka, TLS and ACL users on Redis.

Each role is a process with a user of its own and exactly the rights that `millrace topics acls` lists; passwords come
from files. What is wrong with a password, a CA or a right ends a role with one clear line and its exit code.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import yaml
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from schemas.topics import FOLDS, INPUTS, OPINIONS
from tests.chaos.cluster import KafkaCluster
from tests.chaos.secured import Certificates, secured_kafka, secured_redis
from tests.real.proof import DEADLINE_S, MILLRACE, SCORES, Role, read_all, state_mismatches, wait_until_committed
from tests.servers import or_skip
from worker.config import Config, load_config
from worker.errors import KafkaRefusedError
from worker.kafka.clients import producer_config, translate

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
# Passwords that YAML would read as something else, and that a URL must escape.
PASSWORDS = {
    "admin": "no",
    "worker": "0123",
    "profiles": "p@ss:w/rd#1",
    "alerts": "1e5",
    "notify": "~",
    "operator": "true",
}


class Site:
    """The secured servers, and what each role needs to reach them."""

    def __init__(self, folder: Path, kafka: KafkaCluster, redis_port: int, certificates: Certificates) -> None:
        self.folder, self.kafka, self.redis_port, self.certificates = folder, kafka, redis_port, certificates
        for role, password in PASSWORDS.items():
            self.secret(f"{role}.password", password + "\n")
            self.secret(f"{role}.redis", self.redis_url(role) + "\n")

    def secret(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def redis_url(self, role: str, password: str | None = None, ca: Path | None = None) -> str:
        word = quote(password or PASSWORDS[role], safe="")
        return (
            f"rediss://millrace-{role}:{word}@127.0.0.1:{self.redis_port}/0?ssl_ca_certs={ca or self.certificates.ca}"
        )

    def config(self, role: str, **options: Any) -> Path:
        """The configuration file of a role: nothing in it is secret."""
        user = "admin" if role == "admin" else f"millrace-{role}"
        security = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": user}
        kafka = {
            "bootstrap": self.kafka.bootstrap,
            "fold_shards": 4,
            "backfill": {"old.reviews": "events.review"},
            "options": {**security, "ssl.ca.location": str(self.certificates.ca), **options},
        }
        sections = {"kafka": kafka, "model": {"artifact": "null"}, "observe": {"log_level": "info"}}
        sections["alerts"] = {"data_dir": str(self.folder / "alerts")}
        path = self.folder / f"{role}-{len(list(self.folder.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(sections), encoding="utf-8")
        return path

    def env(self, role: str, **files: Path) -> dict[str, str]:
        """The environment of a role: names of files only."""
        named = {
            "MILLRACE_KAFKA__OPTIONS__SASL_PASSWORD_FILE": self.folder / f"{role}.password",
            "MILLRACE_REDIS__URL_FILE": self.folder / f"{role}.redis",
            **files,
        }
        return {**os.environ, **{name: str(path) for name, path in named.items()}}

    def run(self, role: str, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Any:
        """A command under a role's user, to its end."""
        command = [*MILLRACE, *arguments, "--config", str(self.config(role, **options))]
        env = env or self.env(role)
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("secured")
    certificates = Certificates(folder / "tls")
    users = {("admin" if role == "admin" else f"millrace-{role}"): word for role, word in PASSWORDS.items()}
    redis_words = {role: PASSWORDS[role] for role in ("worker", "profiles", "operator")}
    with (
        or_skip(),
        secured_kafka(folder / "kafka", certificates, users) as kafka,
        secured_redis(folder / "redis", certificates, redis_words) as port,
    ):
        secrets = folder / "secrets"
        secrets.mkdir()
        site = Site(secrets, kafka, port, certificates)
        added = site.run("admin", "topics", "acls", "--apply")
        assert added.returncode == 0, added.stderr
        made = site.run("operator", "topics", "create")
        assert made.returncode == 0, made.stderr
        assert "old.reviews" in made.stdout
        yield site


def test_all_roles_run_end_to_end_with_exactly_their_rights(site: Site, tmp_path: Path) -> None:
    row = {"text": "快递很快", "stars": 5}
    rows = [{**row, "user_id": f"u{n % 7}", "item_id": f"i{n % 3}", "ts": 1700000000 + n} for n in range(60)]
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    sent = site.run("operator", "replay", str(file), "--topic", "events.review")
    assert sent.returncode == 0, sent.stderr
    roles = [Role(name, site.config(name), env=site.env(name)) for name in ("worker", "profiles", "alerts")]
    try:
        direct = site.kafka.direct
        wait_until_committed(direct, "millrace.worker", list(INPUTS), roles[:1])
        assert count_committed(direct) == 60
        # Ends of topics written in transactions count their markers: what was read is asked for in other ways.
        scales = Config().profiles.scales_s
        until(
            lambda: state_mismatches(direct, site.redis_url("profiles"), FOLDS["user"], "user", scales)[:2] == (7, 0),
            "the states of seven users",
            roles,
        )
        until(lambda: committed(direct, "millrace.alerts", OPINIONS) > 0, "opinions counted by alerts", roles)
        status = site.run("operator", "status", "--json")
        assert status.returncode == 0, status.stderr
        told = json.loads(status.stdout)
        assert told["fences_error"] is None
        assert "old.reviews" in status.stdout
        assert sum(fence["fence"] or 0 for fence in told["fences"]) > 0
        examined = site.run("operator", "doctor", "--replication", "1", "--json")
        assert examined.returncode == 0, examined.stdout
        found = {check["name"]: check["found"] for check in json.loads(examined.stdout)}
        assert "not visible" not in found["broker settings"]
        erased = site.run("operator", "erase", "u1", "--yes", "--json")
        assert json.loads(erased.stdout)["redis"] == "deleted", erased.stdout + erased.stderr
        followed = site.run("operator", "tail", "scores.sentiment", "--from-beginning", "--count", "3", "--json")
        assert len(followed.stdout.splitlines()) == 3, followed.stderr
        broken = Producer({"bootstrap.servers": direct})
        broken.produce("events.review", b"not json", b"u3")
        broken.produce("old.reviews", b"not json", b"u3")
        broken.produce(FOLDS["item"], b"no fold", b"i1")
        assert broken.flush(30) == 0
        until(lambda: sum(1 for _ in read_all(direct, "events.dead")) == 3, "three dead letters", roles)
        replayed = site.run("operator", "dead", "replay", "--all", "--yes", "--json")
        assert replayed.returncode == 0, replayed.stderr
        assert json.loads(replayed.stdout)["replayed"] == 3
        erased = site.run("operator", "erase", "u3", "--yes", "--json")
        assert erased.returncode == 0, erased.stdout + erased.stderr
        assert json.loads(erased.stdout)["redis"] == "deleted"
    finally:
        with contextlib.ExitStack() as stopping:  # each, whatever another one says
            for role in roles:
                if role.process.poll() is None:
                    stopping.callback(role.stop)
    for role in roles:
        text = role.log.read_text(encoding="utf-8")
        assert not any(word in text for word in (PASSWORDS["worker"] + "@", PASSWORDS["profiles"])), (
            "a secret is logged"
        )


def until(condition: Callable[[], bool], what: str, roles: list[Role]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        for role in roles:
            role.check()
        assert time.monotonic() < deadline, f"{what}: not within {DEADLINE_S:.0f} s\n{roles[-1].tail()}"
        time.sleep(0.3)


def committed(bootstrap: str, group: str, topic: str) -> int:
    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    parts = [TopicPartition(topic, n) for n in reader.list_topics(topic, timeout=20).topics[topic].partitions]
    found = sum(max(0, part.offset) for part in reader.committed(parts, timeout=20))
    reader.close()
    return found


def count_committed(bootstrap: str) -> int:
    return sum(1 for topic in SCORES for _ in read_all(bootstrap, topic))


@pytest.mark.parametrize(
    ("role", "what", "code", "says"),
    [
        ("worker", "kafka password", 3, ("refused us", "kafka.options")),
        ("worker", "kafka ca", 3, ("refused us", "certificate verify failed")),
        ("profiles", "kafka password", 3, ("refused us", "kafka.options")),
        ("alerts", "kafka password", 3, ("refused us", "kafka.options")),
        ("profiles", "redis password", 4, ("user or password", "MILLRACE_REDIS__URL_FILE")),
        ("profiles", "redis ca", 4, ("certificate is not trusted", "ssl_ca_certs")),
        ("profiles", "redis user", 4, ("lacks a right", "deploy/redis/users.acl")),
    ],
)
def test_what_is_wrong_ends_the_role_with_one_clear_line(
    site: Site, role: str, what: str, code: int, says: tuple[str, ...]
) -> None:
    wrong = site.secret(f"wrong-{role}-{what.replace(' ', '-')}", "wrong")
    env, options = site.env(role), {}
    match what:
        case "kafka password":
            env = site.env(role, MILLRACE_KAFKA__OPTIONS__SASL_PASSWORD_FILE=wrong)
        case "kafka ca":
            options = {"ssl.ca.location": str(site.certificates.stranger)}
        case "redis password":
            wrong.write_text(site.redis_url(role, password="wrong"))
            env = site.env(role, MILLRACE_REDIS__URL_FILE=wrong)
        case "redis ca":
            wrong.write_text(site.redis_url(role, ca=site.certificates.stranger))
            env = site.env(role, MILLRACE_REDIS__URL_FILE=wrong)
        case "redis user":
            wrong.write_text(site.redis_url("worker"))
            env = site.env(role, MILLRACE_REDIS__URL_FILE=wrong)
    ended = site.run(role, role, env=env, **options)
    last = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == code, ended.stderr
    assert json.loads(last)["event"].startswith(f"{role} ended: ")
    assert all(part in last for part in says), last
    assert "Traceback" not in ended.stderr


def revoke(site: Site, user: str, resource: ResourceType, operation: AclOperation) -> None:
    admin = AdminClient({"bootstrap.servers": site.kafka.direct})
    pattern = AclBindingFilter(
        resource, None, ResourcePatternType.ANY, f"User:{user}", None, operation, AclPermissionType.ALLOW
    )
    (future,) = admin.delete_acls([pattern]).values()
    assert future.result(timeout=30), "nothing was revoked"


@pytest.mark.parametrize(
    ("resource", "operation", "says"),
    [
        (ResourceType.TOPIC, AclOperation.READ, "events."),
        (ResourceType.TOPIC, AclOperation.WRITE, "scores."),
        (ResourceType.GROUP, AclOperation.READ, "Group authorization failed"),
        (ResourceType.TRANSACTIONAL_ID, AclOperation.WRITE, "Transactional Id authorization failed"),
    ],
)
def test_each_missing_right_of_the_worker_is_named(
    site: Site, resource: ResourceType, operation: AclOperation, says: str
) -> None:
    revoke(site, "millrace-worker", resource, operation)
    if resource is ResourceType.TRANSACTIONAL_ID:
        revoke(site, "millrace-worker", resource, AclOperation.DESCRIBE)
    try:
        ended = site.run("worker", "worker")
        last = ended.stderr.strip().splitlines()[-1]
        assert ended.returncode == 3, ended.stderr
        assert says in last
        assert "millrace topics acls" in last
    finally:
        again = site.run("admin", "topics", "acls", "--role", "worker", "--apply")
        assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("role", ["worker", "profiles"])
def test_a_right_taken_from_a_running_role_ends_it(site: Site, role: str) -> None:
    running = Role(role, site.config(role), env=site.env(role))
    try:
        until(lambda: members(site, f"millrace.{role}") > 0, "a member with partitions", [running])
        revoke(site, f"millrace-{role}", ResourceType.GROUP, AclOperation.READ)
        assert running.process.wait(60) == 3, running.tail()
        assert "millrace topics acls" in running.tail().splitlines()[-1]
    finally:
        if running.process.poll() is None:
            running.kill()
        assert site.run("admin", "topics", "acls", "--role", role, "--apply").returncode == 0


def members(site: Site, group: str) -> int:
    """Members of a group that have partitions; none while the group has no coordinator yet."""
    admin = AdminClient({"bootstrap.servers": site.kafka.direct})
    try:
        found = admin.describe_consumer_groups([group], request_timeout=5)[group].result(timeout=20).members
    except KafkaException:
        return 0
    return sum(bool(member.assignment and member.assignment.topic_partitions) for member in found)


def test_a_worker_may_not_take_the_transactional_id_of_another_service(site: Site) -> None:
    config = load_config(site.config("worker"), env=site.env("worker"))
    options = {**config.kafka.options, "transactional.id": "billing"}
    stranger = Producer(producer_config(msgspec.structs.replace(config.kafka, options=options)))
    with pytest.raises(KafkaException) as caught:
        stranger.init_transactions(30)
    assert isinstance(translate(caught.value, doing="starting"), KafkaRefusedError)
