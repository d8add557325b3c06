"""What each role counts and measures, for Prometheus. Labels are bounded sets: topics, lanes, reasons, never ids."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)


class WorkerMetrics:
    """Metrics of the scoring worker; names begin with ``millrace_worker_``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        p = "millrace_worker_"
        self.events = Counter(p + "events", "Events read.", ["topic"], registry=registry)
        self.outputs = Counter(p + "outputs", "Records written.", ["topic"], registry=registry)
        self.dead_letters = Counter(p + "dead_letters", "Records not scored.", ["reason"], registry=registry)
        self.forgotten = Counter(
            p + "forgotten", "Events of erased people, from before their cut-off.", registry=registry
        )
        self.passed_over = Counter(
            p + "passed_over", "Records that their topic's rules pass over.", ["topic"], registry=registry
        )
        self.batches = Counter(p + "batches", "Batches released, by why.", ["reason"], registry=registry)
        self.batch_tokens = Histogram(p + "batch_tokens", "Tokens in a batch.", registry=registry, buckets=_TOKENS)
        self.encode_seconds = Histogram(
            p + "encode_seconds", "Time of one encoder pass and its heads.", registry=registry, buckets=_SECONDS
        )
        self.encoder_busy_seconds = Counter(
            p + "encoder_busy_seconds", "Time in which the encoder ran.", registry=registry
        )
        self.queue_tokens = Gauge(p + "queue_tokens", "Tokens waiting.", ["lane"], registry=registry)
        self.latency_seconds = Histogram(
            p + "latency_seconds", "From event read to score committed.", ["lane"], registry=registry, buckets=_SECONDS
        )
        self.cache_hits = Counter(p + "cache_hits", "Texts found in the vector cache.", registry=registry)
        self.cache_misses = Counter(p + "cache_misses", "Texts that had to be encoded.", registry=registry)
        self.state_reads = Counter(
            p + "state_reads", "States asked of Redis, by what came back.", ["result"], registry=registry
        )
        self.transactions = Counter(
            p + "transactions",
            "Transactions, by what became of them; producers opened.",
            ["result"],
            registry=registry,
        )
        self.paused_partitions = Gauge(p + "paused_partitions", "Partitions paused for load.", registry=registry)
        self.lag_records = Gauge(
            p + "lag_records", "Records not read yet, as the broker last told.", ["topic"], registry=registry
        )
        # These two are computed when they are asked for: a loop that stands still would leave its last good value.
        self.oldest_unfinished_seconds = Gauge(
            p + "oldest_unfinished_seconds", "Age of the oldest event read and not committed.", registry=registry
        )


class ProfilesMetrics:
    """Metrics of profiles; names begin with ``millrace_profiles_``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        p = "millrace_profiles_"
        self.folds = Counter(p + "folds", "Folds added to a state.", ["kind"], registry=registry)
        self.repeats_skipped = Counter(
            p + "repeats_skipped", "Folds at or below their source mark.", ["kind"], registry=registry
        )
        self.forgotten = Counter(
            p + "forgotten", "Folds of erased people, from before their cut-off.", registry=registry
        )
        self.erasures = Counter(p + "erasures", "Erasures carried out on a shard.", registry=registry)
        self.other_space = Counter(p + "other_space", "Blocks of another vector space, skipped.", registry=registry)
        self.fold_seconds = Histogram(
            p + "fold_seconds", "Time to fold and write one batch of blocks.", registry=registry, buckets=_SECONDS
        )
        self.published = Counter(p + "published", "States published to features.", ["kind"], registry=registry)
        self.transactions = Counter(
            p + "transactions", "Transactions of features by what became of them.", ["result"], registry=registry
        )
        self.redis_up = Gauge(p + "redis_up", "1 while Redis answers.", registry=registry)
        self.lag_blocks = Gauge(p + "lag_blocks", "Blocks not yet folded.", registry=registry)
        self.recovery_seconds = Histogram(
            p + "recovery_seconds",
            "From the first shard shut (assigned, Redis away, fence moved) to all of them open.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.rebuilds = Counter(p + "rebuilds", "Shards rebuilt into an empty Redis.", registry=registry)


class AlertsMetrics:
    """Metrics of alerts; names begin with ``millrace_alerts_``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        p = "millrace_alerts_"
        self.opinions = Counter(p + "opinions", "Opinions counted.", registry=registry)
        self.skipped = Counter(
            p + "skipped",
            "Opinions not counted: repeat, late, malformed, apart (copies, an author's fourth).",
            ["reason"],
            registry=registry,
        )
        self.alerts = Counter(p + "alerts", "Alerts published.", ["status"], registry=registry)
        self.subjects = Gauge(p + "subjects", "Subjects with opinions in the window.", registry=registry)


class NotifyMetrics:
    """Metrics of notify; names begin with ``millrace_notify_``. ``sink`` is a name of the configuration."""

    def __init__(self, registry: CollectorRegistry) -> None:
        p = "millrace_notify_"
        self.attempts = Counter(
            p + "attempts", "Attempts to deliver: delivered, retry, refused.", ["sink", "outcome"], registry=registry
        )
        self.attempt_seconds = Histogram(
            p + "attempt_seconds", "Time of one attempt.", ["sink"], registry=registry, buckets=_SECONDS
        )
        self.skipped = Counter(
            p + "skipped",
            "Alerts nobody is told of: repeat, old, muted, acknowledged, unwanted, withdrawn.",
            ["reason"],
            registry=registry,
        )
        self.dead_letters = Counter(
            p + "dead_letters",
            "Messages given up, and records that are no alert.",
            ["sink", "reason"],
            registry=registry,
        )
        self.waiting = Gauge(p + "waiting", "Messages not yet delivered.", ["sink"], registry=registry)
