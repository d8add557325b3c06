"""The Kubernetes manifest, as far as can be told without a cluster: against configuration, roles and image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.cli.app import main
from worker.cli.roles import ROLE_NAMES
from worker.config import Config, load_config
from worker.kafka.acls import principals_of

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TEXT = (DEPLOY / "kubernetes" / "millrace.yaml").read_text(encoding="utf-8")
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(TEXT))
BY_NAME = {(each["kind"], each["metadata"]["name"]): each for each in DOCUMENTS}
WORKLOADS = {
    each["metadata"]["labels"]["role"]: each for each in DOCUMENTS if each["kind"] in ("StatefulSet", "Deployment")
}
SECRETS = "/run/secrets/millrace"


def pod(role: str) -> dict[str, Any]:
    found: dict[str, Any] = WORKLOADS[role]["spec"]["template"]["spec"]
    return found


def container(role: str) -> dict[str, Any]:
    (found,) = pod(role)["containers"]
    return dict(found)


def environment(role: str, secrets: Path) -> dict[str, str]:
    """What the process sees, with its secrets in a folder of ours."""
    (source,) = container(role)["envFrom"]
    given = dict(BY_NAME["ConfigMap", source["configMapRef"]["name"]]["data"])
    given |= {each["name"]: each["value"] for each in container(role)["env"]}
    return {name: value.replace(SECRETS, str(secrets)) for name, value in given.items()}


def config_of(role: str, folder: Path) -> Config:
    """The configuration of a role, loaded as its process does it."""
    for name in ("kafka_password", "redis_url", "pseudonym_key"):
        (folder / name).write_text("rediss://redis.example.org/0" if name == "redis_url" else "secret")
    env = environment(role, folder)
    assert env["MILLRACE_CONFIG"] == "/etc/millrace/millrace.yaml"
    (folder / "millrace.yaml").write_text(BY_NAME["ConfigMap", "millrace"]["data"]["millrace.yaml"])
    return load_config(folder / "millrace.yaml", env=env)


def test_every_role_has_a_workload_and_those_with_transactional_ids_keep_their_names() -> None:
    assert set(WORKLOADS) == set(ROLE_NAMES) - {"operator"}
    kinds = {role: each["kind"] for role, each in WORKLOADS.items()}
    # worker.kafka.slot names a transactional id after the host, for these two.
    assert {role for role, kind in kinds.items() if kind == "StatefulSet"} == {"worker", "profiles"}


@pytest.mark.parametrize("role", WORKLOADS)
def test_a_role_is_started_with_keys_and_secrets_that_there_are(role: str, tmp_path: Path) -> None:
    assert container(role)["args"] == [role]
    assert main.get_command(None, role) is not None  # type: ignore[arg-type]
    config = config_of(role, tmp_path)
    assert config.kafka.options["sasl.password"] == "secret"
    assert f"User:{config.kafka.options['sasl.username']}" == principals_of([])[role]  # type: ignore[index]
    assert config.redis.url.startswith("rediss://") == (role in ("worker", "profiles")), "the others do not need it"
    assert (config.worker.slot, config.profiles.slot) == ("", ""), "else all replicas would share one"
    mounts = {each["mountPath"]: each["name"] for each in container(role)["volumeMounts"]}
    volumes = {each["name"]: each for each in pod(role)["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts[SECRETS]]["secret"]["secretName"] == f"millrace-{role}"
    assert volumes[mounts["/etc/millrace"]] == {"name": "config", "configMap": {"name": "millrace"}}, "all of its files"
    assert (config.worker.routing, config.worker.aspects) == ("shipped", "shipped")


@pytest.mark.parametrize("role", WORKLOADS)
def test_probes_ask_where_the_role_answers_and_only_liveness_restarts(role: str, tmp_path: Path) -> None:
    config, found = config_of(role, tmp_path), container(role)
    assert config.observe.host == "0.0.0.0", "the kubelet is not on loopback"  # noqa: S104
    (port,) = found["ports"]
    assert port == {"name": "observe", "containerPort": config.observe.port}
    paths = {kind: found[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/healthz"}
    assert all(found[kind]["httpGet"]["port"] == "observe" for kind in paths)
    annotations = WORKLOADS[role]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(config.observe.port)}


def test_only_the_namespace_of_prometheus_reaches_the_roles() -> None:
    policy = BY_NAME["NetworkPolicy", "millrace"]["spec"]
    for role in WORKLOADS:
        labels = WORKLOADS[role]["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"].items() <= labels.items()
        assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": container(role)["ports"][0]["name"]}]
    assert policy["policyTypes"] == ["Ingress"], "what a role calls is its own affair"
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


@pytest.mark.parametrize("role", WORKLOADS)
def test_a_pod_has_time_to_end_and_may_do_little(role: str) -> None:
    assert pod(role)["terminationGracePeriodSeconds"] > Config().worker.drain_timeout_ms / 1000 + 20
    user = re.search(r"^USER (\d+)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user is not None
    assert pod(role)["securityContext"]["runAsUser"] == int(user[1])
    security = container(role)["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert {"requests", "limits"} <= set(container(role)["resources"])


@pytest.mark.parametrize("role", WORKLOADS)
def test_selectors_find_their_pods(role: str) -> None:
    spec = WORKLOADS[role]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels == WORKLOADS[role]["metadata"]["labels"]
    if WORKLOADS[role]["kind"] == "StatefulSet":
        service = BY_NAME["Service", spec["serviceName"]]["spec"]
        assert service["selector"].items() <= labels.items()
        assert service["clusterIP"] == "None", "one with an address would add MILLRACE_… to every environment"
