"""How far every role is: lag by topic and partition, fences in Redis, and the oldest event not yet finished."""

from __future__ import annotations

import time
from typing import Any, Final, Literal

import confluent_kafka
import msgspec

from schemas.redis_keys import Kind
from schemas.states import decode_fence
from schemas.topics import ALERTS_OPINION, FOLDS, INPUTS, OPINIONS
from worker.config import Config, KafkaConfig
from worker.errors import MillraceError
from worker.kafka.clients import REQUEST_TIMEOUT_S, consumer_config, translate, watermarks

Role = Literal["worker", "profiles", "alerts", "notify"]
READS: Final[dict[Role, tuple[str, ...]]] = {
    "worker": INPUTS,
    "profiles": tuple(FOLDS.values()),
    "alerts": (OPINIONS,),
    "notify": (ALERTS_OPINION,),
}
OLDEST_TIMEOUT_S: Final = 5.0


class PartitionLag(msgspec.Struct, frozen=True, kw_only=True):
    """One partition of one group. ``committed`` is None before the first commit: all that is kept is lag then.

    ``finished``: nothing is left but the marks of transactions, which take offsets and are no records.
    """

    topic: str
    partition: int
    committed: int | None
    low: int
    high: int
    finished: bool = False

    @property
    def next_offset(self) -> int:
        """The offset that the group goes on from."""
        return self.low if self.committed is None else max(self.low, self.committed)

    @property
    def lag(self) -> int:
        """Records not yet finished."""
        return 0 if self.finished else max(0, self.high - self.next_offset)


class RoleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One role. ``oldest_unfinished_s`` is the age of the oldest record it has not finished; None without lag."""

    role: Role
    group: str
    lag: int
    oldest_unfinished_s: float | None
    missing_topics: list[str]
    partitions: list[PartitionLag]


class FenceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One shard: the next fold to fold by Redis's fence, and where the folds end. ``fence`` None: Redis has none."""

    kind: Kind
    shard: int
    fence: int | None
    end: int

    @property
    def behind(self) -> int:
        """Fold blocks not in Redis."""
        return self.end - (self.fence or 0)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `millrace status` shows. ``fences_error`` says why fences could not be read."""

    roles: list[RoleStatus]
    fences: list[FenceStatus]
    fences_error: str | None = None


def status(config: Config) -> Status:
    """Ask Kafka and Redis. Raises `KafkaError`; a Redis or model that does not answer is part of the status."""
    # Who tells nobody runs no notifier, and its lag would only grow.
    roles = [_role(config.kafka, role) for role in READS if role != "notify" or config.notify.sinks]
    profiles = next(each for each in roles if each.role == "profiles")
    try:
        return Status(roles=roles, fences=_fences(config, profiles.partitions))
    except MillraceError as error:
        return Status(roles=roles, fences=[], fences_error=str(error))


def _role(kafka: KafkaConfig, role: Role) -> RoleStatus:
    group = f"{kafka.group_prefix}.{role}"
    try:
        consumer = confluent_kafka.Consumer(consumer_config(kafka, group, enable_partition_eof=True))
        try:
            names = [kafka.topic(name) for name in READS[role]] + (list(kafka.added_topics) if role == "worker" else [])
            known = consumer.list_topics(timeout=REQUEST_TIMEOUT_S).topics
            parts = [
                confluent_kafka.TopicPartition(name, each)
                for name in names
                if name in known
                for each in sorted(known[name].partitions)
            ]
            lags = [_lag(consumer, part) for part in consumer.committed(parts, timeout=REQUEST_TIMEOUT_S)]
            oldest_ms, finished = _oldest_ms(consumer, [lag for lag in lags if lag.lag])
            lags = [msgspec.structs.replace(lag, finished=(lag.topic, lag.partition) in finished) for lag in lags]
        finally:
            consumer.close()
    except confluent_kafka.KafkaException as error:
        raise translate(error, doing=f"asking for the offsets of {group}") from error
    return RoleStatus(
        role=role,
        group=group,
        lag=sum(lag.lag for lag in lags),
        oldest_unfinished_s=None if oldest_ms is None else round(max(0.0, time.time() - oldest_ms / 1000), 1),
        missing_topics=[name for name in names if name not in known],
        partitions=lags,
    )


def _lag(consumer: confluent_kafka.Consumer, part: Any) -> PartitionLag:
    low, high = watermarks(consumer, part)
    committed = part.offset if part.offset >= 0 else None
    return PartitionLag(topic=part.topic, partition=part.partition, committed=committed, low=low, high=high)


def _oldest_ms(
    consumer: confluent_kafka.Consumer, behind: list[PartitionLag]
) -> tuple[int | None, set[tuple[str, int]]]:
    """Time of the oldest unfinished record, and the partitions that have none: the first one of every partition that is
    behind is read."""
    finished: set[tuple[str, int]] = set()
    if not behind:
        return None, finished
    # Assigned, not subscribed, and nothing is committed: the group does not notice.
    consumer.assign([confluent_kafka.TopicPartition(lag.topic, lag.partition, lag.next_offset) for lag in behind])
    waiting = {(lag.topic, lag.partition) for lag in behind}
    oldest: int | None = None
    deadline = time.monotonic() + OLDEST_TIMEOUT_S
    while waiting and time.monotonic() < deadline:
        for message in consumer.consume(500, 0.2):
            place = (message.topic(), message.partition())
            error = message.error()
            ended = error is not None and error.code() == confluent_kafka.KafkaError._PARTITION_EOF
            if place not in waiting or (error is not None and not ended):
                continue
            waiting.discard(place)
            if ended:
                finished.add(place)
                continue
            # One record of each is enough; the rest of a long backlog is not read.
            consumer.pause([confluent_kafka.TopicPartition(*place)])
            oldest = min(oldest, message.timestamp()[1]) if oldest is not None else message.timestamp()[1]
    return oldest, finished


def _fences(config: Config, lags: list[PartitionLag]) -> list[FenceStatus]:
    # Late: it brings the whole role with it.
    from worker.profiles.role import space_of
    from worker.redis.store import StateStore

    store = StateStore(config.redis, space_of(config.model))
    kinds: dict[str, Kind] = {config.kafka.topic(FOLDS["user"]): "user", config.kafka.topic(FOLDS["item"]): "item"}
    statuses = []
    for lag in lags:
        found = store.fence(kinds[lag.topic], lag.partition)
        fence = decode_fence(found).fold_offset if found else None
        end = lag.next_offset if lag.finished else lag.high
        statuses.append(FenceStatus(kind=kinds[lag.topic], shard=lag.partition, fence=fence, end=end))
    return statuses
