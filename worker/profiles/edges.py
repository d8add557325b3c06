"""What a profiles process touches of the world, each opened here: Redis, the topics, the group, the transactions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

from confluent_kafka import TopicPartition

from worker.config import Config
from worker.kafka.sink import KafkaSink, Sink
from worker.kafka.slot import Slot
from worker.kafka.transaction import transactional_sink
from worker.metrics import ProfilesMetrics
from worker.privacy.erasure_feed import ErasureFeed
from worker.profiles.features import Features
from worker.profiles.foldstream import FoldStream, ShardId
from worker.redis.store import StateStore


class Edges:
    """Opens the real ones, each once; who asked closes it. A simulation has edges of its own.

    Each raises what its class raises when it is made.
    """

    def __init__(self, config: Config, space: str, metrics: ProfilesMetrics) -> None:
        self._config, self._space, self._metrics = config, space, metrics
        self._closing = ExitStack()

    def store(self) -> StateStore:
        """States and fences in Redis."""
        return StateStore(self._config.redis, self._space)

    def features(self) -> Features:
        """Writer and reader of the features topics."""
        return Features(self._config.kafka, self._space)

    def dead(self) -> Sink:
        """Where copies of blocks go that cannot be read."""
        return KafkaSink(self._config.kafka)

    def erasures(self) -> ErasureFeed:
        """Who is to be forgotten, read to its end."""
        return ErasureFeed(self._config.kafka, "profiles")

    def stream(
        self,
        assigned: Callable[[list[ShardId]], None],
        revoked: Callable[[list[ShardId]], None],
        lost: Callable[[list[ShardId]], None],
    ) -> FoldStream:
        """The folds topics, as a member of the group."""
        return FoldStream(self._config.kafka, assigned, revoked, lost)

    def sink(self, stream: FoldStream) -> Sink:
        """Where states are published: with the group's offsets in a transaction, where that is configured."""
        kafka, profiles = self._config.kafka, self._config.profiles
        if kafka.embedded or profiles.delivery == "at_least_once":
            return KafkaSink(kafka)
        group = f"{kafka.group_prefix}.profiles"
        slot = self._closing.enter_context(closing(Slot(profiles.slot, group, key="profiles.slot")))
        return transactional_sink(
            kafka,
            f"{group}.{slot.name}",
            profiles.transaction_timeout_ms,
            stream.membership,
            lambda partition, offset: TopicPartition(*partition, offset),
            None,  # a state that is published twice is the same state
            lambda result: self._metrics.transactions.labels(result).inc(),
        )

    def close(self) -> None:
        """Let others have the slot. Only after the sink was closed."""
        self._closing.close()
