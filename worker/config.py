"""Configuration: one YAML file, overridden by environment, overridden by flags; checked once, at start.

Environment: ``MILLRACE_KAFKA__BOOTSTRAP=host:9092`` sets ``kafka.bootstrap`` (two underscores between levels).
Flags: ``--set kafka.bootstrap=host:9092``. Unknown keys and wrong types are errors that name the key.
Secrets (Kafka and Redis passwords) come from the environment or from files (`worker.environment`), never from a flag:
flags are seen by everybody on the machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from schemas.topics import FOLD_SHARDS, INPUTS, TOPICS
from worker.environment import entries
from worker.errors import ConfigError

Positive = Annotated[int, msgspec.Meta(gt=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
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
    # More topics of the same kinds, scored beside those: {app.clicks: events.click}.
    further_topics: dict[str, str] = {}
    # Topics scored at low priority, by what they carry: {shop.clicks.2025: events.click}.
    backfill: dict[str, str] = {}
    # Topics whose fields are the shop's own, by their name on the cluster: which of them, or which rule, is which field
    # of the event, {shop.clicks: {event_id: id, event_time_ms: ts*1000, item_id: product.sku}}.
    fields: dict[str, dict[str, str]] = {}
    options: dict[str, str | int | float | bool] = {}

    def topic(self, contract_name: str) -> str:
        """The cluster's name of a topic of the contract, e.g. ``events.click``."""
        return self.topics.get(contract_name, contract_name)

    @property
    def added_topics(self) -> dict[str, str]:
        """Topics of events beside the contract's, live and for backfill, by what they carry."""
        return self.further_topics | self.backfill

    def resolved(self, name: str) -> tuple[str, str]:
        """The cluster's name of a topic and what it carries, from either name; what nobody knows carries itself."""
        contract = self.added_topics.get(name)
        if contract is not None:
            return name, contract
        contract = self.contract_topic(name)
        return self.topic(contract), contract

    def contract_topic(self, cluster_name: str) -> str:
        """The contract's name of a topic of the cluster; the inverse of `topic`."""
        return {name: contract for contract, name in self.topics.items()}.get(cluster_name, cluster_name)


class RegistryConfig(Section, frozen=True, kw_only=True):
    """The schema registry of events that are framed for one, Confluent's or one that speaks its API."""

    # http(s)://HOST:PORT with the path of the API, several with commas. Empty: events are JSON, framed or not.
    url: str = ""
    # To confluent-kafka's SchemaRegistryClient as they stand (basic.auth.user.info, ssl.ca.location, ...).
    options: dict[str, str | int | float | bool] = {}


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
    precision: Literal["auto", "float32"] = "auto"
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
    transaction_timeout_ms: Positive = 8_000
    commit_interval_ms: Positive = 100
    drain_timeout_ms: Positive = 10_000
    device_timeout_ms: Positive = 60_000
    objectives: ObjectivesConfig = ObjectivesConfig()
    # CPU objectives are this many times the GPU's.
    cpu_objective_factor: PositiveFloat = 5.0
    good_review_stars: PositiveFloat = 4.0
    bad_review_stars: PositiveFloat = 2.0
    # Of every review, so many characters go masked into its opinions, for alerts to show; 0 keeps all text out.
    excerpt_chars: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 160
    # The queue and reply of every intent: shipped, or a YAML file.
    routing: str = "shipped"
    # The lexicon of what reviews are about: shipped, none, or a YAML file.
    aspects: str = "shipped"

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
    # As for the worker: features and the group's offsets in one transaction, under an id that `slot` names.
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    slot: str = ""
    transaction_timeout_ms: Positive = 8_000
    publish_interval_ms: Positive = 1000
    redis_retry_ms: Positive = 500


class AlertsConfig(Section, frozen=True, kw_only=True):
    """The role that watches opinions. When an alert opens is in the rules file."""

    # A YAML file, read again when it changes; empty is the one that comes with Millrace (worker/alerts/rules.yaml).
    rules: str = ""
    # The model's mean p(negative) on truly negative texts, and on all others: shares are told with it undone. Left
    # out, they are the artifact's; `millrace evaluate --task sentiment` measures them on rows of one's own.
    p_negative_of_negatives: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    p_negative_of_others: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    data_dir: str = ".millrace/alerts"


Secret = Annotated[str, msgspec.Meta(pattern="^(env|file):.+")]
"""Where a secret is: ``env:NAME`` or ``file:/path``. It is never in the configuration itself."""


class SinkConfig(Section, frozen=True, kw_only=True, tag_field="kind"):
    """What every sink has: which alerts go there, in which language, and at what rate."""

    subjects: tuple[str, ...] = ("*",)
    min_severity: Literal["warning", "critical"] = "warning"
    language: Literal["en", "zh"] = "en"
    max_per_minute: Annotated[int, msgspec.Meta(gt=0, le=600)] = 20
    # A certificate authority of one's own, PEM.
    ca_file: str | None = None


class WebhookConfig(SinkConfig, frozen=True, kw_only=True, tag="webhook"):
    """A POST. The addresses of Slack, Feishu and DingTalk are secrets themselves: ``env:`` or ``file:``."""

    url: str
    format: Literal["json", "slack", "feishu", "dingtalk"] = "json"
    # Signs what is sent; Slack has no signature.
    secret: Secret | None = None
    # Authorization: Bearer ...
    token: Secret | None = None
    # http://host:port; with a password in it, env: or file:
    proxy: str | None = None


class MailConfig(SinkConfig, frozen=True, kw_only=True, tag="mail"):
    """A message by SMTP."""

    host: str
    port: Annotated[int, msgspec.Meta(gt=0, le=65535)] = 587
    security: Literal["starttls", "tls", "plain"] = "starttls"
    sender: str
    to: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=50)]
    username: Secret | None = None
    password: Secret | None = None


MAX_SINKS = 32


class NotifyConfig(Section, frozen=True, kw_only=True):
    """The role that sends alerts on to people."""

    # Messages that wait for one sink; when one sink has so many, no more alerts are read.
    queue_max: Positive = 500
    request_timeout_ms: Positive = 10_000
    retry_min_ms: Positive = 1000
    retry_max_ms: Positive = 60_000
    # A message that its failing sink has not taken for so long becomes a dead letter.
    give_up_minutes: PositiveFloat = 15.0
    # Alerts published longer ago than this are not sent any more.
    max_age_minutes: PositiveFloat = 120.0
    sinks: Annotated[dict[str, WebhookConfig | MailConfig], msgspec.Meta(max_length=MAX_SINKS)] = {}


class ObserveConfig(Section, frozen=True, kw_only=True):
    """Metrics and health over HTTP, and logs. Loopback unless told otherwise; port 0 takes any free one."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"


class Config(Section, frozen=True, kw_only=True):
    """Everything a role needs to know."""

    kafka: KafkaConfig = KafkaConfig()
    registry: RegistryConfig = RegistryConfig()
    redis: RedisConfig = RedisConfig()
    model: ModelConfig = ModelConfig()
    worker: WorkerConfig = WorkerConfig()
    profiles: ProfilesConfig = ProfilesConfig()
    alerts: AlertsConfig = AlertsConfig()
    notify: NotifyConfig = NotifyConfig()
    observe: ObserveConfig = ObserveConfig()


def load_config(file: Path | None = None, *, env: Mapping[str, str] | None = None, flags: Sequence[str] = ()) -> Config:
    """Configuration from file, environment and ``key.path=value`` flags, in rising order of strength.

    Raises `ConfigError` naming the source and the key.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        tree = _read_yaml(file)
    for entry in entries(env or {}):
        _put(tree, entry.path, entry.value, entry.where, literal=entry.literal)
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
    _check_added(config.kafka)
    seen = (config.alerts.p_negative_of_negatives, config.alerts.p_negative_of_others)
    if (seen[0] is None) != (seen[1] is None):
        raise ConfigError("alerts.p_negative_of_negatives and alerts.p_negative_of_others go together: set both")
    if seen[0] is not None and seen[1] is not None and seen[1] >= seen[0]:
        raise ConfigError("alerts.p_negative_of_others must be below alerts.p_negative_of_negatives")
    if worker.queue_tokens_low >= worker.queue_tokens_high:
        raise ConfigError("worker.queue_tokens_low must be below worker.queue_tokens_high")
    if worker.max_batch_tokens > worker.queue_tokens_high:
        raise ConfigError("worker.max_batch_tokens must not exceed worker.queue_tokens_high")
    _check_sinks(config.notify)
    return config


def _check_added(kafka: KafkaConfig) -> None:
    taken = {kafka.topic(name) for name in TOPICS}
    for key, added in (("further_topics", kafka.further_topics), ("backfill", kafka.backfill)):
        if wrong := sorted(set(added.values()) - set(INPUTS)):
            raise ConfigError(f"kafka.{key}: {', '.join(wrong)} is none of {', '.join(INPUTS)}")
        if twice := sorted(taken & added.keys()):
            raise ConfigError(f"kafka.{key} names {', '.join(twice)}, which is used already: it needs topics apart")
        taken |= added.keys()


def _check_sinks(notify: NotifyConfig) -> None:
    if notify.retry_min_ms > notify.retry_max_ms:
        raise ConfigError("notify.retry_min_ms must not exceed notify.retry_max_ms")
    for name, sink in notify.sinks.items():
        where = f"notify.sinks.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise ConfigError(f"{where}: a sink's name is letters, digits, - and _, 64 at most")
        if isinstance(sink, MailConfig):
            if (sink.username is None) != (sink.password is None):
                raise ConfigError(f"{where}: username and password go together")
        elif sink.format != "json" and not sink.url.startswith(("env:", "file:")):
            # Not repeated here: whoever has the address can write into the chat.
            raise ConfigError(
                f"{where}.url: the address of a {sink.format} bot is a secret. Say env:NAME or file:/path"
            )
        elif sink.format == "slack" and sink.secret is not None:
            raise ConfigError(f"{where}.secret: Slack's incoming webhooks have no signature; leave it out")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {file}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        # Its own text quotes the line, which may hold a secret, in a traceback too.
        raise ConfigError(f"configuration file {file} is not valid YAML: {_yaml_problem(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file {file}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def _yaml_problem(error: Exception) -> str:
    """What is wrong and where, without what the file says there."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if not isinstance(error, yaml.MarkedYAMLError):
        return "a character or a value that YAML does not have"
    problem, mark = error.problem or "", error.problem_mark
    if not isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError) or "tag handle" in problem:
        # It names aliases and tags, which begin with * and !: they may be a password without its quotes.
        problem = re.split("['\"]", problem, maxsplit=1)[0].rstrip()
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _put(tree: dict[str, Any], path: list[str], value: str, where: str, *, literal: bool = False) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{where}: {part} is not a section")
    # YAML reads lists and mappings given as text; plain words stay words.
    try:
        tree[path[-1]] = value if literal else yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{where}: not a YAML value") from None  # not shown: it may be a secret
