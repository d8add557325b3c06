"""The image and the compose file, as far as can be told without an engine: against the contract, the configuration
and the doctor's rules."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.cli.app import main
from worker.config import Config, load_config
from worker.tools.durability import broker_rules, topic_faults

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
BROKERS = {name: service for name, service in SERVICES.items() if name.startswith("kafka-")}
ROLES = {name: SERVICES[name] for name in ("worker", "profiles", "alerts", "notify")}
OURS = {name: service for name, service in SERVICES.items() if service.get("image") == "millrace"}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def properties(service: dict[str, Any]) -> dict[str, str]:
    """What a broker of the image runs with: the mounted file, overridden by its environment."""
    lines = (
        line.strip() for line in (DEPLOY / "kafka" / "cluster.properties").read_text(encoding="utf-8").splitlines()
    )
    found = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name, value in service["environment"].items():
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS":
            found[name.removeprefix("KAFKA_").lower().replace("_", ".")] = str(value)
    return found


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s", text)
    assert found is not None, text
    return int(found[1])


def by_default(text: str) -> str:
    """A value where the variables that it names are not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_there_are_three_brokers_redis_and_the_four_roles() -> None:
    assert len(BROKERS) == 3
    assert {"redis", "topics", "doctor", *ROLES} <= set(SERVICES)
    assert all(service["command"] == [name] for name, service in ROLES.items())
    assert ROLES["notify"]["profiles"] == ["notify"], "only where somebody is to be told"


@pytest.mark.parametrize("name", BROKERS)
def test_a_broker_runs_with_the_settings_that_the_promises_need(name: str) -> None:
    service = BROKERS[name]
    assert "./kafka/cluster.properties:/mnt/shared/config/server.properties:ro" in service["volumes"]
    settings = properties(service)
    rules = broker_rules(Config(), 3)
    assert [fault for rule in rules if (fault := rule.broken_by(settings))] == []
    assert topic_faults("any", int(settings["default.replication.factor"]), settings, 3) == []
    voters = dict(pair.split("@") for pair in settings["controller.quorum.voters"].split(","))
    assert voters[settings["node.id"]] == f"{service['hostname']}:9093"
    assert len(voters) == 3
    assert f"INNER://{service['hostname']}:9092" in settings["advertised.listeners"]
    data = settings["log.dirs"]
    assert any(volume.endswith(f":{data}") for volume in service["volumes"]), "records would go with the container"


def test_brokers_differ_where_they_must_and_are_of_the_tested_version() -> None:
    assert len({service["environment"]["KAFKA_NODE_ID"] for service in BROKERS.values()}) == 3
    volumes = [volume.split(":")[0] for service in BROKERS.values() for volume in service["volumes"]]
    assert {volume for volume in volumes if volume in COMPOSE["volumes"]} == set(BROKERS)
    tested = re.search(r"<kafka.version>(.*?)<", (DEPLOY / "kafka" / "pom.xml").read_text(encoding="utf-8"))
    assert tested is not None
    assert {service["image"] for service in BROKERS.values()} == {f"apache/kafka:{tested[1]}"}


def test_a_clusters_id_is_sixteen_bytes_as_kafka_wants_it() -> None:
    import base64

    for service in BROKERS.values():
        assert len(base64.urlsafe_b64decode(service["environment"]["CLUSTER_ID"] + "==")) == 16


def test_redis_evicts_nothing_and_keeps_a_file() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"
    assert "redis:/data" in SERVICES["redis"]["volumes"]


def test_nothing_is_reachable_from_outside_the_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", OURS)
def test_our_services_are_configured_with_keys_that_exist_and_may_do_little(name: str) -> None:
    service = OURS[name]
    environment = {key: by_default(value) for key, value in service["environment"].items()}
    config = load_config(env=environment)
    assert config.kafka.bootstrap == ",".join(f"{broker}:9092" for broker in BROKERS)
    assert config.redis.url.startswith("redis://redis:")
    assert config.worker.delivery == "exactly_once"
    assert main.get_command(None, service["command"][0]) is not None  # type: ignore[arg-type]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert seconds(service["stop_grace_period"]) > config.worker.drain_timeout_ms / 1000 + 10


@pytest.mark.parametrize("key", ["routing", "aspects"])
@pytest.mark.parametrize("name", ["worker", "doctor"])
def test_a_routing_and_aspects_of_ones_own_can_be_mounted(name: str, key: str) -> None:
    service, variable = OURS[name], f"MILLRACE_WORKER__{key.upper()}"
    assert service["volumes"] == ["${FILES:-./files}:/etc/millrace:ro"]
    assert [file.name for file in (DEPLOY / "files").iterdir()] == ["README.md"]
    assert service["environment"][variable] == f"${{{key.upper()}:-shipped}}"
    named = {variable: f"/etc/millrace/{key}.yaml"}
    assert getattr(load_config(env=named).worker, key) == named[variable]


def test_roles_wait_for_topics_and_topics_for_brokers() -> None:
    for service in ROLES.values():
        assert service["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
    assert set(SERVICES["topics"]["depends_on"]) == set(BROKERS)
    for service in BROKERS.values():
        assert "healthcheck" in service
    assert "hostname" not in ROLES["worker"], "workers of one host name would take each other's transactional id"


def test_every_name_a_service_uses_is_declared() -> None:
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        for volume in service.get("volumes", []):
            source = by_default(volume).split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), volume


def test_the_image_runs_as_nobody_in_particular_and_says_whether_it_is_alive() -> None:
    final = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    user = re.search(r"^USER (\S+)", final, re.MULTILINE)
    assert user is not None
    assert int(user[1]) > 0
    assert f"--uid {user[1]}" in final
    port = re.search(r"MILLRACE_OBSERVE__PORT=(\d+)", final)
    assert port is not None
    assert f"http://127.0.0.1:{port[1]}/livez" in final, "a broker that is away is no reason for a restart"
    assert "HEALTHCHECK" in final
    set_here = dict(re.findall(r"\b(MILLRACE_\w+)=(\S+)", final))
    assert load_config(env=set_here).observe.port == int(port[1])


def test_the_image_is_built_from_what_the_package_needs() -> None:
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    }
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]} <= copied
    assert {project["project"]["readme"], "deploy/constraints.txt"} <= copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{source}" for source in copied} <= set(ignored)
    assert "ARG DEVICE=cpu" in DOCKERFILE
    assert re.search(r"ARG PYTHON=3\.(\d+)-", DOCKERFILE)


@pytest.mark.parametrize(
    ("device", "cuda", "code", "says"),
    [
        ("cpu", None, 0, ""),
        ("cuda", "13.0", 0, ""),
        ("cpu", "13.0", 0, "torch is built for cuda"),  # what PyPI gives: larger, and works
        ("cuda", None, 1, "torch is built for cpu"),
        ("gpu", "13.0", 1, "DEVICE=gpu"),
    ],
)
def test_the_build_says_when_torch_is_not_what_was_asked_for_and_fails_where_it_could_not_work(
    device: str, cuda: str | None, code: int, says: str, tmp_path: Path
) -> None:
    """The check of the Dockerfile itself, with a torch of our own in front."""
    check = re.search(r'RUN python -c "(.*?)" \\\n\s+"\$DEVICE"', DOCKERFILE, re.DOTALL)
    assert check is not None
    (tmp_path / "torch.py").write_text(f"class version:\n    cuda = {cuda!r}\n")
    python = shutil.which("python3")
    assert python is not None
    script = check[1].replace("\\\n", "")
    done = subprocess.run(
        [python, "-c", script, device], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == code, done.stderr
    told = done.stderr if code else done.stdout
    assert says in told
    assert bool(says) == ("deploy/Dockerfile" in told)


def test_the_file_for_a_gpu_reserves_it_for_the_worker_that_insists_on_it() -> None:
    services = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) == {"worker"} < set(SERVICES)
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert load_config(env=services["worker"]["environment"]).model.device == "cuda"


def test_compose_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed: the file is checked by the other tests only")
    files = ["--file", str(DEPLOY / "compose.yaml"), "--file", str(DEPLOY / "compose.gpu.yaml")]
    for chosen in (files[:2], files):
        command = [docker, "compose", *chosen, "--profile", "tools", "--profile", "notify", "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
