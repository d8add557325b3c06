"""Configuration: one YAML file, overridden by environment, overridden by flags; checked once, at start.

Environment: ``MILLRACE_KAFKA__BOOTSTRAP=host:9092`` sets ``kafka.bootstrap`` (two underscores between levels).
Flags: ``--set kafka.bootstrap=host:9092``. Unknown keys and wrong types are errors that name the key.
Secrets (Kafka and Redis passwords) come from the environment or from files, never from a flag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from schemas.topics import FOLD_SHARDS, INPUTS, TOPICS
from worker.errors import ConfigError

Positive = Annotated[int, msgspec.Meta(gt=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
ENV_PREFIX = "MILLRACE_"
Lane = Literal["service", "click", "review"]
GroupProtocol = Literal["cooperative", "consumer", "eager"]


class Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Base of every section: unknown keys are refused."""


class KafkaConfig(Section, frozen=True, kw_only=True):
    """Where Kafka is. ``options`` goes to librdkafka as it stands (security, fetch sizes, ...)."""

    bootstrap: str = "127.0.0.1:9092"
    group_prefix: str = "millrace"
    # How partitions are shared: cooperative, consumer (KIP-848, brokers from 4.0), or the classic eager.
    group_protocol: GroupProtocol = "cooperative"
    # Workers keep their partitions across a restart: no rebalance, and one that was killed goes on as soon as it is up.
    # The price: partitions of a worker that was stopped for good wait for the session time-out.
    static_members: bool = False
    fold_shards: Positive = FOLD_SHARDS
    # The embedded broker has no controller: topics appear by asking for them, and have no ids.
    embedded: bool = False
    # A shop's own topic names, by the contract's: {events.click: shop.clicks}. Unnamed ones keep the contract's.
    topics: dict[str, str] = {}
    # Topics scored at low priority, by what they carry: {shop.clicks.2025: events.click}.
    backfill: dict[str, str] = {}
    options: dict[str, str | int | float | bool] = {}

    def topic(self, contract_name: str) -> str:
        """The cluster's name of a topic of the contract, e.g. ``events.click``."""
        return self.topics.get(contract_name, contract_name)

    def contract_topic(self, cluster_name: str) -> str:
        """The contract's name of a topic of the cluster; the inverse of `topic`."""
        return {name: contract for contract, name in self.topics.items()}.get(cluster_name, cluster_name)


class RedisConfig(Section, frozen=True, kw_only=True):
    """Where Redis is, and how long anyone waits for it. The worker reads best-effort, never longer than this."""

    url: str = "redis://127.0.0.1:6379/0"
    timeout_ms: Positive = 50
    breaker_failures: Positive = 3
    breaker_open_ms: Positive = 1000
    state_ttl_days: Positive = 400


class ModelConfig(Section, frozen=True, kw_only=True):
    """Which model. ``null`` scores without an encoder, for measuring everything else."""

    artifact: str = "starter"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    vector_cache_mb: Positive = 64
    # What share of impressions is clicked in this shop; shifts the logit from the training data's own rate.
    click_base_rate: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None


class ObjectivesConfig(Section, frozen=True, kw_only=True):
    """Per lane, the longest time from event read to score committed, on a GPU; `cpu_objective_factor` on CPU."""

    service_ms: Positive = 250
    click_ms: Positive = 150
    review_ms: Positive = 1000


class WorkerConfig(Section, frozen=True, kw_only=True):
    """The scoring worker."""

    max_batch_tokens: Positive = 8192
    max_batch_units: Positive = 256
    queue_tokens_high: Positive = 131072
    queue_tokens_low: Positive = 65536
    poll_records: Positive = 2000
    # exactly_once: outputs and offsets in one transaction. The embedded broker has none: there it is at_least_once.
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    # Names the transactional id, stable across restarts. Empty: the first free one of this machine's workers.
    slot: str = ""
    transaction_timeout_ms: Positive = 10_000
    commit_interval_ms: Positive = 100
    drain_timeout_ms: Positive = 10_000
    device_timeout_ms: Positive = 60_000
    objectives: ObjectivesConfig = ObjectivesConfig()
    # CPU objectives are this many times the GPU's.
    cpu_objective_factor: PositiveFloat = 5.0
    good_review_stars: PositiveFloat = 4.0
    bad_review_stars: PositiveFloat = 2.0

    def objectives_s(self, *, on_gpu: bool) -> dict[Lane, float]:
        """Per lane, seconds from event read to the end of its encoder pass; up to one interval is for the commit."""
        factor, commit_s = (1.0 if on_gpu else self.cpu_objective_factor) / 1000, self.commit_interval_ms / 1000
        goals = self.objectives
        wanted: dict[Lane, int] = {"service": goals.service_ms, "click": goals.click_ms, "review": goals.review_ms}
        return {lane: max(ms * factor - commit_s, ms * factor / 2) for lane, ms in wanted.items()}


class ProfilesConfig(Section, frozen=True, kw_only=True):
    """The role that folds state into Redis."""

    # Ten minutes, a day, three years told clicks apart better than an hour, a week, a year: progressive AUC 0.778
    # against 0.774 on the last months of MovieLens, and the same way round on held-out training months.
    scales_s: tuple[PositiveFloat, ...] = (60.0, 86400.0, 3 * 365 * 86400.0)
    poll_blocks: Positive = 500
    publish_interval_ms: Positive = 1000
    redis_retry_ms: Positive = 500


class AlertsConfig(Section, frozen=True, kw_only=True):
    """The role that watches opinions."""

    window_minutes: Positive = 5
    baseline_minutes: Positive = 60
    min_volume: Positive = 10
    threshold_sigma: PositiveFloat = 4.0
    min_share_lift: PositiveFloat = 0.15
    resolve_sigma: PositiveFloat = 1.5
    cooldown_minutes: Positive = 10
    data_dir: str = ".millrace/alerts"


class ObserveConfig(Section, frozen=True, kw_only=True):
    """Metrics and health over HTTP, and logs. Loopback unless told otherwise; port 0 takes any free one."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"


class Config(Section, frozen=True, kw_only=True):
    """Everything a role needs to know."""

    kafka: KafkaConfig = KafkaConfig()
    redis: RedisConfig = RedisConfig()
    model: ModelConfig = ModelConfig()
    worker: WorkerConfig = WorkerConfig()
    profiles: ProfilesConfig = ProfilesConfig()
    alerts: AlertsConfig = AlertsConfig()
    observe: ObserveConfig = ObserveConfig()


def load_config(file: Path | None = None, *, env: Mapping[str, str] | None = None, flags: Sequence[str] = ()) -> Config:
    """Configuration from file, environment and ``key.path=value`` flags, in rising order of strength.

    Raises `ConfigError` naming the source and the key.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        tree = _read_yaml(file)
    for name, value in sorted((env or {}).items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            path = name.removeprefix(ENV_PREFIX).lower().split("__")
            _put(tree, path, value, f"environment variable {name}")
    for flag in flags:
        key, eq, value = flag.partition("=")
        if not eq:
            raise ConfigError(f"--set {flag}: expected key.path=value, e.g. --set kafka.bootstrap=127.0.0.1:9092")
        _put(tree, key.split("."), value, f"--set {key}")
    model = tree.get("model")
    if isinstance(model, dict) and "artifact" in model and model["artifact"] is None:
        model["artifact"] = "null"  # YAML reads the null model's name as nothing
    try:
        # Environment and flags are strings; lax conversion turns "50" into 50 where a number is wanted.
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"configuration: {error} (``$`` is the top of the file; see README, Configuration)"
        ) from error
    return _checked(config)


def _checked(config: Config) -> Config:
    worker = config.worker
    unknown = set(config.kafka.topics) - set(TOPICS)
    if unknown:
        raise ConfigError(f"kafka.topics names {', '.join(sorted(unknown))}; the contract has {', '.join(TOPICS)}")
    if len(set(config.kafka.topics.values())) < len(config.kafka.topics):
        raise ConfigError("kafka.topics gives two topics of the contract the same name")
    if wrong := sorted(set(config.kafka.backfill.values()) - set(INPUTS)):
        raise ConfigError(f"kafka.backfill: {', '.join(wrong)} is none of {', '.join(INPUTS)}")
    if taken := sorted({config.kafka.topic(name) for name in TOPICS} & config.kafka.backfill.keys()):
        raise ConfigError(
            f"kafka.backfill names {', '.join(taken)}, which is used already: backfill needs topics apart"
        )
    if worker.queue_tokens_low >= worker.queue_tokens_high:
        raise ConfigError("worker.queue_tokens_low must be below worker.queue_tokens_high")
    if worker.max_batch_tokens > worker.queue_tokens_high:
        raise ConfigError("worker.max_batch_tokens must not exceed worker.queue_tokens_high")
    return config


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {file} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file {file}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def _put(tree: dict[str, Any], path: list[str], value: str, where: str) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{where}: {part} is not a section")
    # YAML reads lists and mappings given as text; plain words stay words.
    try:
        tree[path[-1]] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {value!r} is not a YAML value") from error
