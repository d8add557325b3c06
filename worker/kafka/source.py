"""Where records come from: Kafka in batches, partitions coming and going as data.

The one thing that cannot wait for the caller is a revocation: the broker holds the partitions until we have handed
them over, inside the poll. It is passed to ``poll`` as a function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from typing import Any, Final, Protocol

import confluent_kafka
import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from worker.config import KafkaConfig
from worker.errors import KafkaError, OffsetLostError, TopicError
from worker.kafka.clients import consumer_config, leave, membership, translate
from worker.kafka.records import Offsets, Partition, Record

STABLE_TIMEOUT_S: Final = 30.0
"""A killed worker's open transaction holds its partitions' offsets back until the broker ends it."""
PREFETCH_KBYTES: Final = 16 * 1024
"""What the client may hold of records that we have not asked for yet."""

_log = logging.getLogger(__name__)
_code = confluent_kafka.KafkaError
# The client mends these by itself: a broker that is away comes back, a missed poll interval ends in a rejoin.
_PASSING: Final = frozenset(
    {_code._TRANSPORT, _code._ALL_BROKERS_DOWN, _code._TIMED_OUT, _code._RESOLVE, _code._MAX_POLL_EXCEEDED}
)


class Polled(msgspec.Struct):
    """What one poll brought. ``commits`` are the answers to `Source.commit`: the offsets, and the error or None."""

    records: list[Record] = []
    assigned: list[Partition] = []
    lost: list[Partition] = []
    commits: list[tuple[Offsets, str | None]] = []


class Source(Protocol):
    """Records in, offsets out."""

    def poll(self, max_records: int, timeout_s: float, hand_over: Callable[[list[Partition]], None]) -> Polled:
        """At most ``max_records``, as soon as there is one. ``hand_over`` is called for partitions being revoked."""
        ...

    def pause(self, topics: Container[str] | None = None) -> None:
        """Fetch nothing more of these topics (None: of any)."""
        ...

    def resume(self, topics: Container[str] | None = None) -> None:
        """Fetch these again (None: all)."""
        ...

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Begin to commit; a later poll brings the answer."""
        ...

    def commit_now(self, offsets: Mapping[Partition, int]) -> bool:
        """Commit and wait. False where the group has moved on or the broker is away: others will read again."""
        ...

    def rewind(self, partitions: Iterable[Partition]) -> None:
        """Read these again from where they are committed; they are fetched again even if they were paused."""
        ...

    def lag(self) -> dict[str, int]:
        """Records not read yet of the partitions held, by topic, as the broker last told; asks nobody."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class KafkaSource:
    """`Source` on confluent-kafka: batched consume, cooperative rebalancing, explicit start offsets.

    ``topics`` maps each to Kafka's id of it: one that was deleted and made again has another, and is refused.
    ``instance`` makes it a static member of that name; ``connect`` makes the client of its settings.

    Raises `OffsetLostError` when a partition's next offset is gone, `TopicError` for a topic that vanished,
    `KafkaError` for what the client cannot mend by itself.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topics: Mapping[str, str],
        group: str,
        instance: str | None = None,
        connect: Callable[[dict[str, Any]], Consumer] = Consumer,
    ) -> None:
        self._resetting = (
            f"kafka-consumer-groups.sh --bootstrap-server {config.bootstrap} --group {group} --reset-offsets"
        )
        self._topic_ids = dict(topics)
        self._ids = " ".join(f"{topic}={topic_id}" for topic, topic_id in topics.items())
        self._eager = config.group_protocol == "eager"
        own: dict[str, Any] = {
            "queued.max.messages.kbytes": PREFETCH_KBYTES,
            # An offset out of range must stop us; where nothing was committed, `_assigned` starts at the earliest.
            "auto.offset.reset": "error",
            "on_commit": self._commit_answered,
        }
        if instance is not None:
            own["group.instance.id"] = instance
        self._consumer = connect(consumer_config(config, group, **own))
        self._polled = Polled()
        self._hand_over: Callable[[list[Partition]], None] = _nothing
        self._held: set[Partition] = set()
        self._starts: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._moved_in_poll: set[Partition] = set()
        self._stopped = False
        self._failure: Exception | None = None
        self._refused: list[tuple[Offsets, str | None]] = []
        self._consumer.subscribe(list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def poll(self, max_records: int, timeout_s: float, hand_over: Callable[[list[Partition]], None]) -> Polled:
        self._polled, self._hand_over = Polled([], [], [], self._refused), hand_over
        self._refused = []
        self._moved_in_poll.clear()
        try:
            # consume() waits until it has all that it was asked for, so the first record is waited for alone.
            messages = self._consumer.consume(max_records, 0)
            if not messages and timeout_s > 0:
                first = self._consumer.poll(timeout_s)
                messages = [] if first is None else [first, *self._consumer.consume(max_records, 0)]
        except KafkaException as error:
            raise translate(error, doing="reading events") from error
        if self._failure is not None:
            raise self._failure
        self._polled.records = self._records(messages)
        return self._polled

    def pause(self, topics: Container[str] | None = None) -> None:
        fresh = {p for p in self._held - self._paused if topics is None or p[0] in topics}
        if fresh:
            self._consumer.pause([TopicPartition(*partition) for partition in sorted(fresh)])
            self._paused |= fresh

    def resume(self, topics: Container[str] | None = None) -> None:
        self._resume({partition for partition in self._paused if topics is None or partition[0] in topics})

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        try:
            self._consumer.commit(offsets=self._positions(offsets), asynchronous=True)
        except KafkaException as error:
            self._refused.append((dict(offsets), str(error)))

    def commit_now(self, offsets: Mapping[Partition, int]) -> bool:
        if not offsets:
            return True
        try:
            done = self._consumer.commit(offsets=self._positions(offsets), asynchronous=False)
        except KafkaException as error:
            refused: object = error
        else:
            refused = next((p.error for p in done if p.error is not None), None)
        if refused is not None:
            _log.warning("commit refused, the next owner reads these events again: %s", refused)
        return refused is None

    def rewind(self, partitions: Iterable[Partition]) -> None:
        again = sorted(self._held.intersection(partitions))
        if not again:
            return  # of nothing the eager client would take everything away
        start = self._start([TopicPartition(*partition) for partition in again], doing="asking where to read again")
        # Taken and given anew rather than sought: a seek is refused while the client still looks for its offset.
        self._resume(self._paused.intersection(again))
        self._unassign(start)
        self._assign(start)

    def position(self, partition: Partition, offset: int) -> TopicPartition:
        """The next offset of a partition, as it is committed."""
        return TopicPartition(*partition, offset, metadata=self._ids)

    def membership(self) -> bytes | None:
        """The group's metadata as it is now, for offsets in a transaction; None for a client that was expelled."""
        return membership(self._consumer)

    def committed(self, partitions: Collection[Partition]) -> Offsets:
        """What the group has committed, once no transaction is open on it. For any thread. Raises `KafkaError`."""
        asked = [TopicPartition(*partition) for partition in partitions]
        found = self._committed(asked, doing="asking for committed offsets")
        return {(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def lag(self) -> dict[str, int]:
        lag = dict.fromkeys(self._topic_ids, 0)
        for at in self._consumer.position([TopicPartition(*partition) for partition in self._held]):
            # What the last fetch told: of a paused partition nothing newer, but no pause for load lasts.
            low, high = self._consumer.get_watermark_offsets(at, cached=True)
            # The client knows no position before the first record. Whatever it does not know is below 0.
            lag[at.topic] += max(0, high - max(at.offset, self._starts[at.topic, at.partition], low))
        return lag

    def close(self) -> None:
        self._stopped = True
        leave(self._consumer)

    def _positions(self, offsets: Mapping[Partition, int]) -> list[TopicPartition]:
        return [self.position(partition, offset) for partition, offset in offsets.items()]

    def _records(self, messages: list[Any]) -> list[Record]:
        records = []
        for message in messages:
            if message.error() is not None:
                self._failed(message)
                continue
            records.append(
                Record(
                    message.topic(),
                    message.partition(),
                    message.offset(),
                    message.timestamp()[1],
                    message.key(),
                    message.value(),
                    message.headers(),
                )
            )
        if self._moved_in_poll:
            # Taken away and given back within one poll: what was fetched before may lie beyond where we start again.
            # The eager client gives all of its partitions anew or none.
            moved = self._held if self._eager else self._moved_in_poll
            records = [r for r in records if (r.topic, r.partition) not in moved]
            self.rewind(moved)
        return records

    def _failed(self, message: Any) -> None:
        error = message.error()
        if error.code() in _PASSING or error.retriable():
            _log.warning("reading events: %s", error.str())
            return
        where = f"{message.topic()}/{message.partition()}" if message.topic() else "events"
        cause = translate(KafkaException(error), doing=f"reading {where}")
        if isinstance(cause, OffsetLostError):
            place = f"{message.topic()}:{message.partition()}"
            cause = OffsetLostError(
                f"{cause}. Once you know what was lost, stop all processes of this group and say where to go on:"
                f" {self._resetting} --to-earliest --topic {place} --execute"
            )
        raise cause from KafkaException(error)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._stopped:
            return  # closing: given back at once, and the client answers no question now
        try:
            start = self._start(partitions, doing="finding where to begin")
        except KafkaError as error:
            self._failure = error  # raised by `poll`, which the client returns to when its callbacks are done
            return
        self._assign(start)
        fresh = [(p.topic, p.partition) for p in partitions]
        self._held.update(fresh)
        self._moved_in_poll.update(p for p in fresh if p in self._polled.lost)
        self._polled.assigned += fresh

    def _start(self, partitions: list[TopicPartition], doing: str) -> list[TopicPartition]:
        """Where to begin: the committed offset, else the earliest. Raises `KafkaError` when the broker is away."""
        start = []
        for found in self._committed(partitions, doing):
            self._check_made_again(found.metadata or "")
            offset = found.offset if found.offset >= 0 else OFFSET_BEGINNING
            start.append(TopicPartition(found.topic, found.partition, offset))
        return start

    def _check_made_again(self, committed_with: str) -> None:
        """The broker forgets a deleted topic's offsets, so each offset tells the ids of all topics: others remember."""
        then = dict(pair.split("=", 1) for pair in committed_with.split() if "=" in pair)
        for topic, now in self._topic_ids.items():
            if then.get(topic, now) != now:
                raise TopicError(
                    f"{topic} was deleted and made again since this group committed: its positions mean other events"
                    " now, and readers that know outputs by them would drop the new ones. To accept it, stop all"
                    f" processes of this group and run {self._resetting} --to-current --all-topics --execute. Another"
                    " kafka.group_prefix begins anew with all that every input retains"
                )

    def _committed(self, partitions: list[TopicPartition], doing: str) -> list[TopicPartition]:
        try:
            # Where another's transaction is open on them the client asks again until that has ended.
            found: list[TopicPartition] = self._consumer.committed(partitions, timeout=STABLE_TIMEOUT_S)
        except KafkaException as error:
            raise translate(error, doing) from error
        for position in found:
            if position.error is not None:
                raise translate(position.error, doing) from KafkaException(position.error)
        return found

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = [(p.topic, p.partition) for p in partitions]
        if not self._stopped:
            try:
                self._hand_over(gone)
            except Exception as error:  # noqa: BLE001 raised by `poll`, when the partitions have been given back
                self._failure = error
        self._let_go(gone)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = [(p.topic, p.partition) for p in partitions]
        _log.warning("assignment lost: %s", gone)
        self._let_go(gone)

    def _assign(self, partitions: list[TopicPartition]) -> None:
        self._starts.update({(p.topic, p.partition): p.offset for p in partitions})
        if self._eager:
            self._consumer.assign(partitions)
        else:
            self._consumer.incremental_assign(partitions)

    def _unassign(self, partitions: list[TopicPartition]) -> None:
        if self._eager:
            self._consumer.unassign()
        else:
            self._consumer.incremental_unassign(partitions)

    def _let_go(self, gone: list[Partition]) -> None:
        # The client keeps a pause over a revocation (librdkafka#5113): back again, nobody would know of it.
        self._resume(self._paused.intersection(gone))
        self._held.difference_update(gone)
        self._polled.assigned = [p for p in self._polled.assigned if p not in gone]
        self._polled.lost += gone
        self._unassign([TopicPartition(*partition) for partition in gone])

    def _resume(self, partitions: set[Partition]) -> None:
        if partitions and not self._stopped:
            self._consumer.resume([TopicPartition(*partition) for partition in sorted(partitions)])
        self._paused -= partitions

    def _commit_answered(self, error: Any, partitions: list[TopicPartition]) -> None:
        failed = error or next((p.error for p in partitions if p.error is not None), None)
        offsets = {(p.topic, p.partition): p.offset for p in partitions}
        self._polled.commits.append((offsets, None if failed is None else failed.str()))


def _nothing(partitions: list[Partition]) -> None:
    """Before the first poll there is nothing to hand over."""
