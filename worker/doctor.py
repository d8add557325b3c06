"""What is not as it should be, and what to do about it: broker, topics, Redis, model, device, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Final

import confluent_kafka
import msgspec
import redis
from packaging.requirements import Requirement

from worker.admin import admin_client, describe_topics
from worker.clients import REQUEST_TIMEOUT_S, translate
from worker.config import Config, KafkaConfig, ModelConfig, NotifyConfig, RedisConfig
from worker.errors import KafkaError, MillraceError, ModelLoadError, StoreError
from worker.store import connect

REDIS_TIMEOUT_S: Final = 2.0
REDIS_MIN: Final = (6, 2)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. ``todo`` says how to mend it, and is empty where all is well."""

    name: str
    well: bool
    found: str
    todo: str = ""


def examine(config: Config) -> list[Check]:
    """Every check, in the order in which one would mend them. Raises nothing that is a `MillraceError`."""
    checks: list[tuple[str, Callable[[], list[Check]]]] = [
        ("libraries", _libraries),
        ("kafka", lambda: _kafka(config.kafka)),
        ("topics", lambda: _topics(config.kafka)),
        ("redis", lambda: _redis(config.redis)),
        ("notify", lambda: _sinks(config.notify)),
        ("model", lambda: _model(config.model)),
    ]
    results = []
    for name, check in checks:
        try:
            results += check()
        except MillraceError as error:
            what, _, todo = str(error).partition(". ")
            results.append(Check(name=name, well=False, found=what, todo=todo or "see the message"))
    return results


def _sinks(notify: NotifyConfig) -> list[Check]:
    """Whether the secrets and certificates of every sink are there; nothing is sent."""
    from worker.senders import sender

    if not notify.sinks:
        return [Check(name="notify", well=True, found="no sinks: alerts stay on their topic")]
    for name in notify.sinks:
        sender(name, notify, os.environ)
    return [
        Check(name="notify", well=True, found=f"sinks {', '.join(notify.sinks)}: secrets and certificates are there")
    ]


def _libraries() -> list[Check]:
    """Whether what is installed is what our own package asks for."""
    wrong = []
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("millrace") or []]
    except importlib.metadata.PackageNotFoundError:
        return [_bad("libraries", "millrace is not installed as a package", "pip install -e .")]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    for each in wanted:
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{each.name} is missing")
            continue
        if not each.specifier.contains(version, prereleases=True):
            wrong.append(f"{each.name} {version}, wanted {each.specifier}")
    if wrong:
        return [_bad("libraries", "; ".join(wrong), "make clean, then make check: it installs the locked versions")]
    named = {name: importlib.metadata.version(name) for name in ("confluent-kafka", "torch", "redis")}
    versions = ", ".join(f"{name} {version}" for name, version in named.items())
    return [_good("libraries", f"Python {platform.python_version()}, {versions}, {len(wanted)} as wanted")]


def _kafka(kafka: KafkaConfig) -> list[Check]:
    try:
        cluster = admin_client(kafka).list_topics(timeout=REQUEST_TIMEOUT_S)
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing=f"asking {kafka.bootstrap} for its brokers") from error
    brokers = len(cluster.brokers)
    library = confluent_kafka.libversion()[0]
    return [_good("kafka", f"{brokers} brokers, cluster {cluster.cluster_id}, {kafka.bootstrap}; librdkafka {library}")]


def _topics(kafka: KafkaConfig) -> list[Check]:
    try:
        reports = describe_topics(kafka)
    except KafkaError:
        return [_bad("topics", "unknown while Kafka does not answer", "mend kafka first")]
    wrong = [f"{report.name}: {'; '.join(report.differences)}" for report in reports if report.differences]
    if not wrong:
        return [_good("topics", f"{len(reports)} as the contract says, {kafka.fold_shards} fold shards")]
    todo = "millrace topics create for what is missing; millrace topics create --update for settings"
    return [_bad("topics", "\n".join(wrong), todo)]


def _redis(config: RedisConfig) -> list[Check]:
    try:
        with connect(config, REDIS_TIMEOUT_S) as client:
            info = client.info()
    except redis.RedisError as error:
        raise StoreError(f"Redis does not answer ({type(error).__name__}). Check redis.url and that it runs") from error
    version, policy = str(info["redis_version"]), str(info.get("maxmemory_policy", "unknown"))
    checks = []
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_MIN:
        checks.append(_bad("redis", f"version {version}", "upgrade Redis to 6.2 or later; 7 is what is tested"))
    else:
        memory = info.get("used_memory_human", "?")
        checks.append(_good("redis", f"version {version}, {memory} used"))
    if policy != "noeviction":
        todo = "CONFIG SET maxmemory-policy noeviction, and in redis.conf: evicted fences would lose exactness"
        return [*checks, _bad("redis eviction", policy, todo)]
    return [*checks, _good("redis eviction", policy)]


def _model(model: ModelConfig) -> list[Check]:
    if model.artifact == "null":
        return [_good("model", "null: scores without an encoder, for measuring everything else")]
    # torch is needed from here on only.
    import torch

    from model.artifact import Artifact, resolve
    from model.errors import ModelError
    from model.golden import verify

    on = "cuda" if model.device == "cuda" or (model.device == "auto" and torch.cuda.is_available()) else "cpu"
    if on == "cuda" and not torch.cuda.is_available():
        return [_bad("device", "model.device is cuda, torch sees none", "set model.device to auto, or mend the driver")]
    try:
        folder = resolve(model.artifact)
        worst = verify(folder, device=model.device)
        manifest = Artifact.load(folder).manifest
    except ModelError as error:
        raise ModelLoadError(f"{error}. Set model.artifact to a whole artifact folder") from error
    device = torch.cuda.get_device_name() if on == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    found = f"{manifest['version']}, space {manifest['space']}, golden set within {worst:.2g}"
    return [_good("model", found), _good("device", f"{device}, torch {torch.__version__}")]


def _good(name: str, found: str) -> Check:
    return Check(name=name, well=True, found=found)


def _bad(name: str, found: str, todo: str) -> Check:
    return Check(name=name, well=False, found=found, todo=todo)
