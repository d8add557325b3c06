"""What is not as it should be, and what to do about it: Kafka, topics, Redis, sinks, rules, routing, aspects, model,
device, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any, Final, cast

import confluent_kafka
import redis
from packaging.requirements import Requirement

from model.errors import ModelError
from worker.config import Config, KafkaConfig, ModelConfig, NotifyConfig, RedisConfig, RegistryConfig
from worker.errors import KafkaError, MillraceError, ModelLoadError, StoreError, StoreRefusedError
from worker.kafka.admin import admin_client, describe_topics
from worker.kafka.clients import REQUEST_TIMEOUT_S, translate
from worker.redis.redis_errors import refusal
from worker.redis.store import connect
from worker.tools.check import Check, bad, good
from worker.tools.durability import examine_durability

REDIS_TIMEOUT_S: Final = 2.0
REDIS_MIN: Final = (6, 2)
MEMORY_SHARE_MAX: Final = 0.9


def examine(config: Config, replication: int = 3) -> list[Check]:
    """Every check, in the order in which one would mend them. Raises nothing that is a `MillraceError`.

    ``replication``: copies of a record that a real cluster must keep; a machine for development keeps one.
    """
    checks: list[tuple[str, Callable[[], list[Check]]]] = [
        ("libraries", _libraries),
        ("kafka", lambda: _kafka(config.kafka)),
        ("topics", lambda: _topics(config.kafka)),
        ("durability", lambda: _durability(config, replication)),
        ("fields", lambda: _fields(config.kafka)),
        ("registry", lambda: _registry(config.registry)),
        ("alerts", lambda: _alerts(config.kafka)),
        ("redis", lambda: _redis(config.redis, durable=not config.kafka.embedded)),
        ("notify", lambda: _sinks(config.notify)),
        ("alert rules", lambda: _rules(config)),
        ("routing", lambda: _routing(config)),
        ("aspects", lambda: _aspects(config.worker.aspects)),
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


def _alerts(kafka: KafkaConfig) -> list[Check]:
    """Whether the alerts role can connect with these options: its client is another one and takes fewer."""
    from worker.alerts.faust_app import credentials

    credentials(kafka)
    return [good("alerts", "its client takes the security settings of kafka.options")]


def _sinks(notify: NotifyConfig) -> list[Check]:
    """Whether the secrets and certificates of every sink are there; nothing is sent."""
    from worker.notify.senders import sender

    if not notify.sinks:
        return [Check(name="notify", well=True, found="no sinks: alerts stay on their topic")]
    for name in notify.sinks:
        sender(name, notify, os.environ)
    return [
        Check(name="notify", well=True, found=f"sinks {', '.join(notify.sinks)}: secrets and certificates are there")
    ]


def _rules(config: Config) -> list[Check]:
    """Whether the rules can be read, and each sink that they name is there: a typo would keep alerts from everybody."""
    from worker.alerts.rules import RulesFile

    file = RulesFile(config.alerts.rules)
    unknown = {
        f"{name} (rule {rule.name})"
        for rule in file.book.rules
        for name in rule.sinks
        if name not in config.notify.sinks
    }
    if unknown:
        found = f"sinks that notify.sinks does not have: {', '.join(sorted(unknown))}"
        return [bad("alert rules", found, f"mend the names in {file.path}, or add the sinks: nobody is told there")]
    return [good("alert rules", f"{len(file.book.rules)} rules, {file.path}")]


def _routing(config: Config) -> list[Check]:
    """Whether the model's heads and the routing know the same intents: what only one of them has goes astray."""
    from worker.scoring.models import check_heads, first_few
    from worker.scoring.routing import load_routing

    routing = load_routing(config.worker.routing)
    try:
        labels = _labels(config.model.artifact)
    except ModelError:
        return [bad("routing", "unknown while the model cannot be read", "mend model first")]
    check_heads(labels, config.model.artifact, routing)
    missing = routing.unlisted(labels)
    used = len(routing.intents) - len(routing.unknown(labels))
    found = f"{used} intents of {', '.join(routing.heads)} have a queue ({routing.source})"
    if missing:
        found += f"; {len(missing)} go to {routing.default}, without a reply: {first_few(missing)}"
    if routing.intents and not used:
        return [bad("routing", found, "name a file with the intents of your model in worker.routing")]
    return [good("routing", found)]


def _labels(artifact: str) -> Mapping[str, Sequence[str]]:
    """The labels of every head. Raises `ModelError`."""
    if artifact == "null":
        from model.null import LABELS

        return LABELS
    from model.artifact import Artifact, resolve

    heads = Artifact.load(resolve(artifact)).manifest["heads"]
    return {name: head["labels"] for name, head in heads.items()}


def _aspects(name: str) -> list[Check]:
    from worker.scoring.aspects import load_aspects

    return [good("aspects", f"{', '.join(load_aspects(name).names) or 'none'} ({name})")]


def _libraries() -> list[Check]:
    """Whether what is installed is what our own package asks for."""
    wrong = []
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("millrace") or []]
    except importlib.metadata.PackageNotFoundError:
        return [bad("libraries", "millrace is not installed as a package", "pip install -e .")]
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
        return [bad("libraries", "; ".join(wrong), "make clean, then make check: it installs the locked versions")]
    named = {name: importlib.metadata.version(name) for name in ("confluent-kafka", "torch", "redis")}
    versions = ", ".join(f"{name} {version}" for name, version in named.items())
    return [good("libraries", f"Python {platform.python_version()}, {versions}, {len(wanted)} as wanted")]


def _kafka(kafka: KafkaConfig) -> list[Check]:
    try:
        cluster = admin_client(kafka).list_topics(timeout=REQUEST_TIMEOUT_S)
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing=f"asking {kafka.bootstrap} for its brokers") from error
    brokers = len(cluster.brokers)
    library = confluent_kafka.libversion()[0]
    return [good("kafka", f"{brokers} brokers, cluster {cluster.cluster_id}, {kafka.bootstrap}; librdkafka {library}")]


def _topics(kafka: KafkaConfig) -> list[Check]:
    try:
        reports = describe_topics(kafka)
    except KafkaError:
        return [bad("topics", "unknown while Kafka does not answer", "mend kafka first")]
    wrong = [f"{report.name}: {'; '.join(report.differences)}" for report in reports if report.differences]
    if not wrong:
        return [good("topics", f"{len(reports)} as the contract says, {kafka.fold_shards} fold shards")]
    todo = "millrace topics create for what is missing; millrace topics create --update for settings"
    return [bad("topics", "\n".join(wrong), todo)]


def _durability(config: Config, replication: int) -> list[Check]:
    # On the embedded broker everything ends with the process.
    return [] if config.kafka.embedded else examine_durability(config, replication)


def _fields(kafka: KafkaConfig) -> list[Check]:
    """Whether the rules of topics with a shop's own fields can be used."""
    from worker.scoring.decode import Decoder, lanes_of

    topics = Decoder(lanes_of(kafka), fields=kafka.fields).fields
    return [good("fields", f"rules for {', '.join(topics)}")] if topics else []


def _registry(config: RegistryConfig) -> list[Check]:
    if not config.url:
        return []
    from worker.kafka.registry import SchemaRegistry

    with closing(SchemaRegistry(config)) as registry:
        return [good("registry", f"{registry.examine()} subjects at {registry.where}")]


def _redis(config: RedisConfig, *, durable: bool) -> list[Check]:
    try:
        with connect(config, REDIS_TIMEOUT_S) as client:
            info = client.info()
            saves = _save_points(client)
    except redis.RedisError as error:
        if why := refusal(error):
            raise StoreRefusedError(f"Redis: {why}") from error
        raise StoreError(f"Redis does not answer ({type(error).__name__}). Check redis.url and that it runs") from error
    checks = [_redis_server(info), _redis_memory(info)]
    return [*checks, _redis_files(info, saves)] if durable else checks


def _redis_server(info: Mapping[str, Any]) -> Check:
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_MIN:
        return bad("redis", f"version {version}", "upgrade Redis to 6.2 or later; 7 is what is tested")
    if info.get("role") != "master":
        where = f"a replica of {info.get('master_host')}:{info.get('master_port')}"
        return bad("redis", f"version {version}, {where}", "point redis.url to the primary: a replica takes no states")
    return good("redis", f"version {version}, {info.get('used_memory_human', '?')} used")


def _redis_memory(info: Mapping[str, Any]) -> Check:
    policy, most, used = (
        str(info.get("maxmemory_policy", "unknown")),
        int(info.get("maxmemory", 0)),
        info["used_memory"],
    )
    if policy != "noeviction":
        todo = "CONFIG SET maxmemory-policy noeviction, and in redis.conf: evicted fences would lose exactness"
        return bad("redis eviction", policy, todo)
    if most and used > MEMORY_SHARE_MAX * most:
        found = f"{policy}, but {used / most:.0%} of maxmemory is used"
        return bad("redis eviction", found, "raise maxmemory: at the bound writes are refused, and profiles waits")
    return good("redis eviction", policy)


def _redis_files(info: Mapping[str, Any], saves: str | None) -> Check:
    """Whether a restart keeps the states. Without, they are rebuilt from Kafka: exact, but it takes its time."""
    appends = bool(info.get("aof_enabled"))
    failed = [
        key
        for key in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if info.get(key, "ok") != "ok"
    ]
    if failed:
        return bad(
            "redis persistence", f"{', '.join(failed)} not ok", "look at Redis's log: its disk is full or refused"
        )
    if not appends and not saves:
        seen = "neither append-only file nor snapshots" if saves is not None else "no append-only file"
        todo = "CONFIG SET appendonly yes, and in redis.conf: else every restart means a rebuild from Kafka"
        return bad("redis persistence", seen, todo)
    return good("redis persistence", "append-only file" if appends else f"snapshots: {saves}")


def _save_points(client: redis.Redis) -> str | None:
    """Redis's ``save`` setting; None where this user may not ask."""
    try:
        return str(cast("dict[str, str]", client.config_get("save")).get("save", ""))
    except redis.exceptions.NoPermissionError:
        return None


def _model(model: ModelConfig) -> list[Check]:
    if model.artifact == "null":
        return [good("model", "null: scores without an encoder, for measuring everything else")]
    # torch is needed from here on only.
    import torch

    from model.artifact import Artifact, resolve
    from model.golden import verify

    on = "cuda" if model.device == "cuda" or (model.device == "auto" and torch.cuda.is_available()) else "cpu"
    if on == "cuda" and not torch.cuda.is_available():
        return [bad("device", "model.device is cuda, torch sees none", "set model.device to auto, or mend the driver")]
    try:
        folder = resolve(model.artifact)
        worst = verify(folder, device=model.device)
        manifest = Artifact.load(folder).manifest
    except ModelError as error:
        raise ModelLoadError(f"{error}. Set model.artifact to a whole artifact folder") from error
    device = torch.cuda.get_device_name() if on == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    found = f"{manifest['version']}, space {manifest['space']}, golden set within {worst:.2g}"
    return [good("model", found), good("device", f"{device}, torch {torch.__version__}")]
