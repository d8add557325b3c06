"""The folds topics, by shard: positions set by hand, rebalances handed on as events.

Assigned partitions start paused: whoever uses this seeks each to where its fence says and resumes it. The group's
offset is only what was published, so it is never where reading starts by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from schemas.redis_keys import Kind
from schemas.topics import FOLDS
from worker.config import KafkaConfig
from worker.errors import KafkaError, OffsetLostError, TopicError
from worker.kafka.admin import topic_ids
from worker.kafka.clients import NO_RIGHT, REQUEST_TIMEOUT_S, consumer_config, leave, membership, translate

_log = logging.getLogger(__name__)
_code: Final = confluent_kafka.KafkaError

ShardId = tuple[Kind, int]


class FoldStream:
    """A consumer of both folds topics. Raises `KafkaError` where the broker refuses for good."""

    def __init__(
        self,
        kafka: KafkaConfig,
        assigned: Callable[[list[ShardId]], None],
        revoked: Callable[[list[ShardId]], None],
        lost: Callable[[list[ShardId]], None],
    ) -> None:
        self._topics: dict[str, Kind] = {kafka.topic(FOLDS["user"]): "user", kafka.topic(FOLDS["item"]): "item"}
        self._names: dict[Kind, str] = {kind: name for name, kind in self._topics.items()}
        self._topic_ids = topic_ids(kafka, self._topics)
        self._assigned, self._revoked, self._lost = assigned, revoked, lost
        # Where reading has met the end: above the last block there may be the mark of a transaction, which is no block.
        self._ends: dict[ShardId, int] = {}
        self._consumer = Consumer(
            consumer_config(
                kafka,
                f"{kafka.group_prefix}.profiles",
                auto_offset_reset="error",
                # The embedded broker answers an empty fetch only after this; a real one answers when there is data.
                fetch_wait_max_ms=100,
                enable_partition_eof=True,
            )
        )
        self._consumer.subscribe(
            list(self._topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def topic(self, kind: Kind) -> str:
        """The cluster's name of the folds topic."""
        return self._names[kind]

    def topic_id(self, kind: Kind) -> str:
        """Kafka's id of it, as it was when this was made."""
        return self._topic_ids[self._names[kind]]

    def poll(self, max_blocks: int, timeout_s: float) -> dict[ShardId, list[tuple[int, bytes | None]]]:
        """Offsets and values of the next blocks by shard, in offset order. Rebalance callbacks run in here.

        Raises `OffsetLostError` when a position no longer exists, `KafkaError` when the broker refuses for good.
        """
        found: dict[ShardId, list[tuple[int, bytes | None]]] = {}
        try:
            messages = self._consumer.consume(max_blocks, timeout_s)
        except KafkaException as failure:
            raise translate(failure, doing="reading folds") from failure
        for message in messages:
            error = message.error()
            if error is None:
                found.setdefault((self._topics[message.topic()], message.partition()), []).append(
                    (message.offset(), message.value())
                )
            elif error.code() == _code._PARTITION_EOF:
                self._ends[self._topics[message.topic()], message.partition()] = message.offset()
            else:
                self._complain(error)
        return found

    def bounds(self, shard: ShardId) -> tuple[int, int]:
        """First offset still there, and the next one to be written."""
        try:
            low, high = self._consumer.get_watermark_offsets(self._at(shard), timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error, doing=f"asking for the bounds of {self._names[shard[0]]}") from error
        return low, high

    def behind(self, shard: ShardId, position: int) -> int:
        """Blocks after ``position`` that the broker last told of; asks nobody."""
        _, high = self._consumer.get_watermark_offsets(self._at(shard), cached=True)
        return max(0, int(high) - max(position, self._ends.get(shard, 0)))

    def ended(self, shard: ShardId) -> int:
        """Where reading has met the end since it was started; -1 where it has not. Whatever is below it was handed out,
        or is no block and will be none: the mark of a transaction, or of one that was aborted.
        """
        return self._ends.get(shard, -1)

    def published(self, shard: ShardId) -> int | None:
        """The group's offset: everything below it is in the features topics. None where nothing was committed."""
        try:
            (found,) = self._consumer.committed([self._at(shard)], timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error, doing="reading the group's offsets") from error
        if found.error is not None:
            raise translate(found.error, doing="reading the group's offsets")
        return int(found.offset) if found.offset >= 0 else None

    def start(self, shard: ShardId, offset: int) -> bool:
        """Seek and resume; False when the client is not ready for it yet (right after assignment): ask again."""
        try:
            self._consumer.seek(self._at(shard, offset))
            self._ends.pop(shard, None)  # what is below it may not have been folded
            self._consumer.resume([self._at(shard)])
        except KafkaException as error:
            if error.args[0].code() in (_code._STATE, _code._TIMED_OUT, _code._IN_PROGRESS):
                return False
            raise translate(error, doing=f"seeking in {self._names[shard[0]]}") from error
        return True

    def pause(self, shards: Iterable[ShardId]) -> None:
        """Fetch no more of these until they are started again."""
        self._consumer.pause([self._at(shard) for shard in shards])

    def membership(self) -> bytes | None:
        """The group's metadata as it is now, for offsets in a transaction; None for a client that was expelled."""
        return membership(self._consumer)

    def commit(self, published: dict[ShardId, int]) -> bool:
        """Commit what was published; False when the group would not have it now (a rebalance is on)."""
        try:
            done = self._consumer.commit(
                offsets=[self._at(shard, offset) for shard, offset in published.items()], asynchronous=False
            )
        except KafkaException as error:
            _log.warning("published offsets not committed: %s; they will be published again", error.args[0].str())
            return False
        return all(part.error is None for part in done)

    def close(self) -> None:
        """Leave the group; partitions are revoked first."""
        leave(self._consumer)

    def _at(self, shard: ShardId, offset: int = OFFSET_BEGINNING) -> TopicPartition:
        return TopicPartition(self._names[shard[0]], shard[1], offset)

    def _ids(self, parts: Iterable[TopicPartition]) -> list[ShardId]:
        return [(self._topics[part.topic], part.partition) for part in parts]

    def _on_assign(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        # From the beginning and paused: no fetch, and no look-up of a group offset that may not exist.
        consumer.incremental_assign([TopicPartition(part.topic, part.partition, OFFSET_BEGINNING) for part in parts])
        consumer.pause(parts)
        self._assigned(self._ids(parts))

    def _on_revoke(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        self._revoked(self._ids(parts))
        consumer.incremental_unassign(parts)

    def _on_lost(self, consumer: Consumer, parts: list[TopicPartition]) -> None:
        self._lost(self._ids(parts))
        consumer.incremental_unassign(parts)

    def _complain(self, error: confluent_kafka.KafkaError) -> None:
        cause: KafkaError = translate(error, doing="reading folds")
        if isinstance(cause, OffsetLostError | TopicError) or error.fatal() or error.code() in NO_RIGHT:
            raise cause
        _log.warning("reading folds: %s", error.str())
