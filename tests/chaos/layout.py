"""What brokers find when they start: their settings, and formatted folders."""

from __future__ import annotations

import base64
import itertools
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.chaos.broker import CLUSTER_SETTINGS, TEST_SETTINGS, Broker, Ports
from tests.servers import read_properties

CLUSTER_ID: Final = "MillraceTestsMillrace0"
FORMAT_TIMEOUT_S: Final = 120.0


class Layout:
    """Settings and folders of a cluster. ``settings`` go over the shipped ones, on every broker."""

    def __init__(self, ports: Mapping[int, Ports], protocol: str, settings: Mapping[str, str]) -> None:
        self._ports, self._protocol, self._settings = ports, protocol, settings

    def prepare(self, template: Path, brokers: list[Broker], java: list[str], scram: Mapping[str, str]) -> None:
        """Write every broker's settings, format one's folders and copy them: a Java process less for each.

        ``scram``: users that exist from the start, with their passwords.
        """
        for broker in brokers:
            self._write_properties(broker)
        self._format(template, brokers[0], java, scram)
        for broker, name in itertools.product(brokers, ("data", "metadata")):
            target: Path = getattr(broker, name)
            if name == "data" and broker.disk is not None:
                target = broker.disk.seen(target)
            shutil.copytree(template / name, target, dirs_exist_ok=True)
            meta = read_properties(target / "meta.properties")
            meta |= {"node.id": str(broker.node), "directory.id": _kafka_id()}
            (target / "meta.properties").write_text("".join(f"{key}={value}\n" for key, value in meta.items()))

    def _write_properties(self, broker: Broker) -> None:
        ports, copies = broker.ports, str(min(3, len(self._ports)))
        voters = ",".join(f"{node}@127.0.0.1:{each.controller}" for node, each in self._ports.items())
        own = {
            "process.roles": "broker,controller",
            "node.id": str(broker.node),
            "listeners": f"CLIENT://127.0.0.1:{ports.client},INNER://127.0.0.1:{ports.inner},"
            f"CONTROLLER://127.0.0.1:{ports.controller}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{ports.proxy},INNER://127.0.0.1:{ports.inner}",
            "listener.security.protocol.map": f"CLIENT:{self._protocol},INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INNER",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": voters,
            "log.dirs": str(broker.data),
            "metadata.log.dir": str(broker.metadata),
        }
        settings = {**read_properties(CLUSTER_SETTINGS), **TEST_SETTINGS}
        if len(self._ports) < 3:  # one broker can keep one copy
            settings |= {key: copies for key in settings if key.endswith("replication.factor")}
            settings |= {key: "1" for key in settings if key.endswith(("min.isr", "min.insync.replicas"))}
        lines = {**settings, **own, **self._settings}
        broker.properties.write_text("".join(f"{key}={value}\n" for key, value in lines.items()), encoding="utf-8")

    def _format(self, template: Path, first: Broker, java: list[str], scram: Mapping[str, str]) -> None:
        properties = template / "broker.properties"
        template.mkdir()
        text = first.properties.read_text(encoding="utf-8")
        for name, where in (("data", first.data), ("metadata", first.metadata)):
            text = text.replace(f"={where}\n", f"={template / name}\n")
        properties.write_text(text, encoding="utf-8")
        command = [*java, "kafka.tools.StorageTool", "format", "--config", str(properties)]
        command += ["--cluster-id", CLUSTER_ID]
        for user, password in scram.items():
            command += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
        assert done.returncode == 0, f"formatting: {done.stdout}{done.stderr}"


def _kafka_id() -> str:
    """Kafka's form of a random UUID: 22 characters of URL-safe base64, not beginning with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
