"""Servers that ask who one is: Kafka over TLS with SCRAM and access control lists, Redis over TLS with ACL users.

The certificates are made here, for 127.0.0.1, by a CA that lives as long as the test. Between brokers, and for our
own checks, Kafka stays plain on loopback: there everybody is the super user ``ANONYMOUS``.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import redis
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.chaos.cluster import KafkaCluster
from tests.chaos.reaper import Reaper
from tests.servers import free_ports, redis_program

REDIS_ACL: Final = Path(__file__).resolve().parents[2] / "deploy" / "redis" / "users.acl"
REDIS_TIMEOUT_S: Final = 20.0


class Certificates:
    """A CA, a server's certificate and key for 127.0.0.1 in PEM files, and a stranger's CA."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca, self.stranger = folder / "ca.pem", folder / "stranger.pem"
        self.certificate, self.key, self.both = folder / "server.crt", folder / "server.key", folder / "server.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.stranger)
        issued = authority.issue_cert("127.0.0.1", "localhost")
        # Kafka reads keys in PKCS #8 only.
        key = load_pem_private_key(issued.private_key_pem.bytes(), None)
        self.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        self.both.write_bytes(self.key.read_bytes() + self.certificate.read_bytes())


def secured_kafka(folder: Path, certificates: Certificates, passwords: dict[str, str]) -> KafkaCluster:
    """One broker whose clients need TLS, a SCRAM password, and rights. User ``admin`` may do anything."""
    listener = "listener.name.client.scram-sha-512.sasl.jaas.config"
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.both),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        listener: "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:admin;User:ANONYMOUS",
    }
    return KafkaCluster(folder, nodes=1, protocol="SASL_SSL", settings=settings, scram=passwords)


@contextmanager
def secured_redis(folder: Path, certificates: Certificates, passwords: dict[str, str]) -> Iterator[int]:
    """redis-server with TLS only and the users of ``deploy/redis/users.acl``; its port.

    ``passwords`` by role: worker, profiles, operator.
    """
    text = REDIS_ACL.read_text(encoding="utf-8")
    for role, password in passwords.items():
        text = text.replace(f"{role.upper()}_SHA256", hashlib.sha256(password.encode()).hexdigest())
    # Redis takes no comments in an ACL file.
    users = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    assert not re.search(r"[A-Z]_SHA256", users), "a user of the ACL file has no password"
    folder.mkdir(parents=True)
    (folder / "users.acl").write_text(users, encoding="utf-8")
    (port,) = free_ports(1)
    command = [redis_program(), "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--tls-cert-file", str(certificates.certificate), "--tls-key-file", str(certificates.key)]
    command += ["--tls-ca-cert-file", str(certificates.ca), "--tls-auth-clients", "no", "--appendonly", "yes"]
    command += ["--aclfile", str(folder / "users.acl"), "--maxmemory-policy", "noeviction", "--save", ""]
    reaper, log = Reaper(), folder / "redis.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        reaper.watch(process.pid)
        client = redis.Redis(port=port, ssl=True, ssl_ca_certs=str(certificates.ca), socket_timeout=5)
        deadline = time.monotonic() + REDIS_TIMEOUT_S
        while not _asks_who(client):
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)
        client.close()
        yield port
    finally:
        process.kill()
        process.wait(REDIS_TIMEOUT_S)
        reaper.close()


def _asks_who(client: redis.Redis) -> bool:
    """Whether the server answers at all: without a password it only says that it wants one."""
    try:
        client.ping()
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False
    raise AssertionError("Redis answers without asking who we are")
