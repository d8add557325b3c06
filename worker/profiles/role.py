"""Profiles: folds into Redis exactly once, and features out.

Each owned shard goes through one loop: read blocks from where its fence stands, fold what is new, write states and
fence together, and every ``publish_interval_ms`` publish the states that changed together with the group's offset,
which means "published up to here" (`worker.profiles.publishing`). Whatever goes wrong with a shard (Redis away, fence
moved by another writer, unknown outcome of a write), its memory is dropped and it is opened again from its fence:
blocks below the fence are not folded again, only the states they touched are published again.

Whoever asked to be forgotten is forgotten here (`worker.profiles.forgetting`): states deleted, older folds left out.

A block that cannot be read is copied to ``events.dead`` and passed over: one poison record must not stop a shard.
Bounds: at most ``poll_blocks`` blocks are held; a shard's unpublished keys are at most its users (ids only).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from schemas.folds import FoldBlock, FormatError
from schemas.states import encode_fence
from schemas.topics import FEATURES, FOLDS
from worker.config import Config, ModelConfig
from worker.errors import (
    ConfigError,
    FenceMovedError,
    KafkaError,
    KafkaRefusedError,
    ModelLoadError,
    OffsetLostError,
    StoreError,
    TopicError,
)
from worker.kafka.admin import partition_counts
from worker.kafka.dead import dead_letter, dead_message
from worker.kafka.records import Record
from worker.metrics import ProfilesMetrics
from worker.observe import Observer
from worker.privacy.erasures import NOBODY
from worker.profiles.edges import Edges
from worker.profiles.folding import Placed, chunks, fold, read_block, select
from worker.profiles.foldstream import ShardId
from worker.profiles.forgetting import Forgetting
from worker.profiles.publishing import Publishing
from worker.profiles.shard import Shard, ShardOpener

POLL_S: Final = 0.05
LOOK_S: Final = 5.0
"""How often fences are looked at: a Redis that was emptied or failed over is noticed even where no folds come."""
CARRY_S: Final = 60.0
"""How long a shard is idle before its fence is carried over the marks of transactions behind its last block."""
HAND_OVER_S: Final = 10.0
"""What publishing may take at revocation and shutdown, and the copy of a block that cannot be read."""
_log = structlog.get_logger(__name__)


def run(config: Config, stop: threading.Event) -> None:
    """Fold until ``stop`` is set; publish and commit what is pending before returning.

    Raises `TopicError` for missing topics or another partition count than ``kafka.fold_shards``,
    `OffsetLostError` when folds are gone that were not folded, `CorruptStateError` for a damaged value in Redis,
    `StoreRefusedError`, `KafkaError`, `ModelLoadError`, `ConfigError`. Redis being away raises nothing: it waits.
    """
    space = space_of(config.model)
    check_partitions(config)
    registry = CollectorRegistry()
    with ExitStack() as stack:
        profiles = stack.enter_context(closing(Profiles(config, space, ProfilesMetrics(registry))))
        observer = stack.enter_context(Observer(config.observe, registry, profiles.health))
        _log.info("profiles running", space=space, observe=observer.address)
        while not stop.is_set():
            profiles.step()
            observer.turned()


@dataclass(slots=True)
class Shut:
    """A shard that is not read now: up to where it is folded (None: not known here), blocks after that as far as is
    known, and when to ask the broker for them."""

    ask_at: float
    position: int | None = None
    waiting: int = 0


class Profiles:
    """All shards of this process: open ones are read and folded, shut ones wait to be opened.

    ``edges`` are the real ones unless given; ``clock`` gives seconds.
    """

    def __init__(
        self,
        config: Config,
        space: str,
        metrics: ProfilesMetrics,
        edges: Edges | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._space, self._metrics = config, space, metrics
        self._open: dict[ShardId, Shard] = {}
        self._shut: dict[ShardId, Shut] = {}
        self._redis_up = True
        self._retry_at = self._publish_at = self._look_at = self._carry_at = 0.0
        self._shut_since: float | None = None
        metrics.redis_up.set(1)
        self._clock = clock
        self._closing = ExitStack()
        edges = self._closing.enter_context(closing(edges or Edges(config, space, metrics)))
        self._store = self._closing.enter_context(closing(edges.store()))
        features = self._closing.enter_context(closing(edges.features()))
        self._dead = edges.dead()
        self._closing.callback(self._dead.close, HAND_OVER_S)
        self._erasures = self._closing.enter_context(closing(edges.erasures()))  # before any fold
        self._forgetting = Forgetting(self._erasures, self._store, config.kafka.fold_shards, metrics)
        self._stream = edges.stream(self._on_assigned, self._hand_over, self._on_lost)
        self._publishing = Publishing(
            edges.sink(self._stream), features, self._store, self._stream.topic, self._stream.commit, metrics
        )
        self._closing.callback(self._publishing.close, HAND_OVER_S)
        self._closing.enter_context(closing(self._stream))
        self._opener = ShardOpener(self._store, features, self._stream, self._erasures.known, metrics)

    def step(self) -> None:
        """Open what is shut, forget who is to be forgotten, fold what has come, publish when it is time."""
        if self._clock() >= self._retry_at:
            self._open_shut()
        if self._erasures.poll():
            self._carry_out()
        if self._clock() >= self._look_at:
            self._look()
            self._look_at = self._clock() + LOOK_S
        self._ask_of_shut()
        for shard_id, records in self._stream.poll(self._config.profiles.poll_blocks, POLL_S).items():
            if shard_id in self._open:
                self._fold(self._open[shard_id], records)
        if self._clock() >= self._carry_at:
            self._carry()
            self._carry_at = self._clock() + CARRY_S
        self._publishing.settle(0.0)
        if self._clock() >= self._publish_at or self._publishing.cut:
            self._publish(list(self._open))
            self._publish_at = self._clock() + self._config.profiles.publish_interval_ms / 1000
            self._measure()

    def health(self) -> tuple[bool, dict[str, Any]]:
        """For ``/healthz``: not ready while Redis is away."""
        redis = "up" if self._redis_up else "away: waiting, folds stay in Kafka"
        return self._redis_up, {"redis": redis, "shards_open": len(self._open), "shards_waiting": len(self._shut)}

    def close(self) -> None:
        """Leave the group (which publishes and commits what is pending) and close the connections."""
        self._closing.close()

    def _open_shut(self) -> None:
        """Open shut shards, for about one poll's time: the group must hear from us."""
        if not self._shut:
            return
        until = self._clock() + POLL_S
        self._shut_since = self._shut_since or self._clock()
        try:
            if not self._redis_up:
                self._store.ping()
                self._redis_answers()
            for shard_id in list(self._shut):
                self._open_one(shard_id)
                if self._clock() > until or self._clock() < self._retry_at:
                    break
        except StoreError as error:
            self._redis_away(error)
        if not self._shut:
            self._metrics.recovery_seconds.observe(self._clock() - self._shut_since)
            self._shut_since = None

    def _open_one(self, shard_id: ShardId) -> None:
        try:
            shard = self._opener.open(*shard_id)
            self._forgetting.opened(shard)
        except FenceMovedError:
            return  # another process is rebuilding it; its fence will be there at a later try
        except (OffsetLostError, TopicError, KafkaRefusedError):
            raise
        except KafkaError as error:
            # A leader that moves, a broker that restarts: the shard stays shut until Kafka answers.
            self._retry_at = self._clock() + self._config.profiles.redis_retry_ms / 1000
            _log.warning("shard not opened yet", kind=shard_id[0], shard=shard_id[1], detail=str(error))
            return
        if self._stream.start(shard_id, shard.position):
            del self._shut[shard_id]
            self._open[shard_id] = shard

    def _look(self) -> None:
        """Shards whose fence is not as this process left it are opened again."""
        shards = list(self._open.values())
        if not shards:
            return
        try:
            found = self._store.fences([shard.id for shard in shards])
        except StoreError as error:
            self._redis_away(error)
            return
        for shard, raw in zip(shards, found, strict=True):
            if raw != shard.raw:
                self._fence_moved(
                    shard, FenceMovedError("the fence is gone" if raw is None else "another fence stands")
                )

    def _carry(self) -> None:
        """Fences of idle shards to the end of their partitions. Behind the last block the mark of its transaction is
        left: a fence that stayed before it would seem to have lost folds when retention has taken both.
        """
        for shard in list(self._open.values()):
            self._to_the_end(shard)
            idle, shard.idle_at = shard.idle_at == shard.fence.fold_offset, shard.fence.fold_offset
            if not idle or shard.position <= shard.fence.fold_offset:
                continue
            fence = msgspec.structs.replace(shard.fence, fold_offset=shard.position)
            raw = encode_fence(fence)
            try:
                self._store.write(shard.kind, shard.number, shard.raw, raw, ())
            except FenceMovedError as error:
                self._fence_moved(shard, error)
            except StoreError as error:
                self._redis_away(error)
                return
            else:
                shard.fence, shard.raw = fence, raw

    def _to_the_end(self, shard: Shard) -> None:
        """Read is what is below the end that was met: all blocks of it were handed out, and an open shard has them."""
        shard.position = max(shard.position, self._stream.ended(shard.id))

    def _carry_out(self) -> None:
        for shard in list(self._open.values()):
            try:
                self._forgetting.carry_out(shard)
            except FenceMovedError as error:
                self._fence_moved(shard, error)
            except StoreError as error:
                self._redis_away(error)
                return

    def _fold(self, shard: Shard, records: Iterable[tuple[int, bytes | None]]) -> None:
        later: list[Placed] = []
        for offset, value in records:
            if offset < shard.position:
                continue  # fetched before a seek
            block = self._block(shard, offset, value)
            if offset >= shard.fence.fold_offset:
                later.append((offset, block))
            elif block is not None:
                shard.dirty.update(dict.fromkeys(block.keys))
            shard.position = offset + 1
        try:
            for chunk in chunks(later):
                with self._metrics.fold_seconds.time():
                    self._fold_chunk(shard, chunk)
        except FenceMovedError as error:
            self._fence_moved(shard, error)
        except StoreError as error:
            self._redis_away(error)

    def _fold_chunk(self, shard: Shard, chunk: list[Placed]) -> None:
        selection = select(shard.fence, chunk, self._erasures.known if shard.kind == "user" else NOBODY)
        present = self._store.load(shard.kind, shard.number, shard.raw, selection.keys)
        try:
            states, rows = fold(selection, present, shard.kind, self._config.profiles.scales_s)
        except FormatError as error:
            raise ConfigError(
                f"{error}. States are made for their scales: restore the old ones, or begin anew with an empty Redis"
                " database and empty features topics"
            ) from error
        raw = encode_fence(selection.fence)
        self._store.write(shard.kind, shard.number, shard.raw, raw, states)
        shard.fence, shard.raw = selection.fence, raw
        shard.dirty.update(dict.fromkeys(selection.keys))
        self._metrics.folds.labels(shard.kind).inc(rows)
        self._metrics.repeats_skipped.labels(shard.kind).inc(selection.repeats)
        self._metrics.forgotten.inc(selection.forgotten)

    def _block(self, shard: Shard, offset: int, value: bytes | None) -> FoldBlock | None:
        """The block; None for one to pass over: of another space, or unreadable (then its copy is safe)."""
        try:
            block = read_block(value, shard.kind, shard.number)
        except FormatError as error:
            if offset >= shard.fence.fold_offset:
                self._bury(shard, offset, value, str(error))
            return None
        if block.space == self._space:
            return block
        self._metrics.other_space.inc()
        return None

    def _bury(self, shard: Shard, offset: int, value: bytes | None, detail: str) -> None:
        topic = self._stream.topic(shard.kind)
        _log.error("fold block cannot be read, copied to events.dead", topic=topic, offset=offset, detail=detail)
        record = Record(topic, shard.number, offset, 0, None, value)
        self._dead.write([dead_message(dead_letter(record, "decode", "wrong_type", detail))])
        self._dead.seal({})
        # The fence must not pass it before its copy is safe.
        deadline = self._clock() + HAND_OVER_S
        while not self._dead.poll(POLL_S):
            if self._clock() > deadline:
                raise KafkaError(f"{topic}/{shard.number} offset {offset} cannot be read ({detail}) nor copied")

    def _publish(self, shards: Iterable[ShardId]) -> None:
        """Begin to publish what changed, unless the last is still on its way."""
        if not self._publishing.idle:
            return
        for shard_id in shards:
            # Looked up each time: Redis going away in between shuts every shard.
            shard = self._open.get(shard_id)
            if shard is None:
                continue
            self._to_the_end(shard)  # else it never catches up with a fence that was carried
            if not shard.unpublished:
                continue
            try:
                self._publishing.gather(shard)
            except FenceMovedError as error:
                self._fence_moved(shard, error)
            except StoreError as error:
                self._redis_away(error)
        self._publishing.send()

    def _ask_of_shut(self) -> None:
        """Ask what waits for a shard that stays shut, one a turn: what is not fetched, the client hears nothing of."""
        if not self._shut:
            return
        shard_id, shut = min(self._shut.items(), key=lambda each: each[1].ask_at)
        if self._clock() < shut.ask_at:
            return
        try:
            low, high = self._stream.bounds(shard_id)
            if shut.position is None:
                shut.position = self._stream.published(shard_id) or low  # what is published is folded
        except KafkaError:
            # It matters when the shard is opened. Until then the last answer stands, and none is waited for again.
            for each in self._shut.values():
                each.ask_at = self._clock() + LOOK_S
            return
        shut.ask_at = self._clock() + LOOK_S
        shut.waiting = max(0, high - max(shut.position, low))

    def _measure(self) -> None:
        read = sum(self._stream.behind(shard.id, shard.position) for shard in self._open.values())
        self._metrics.lag_blocks.set(read + sum(shut.waiting for shut in self._shut.values()))

    def _hand_over(self, shards: list[ShardId]) -> None:
        """Publish what is left of shards that move, as far as there is time; the next owner publishes the rest."""
        deadline = self._clock() + HAND_OVER_S
        while self._clock() < deadline:
            self._publish(shards)
            if self._publishing.idle:
                break
            self._publishing.settle(POLL_S)
        self._on_lost(shards)

    def _on_assigned(self, shards: list[ShardId]) -> None:
        self._shut.update((shard_id, Shut(self._clock() + LOOK_S)) for shard_id in shards)

    def _on_lost(self, shards: list[ShardId]) -> None:
        self._publishing.withdraw(shards)
        self._forget(shards)

    def _forget(self, shards: list[ShardId]) -> None:
        for shard_id in shards:
            self._open.pop(shard_id, None)
            self._shut.pop(shard_id, None)

    def _reopen(self, shards: list[Shard]) -> None:
        self._stream.pause([shard.id for shard in shards])
        self._forget([shard.id for shard in shards])
        for shard in shards:
            folded = shard.fence.fold_offset  # what was read beyond it may not have been written
            self._shut[shard.id] = Shut(self._clock() + LOOK_S, folded, self._stream.behind(shard.id, folded))

    def _fence_moved(self, shard: Shard, error: FenceMovedError) -> None:
        _log.warning("fence_moved", kind=shard.kind, shard=shard.number, detail=str(error))
        self._reopen([shard])

    def _redis_away(self, error: StoreError) -> None:
        self._reopen(list(self._open.values()))
        self._retry_at = self._clock() + self._config.profiles.redis_retry_ms / 1000
        if self._redis_up:
            _log.error("redis_away: waiting, folds stay in Kafka", detail=str(error))
        self._redis_up = False
        self._metrics.redis_up.set(0)

    def _redis_answers(self) -> None:
        _log.info("redis_back")
        self._redis_up = True
        self._metrics.redis_up.set(1)


def space_of(model: ModelConfig) -> str:
    """The vector space of the configured artifact, without importing torch. Raises `ModelLoadError`."""
    if model.artifact == "null":
        from model.null import NullScorer

        return NullScorer().space
    from model.artifact import Artifact, resolve
    from model.errors import ArtifactError

    try:
        return str(Artifact.load(resolve(model.artifact)).manifest["space"])
    except ArtifactError as error:
        raise ModelLoadError(str(error)) from error


def check_partitions(config: Config) -> None:
    """Raises `TopicError` unless every sharded topic has exactly ``kafka.fold_shards`` partitions."""
    names = [config.kafka.topic(name) for name in (*FOLDS.values(), *FEATURES.values())]
    for name, count in partition_counts(config.kafka, names).items():
        if count != config.kafka.fold_shards:
            raise TopicError(
                f"{name} has {count} partitions, kafka.fold_shards is {config.kafka.fold_shards}: they must be equal,"
                " for the shard of an id is computed from it"
            )
