"""Forget a person: record it, see it carried out, delete their dead letters, and say truthfully what is left till when.

The record in ``erasures`` does the work: the worker drops older events, profiles deletes state and features. This only
watches for it, so whatever fails here, running it again is safe and finishes the job: the cut-off that was recorded
stands, or else whoever came back since would be forgotten again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from typing import Any, Final

import msgspec
import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from schemas.dead import read_letter
from schemas.erasures import ERASURES_PARTITION, Erasure, decode_erasure, encode_erasure
from schemas.folds import FormatError
from schemas.shards import shard_of
from schemas.states import FENCE_RECORD_KEY, decode_fence, decode_state
from schemas.topics import ERASURES, EVENTS_DEAD, FEATURES_USER, INPUTS, TOPICS
from worker.config import Config
from worker.errors import InputError, RegistryError, StoreError
from worker.kafka.admin import all_topics, partition_counts, topic_ids, topic_settings
from worker.kafka.clients import consumer_config, translate, watermarks
from worker.kafka.readback import Readback
from worker.kafka.records import Record
from worker.kafka.registry import SchemaRegistry
from worker.kafka.single import write_one
from worker.privacy.person import names_somebody
from worker.profiles.features import SPACE_HEADER
from worker.profiles.role import space_of
from worker.redis.store import connect
from worker.scoring.decode import Decoder, lanes_of
from worker.tools.dead_letters import Letters
from worker.tools.receipt import NOTES, PENDING, Receipt, TopicReceipt, standing_note, topic_receipt

_log = logging.getLogger(__name__)
DELIVERY_TIMEOUT_S: Final = 30.0
REDIS_TIMEOUT_S: Final = 5.0
TAIL_RECORDS: Final = 5000
"""So far before the end of a features partition its last fence record is looked for; after it, what is written next."""
SCAN_COUNT: Final = 10_000
NOTICE_MS: Final = 60_000
"""So long after an erasure every running worker knows of it; a letter of till then may be of a record from before."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure that stands in the topic: up to when, at which offset, and when it was written."""

    cutoff_ms: int
    offset: int
    at_ms: int


class Erase:
    """The erasure of one person: up to the cut-off that an earlier run recorded, or, where there is none or with
    ``anew``, up to ``now_ms``. Raises `InputError` for an id that none can have, `KafkaError`."""

    def __init__(self, config: Config, user_id: str, now_ms: int, anew: bool = False) -> None:
        try:
            self._erasure = msgspec.convert({"user_id": user_id, "cutoff_ms": now_ms}, Erasure)
        except msgspec.ValidationError as error:
            raise InputError(f"user id: {error}") from error
        if user_id.startswith("\x00"):
            raise InputError("user id: begins with NUL, no event with such an id is accepted")
        self._config, self._kafka, self._user, self._anew = config, config.kafka, user_id, anew
        self._standing: Recorded | None = None
        self._space = space_of(config.model)
        self._shard = shard_of(user_id, config.kafka.fold_shards)

    def run(self, wait_s: float, say: Callable[[str], None] = lambda _: None) -> Receipt:
        """Record the erasure, wait at most ``wait_s`` for profiles to carry it out, delete letters; the receipt."""
        partition_counts(self._kafka, [self._kafka.topic(name) for name in (ERASURES, FEATURES_USER, EVENTS_DEAD)])
        say("looking for an earlier erasure of this person")
        offset = self._settle(say)
        say("waiting for profiles to delete the state")
        published = self._published(offset, time.monotonic() + wait_s)
        say("looking into Redis")
        redis_says, deleted, newer = self._look_into_redis(published)
        say("deleting dead letters")
        letters, unread, kept = self._delete_letters()
        standing = self._standing
        notes = [] if standing is None else [standing_note(self._erasure.cutoff_ms, standing.at_ms, kept)]
        done = published and redis_says == "deleted"
        return Receipt(
            user_id=self._user,
            cutoff_ms=self._erasure.cutoff_ms,
            erasure_offset=offset,
            done=done,
            redis=redis_says,
            states_deleted=deleted,
            newer_states=newer,
            letters_deleted=letters,
            letters_unread=unread,
            topics=self._topics(published, letters),
            notes=[*([] if published else [PENDING]), *notes, *NOTES],
            letters_newer=kept,
            standing_since_ms=None if standing is None else standing.at_ms,
        )

    def _settle(self, say: Callable[[str], None]) -> int:
        """Settle which cut-off holds; the offset of its record, which is made unless it stands."""
        topic = self._kafka.topic(ERASURES)
        with closing(Readback(self._kafka, "erase")) as reader:
            found = self._recorded(reader.read([TopicPartition(topic, ERASURES_PARTITION, OFFSET_BEGINNING)]))
        if found is not None:
            # Anew, too, never to an earlier one: of two records only the last is sure to stay, and clocks differ.
            cutoff_ms = max(found.cutoff_ms, self._erasure.cutoff_ms) if self._anew else found.cutoff_ms
            self._erasure = msgspec.structs.replace(self._erasure, cutoff_ms=cutoff_ms)
            if not self._anew:
                self._standing = found
                return found.offset
        say("recording the erasure")
        return self._record()

    def _recorded(self, messages: Iterable[Any]) -> Recorded | None:
        """What the topic's records say of the person. One that is no erasure says nothing: ours takes its place."""
        found: Recorded | None = None
        for message in messages:
            if message.key() != self._user.encode():
                continue
            try:
                cutoff_ms = None if message.value() is None else decode_erasure(message.value()).cutoff_ms
            except FormatError:
                cutoff_ms = None
            if cutoff_ms is None:
                found = None
                continue
            at_ms = message.timestamp()[1]
            if found is not None:
                cutoff_ms = max(cutoff_ms, found.cutoff_ms)
            found = Recorded(cutoff_ms=cutoff_ms, offset=message.offset(), at_ms=at_ms if at_ms > 0 else cutoff_ms)
        return found

    def _record(self) -> int:
        """The offset of the erasure's record, once it is safe."""
        return write_one(
            self._kafka,
            self._kafka.topic(ERASURES),
            encode_erasure(self._erasure),
            self._user.encode(),
            doing="recording the erasure (nothing was done)",
            timeout_s=DELIVERY_TIMEOUT_S,
            partition=ERASURES_PARTITION,
        )

    def _published(self, offset: int, deadline_s: float) -> bool:
        """Whether profiles has deleted the state and published that: its fence, in features, has passed the erasure."""
        topic_id = topic_ids(self._kafka, [self._kafka.topic(ERASURES)])[self._kafka.topic(ERASURES)]
        topic = self._kafka.topic(FEATURES_USER)
        reader = Consumer(consumer_config(self._kafka, f"{self._kafka.group_prefix}.erase"))
        try:
            low, high = watermarks(reader, TopicPartition(topic, self._shard))
            reader.assign([TopicPartition(topic, self._shard, max(low, high - TAIL_RECORDS))])
            while time.monotonic() < deadline_s:
                for message in reader.consume(500, 0.1):
                    if message.error() is None and self._passed(message, topic_id, offset):
                        return True
        except KafkaException as error:
            raise translate(error, doing=f"following {topic}") from error
        finally:
            reader.close()
        return False

    def _passed(self, message: Any, topic_id: str, offset: int) -> bool:
        ours = dict(message.headers() or ()).get(SPACE_HEADER) == self._space.encode()
        if not ours or message.key() != FENCE_RECORD_KEY or message.value() is None:
            return False
        marks = decode_fence(message.value()).marks.get(topic_id, {})
        return marks.get(ERASURES_PARTITION, -1) >= offset

    def _look_into_redis(self, published: bool) -> tuple[str, int, int]:
        """What Redis holds of the person: ``deleted``, or what is wrong; keys deleted here, states newer than it."""
        deleted = newer = left = 0
        try:
            with connect(self._config.redis, REDIS_TIMEOUT_S) as client:
                pattern = f"*:user:{{u{self._shard}}}:{_literally(self._user)}"
                for name in client.scan_iter(pattern, count=SCAN_COUNT):
                    value: Any = client.get(name)
                    if not name.startswith(f"{self._space}:user:".encode()):
                        # Of a space that this configuration does not use: its own profiles may not run any more.
                        deleted += bool(client.delete(name))
                    elif value is not None and self._older(value):
                        left += 1
                    else:
                        newer += value is not None
        except (redis.RedisError, OSError) as error:
            return f"unknown: Redis does not answer ({type(error).__name__})", deleted, newer
        except StoreError as error:
            return f"unknown: {error}", deleted, newer
        if left or not published:
            return "pending: profiles deletes the state when it runs", deleted, newer
        return "deleted", deleted, newer

    def _older(self, value: bytes) -> bool:
        try:
            return decode_state(value).time_ms <= self._erasure.cutoff_ms
        except (FormatError, UnicodeDecodeError):
            return True  # nobody can tell, so it is not said to be gone

    def _delete_letters(self) -> tuple[int, int, int]:
        """How many letters of the person were deleted; how many are left of which nobody can tell whose, and how many
        that are newer than a cut-off that stands."""
        with closing(Letters(self._kafka)) as letters:
            meant, unread, newer = self._letters_of_person(letters)
            letters.end(meant, "erased")
        return len(meant), len(unread), len(newer)

    def _letters_of_person(self, letters: Letters) -> tuple[dict[bytes, int], set[bytes], set[bytes]]:
        """Keys of the person's letters with their partitions, of those that may be anybody's, and of the newer ones."""
        events = {name for name, contract in all_topics(self._kafka).items() if contract in INPUTS}
        with ExitStack() as stack:
            decoder = Decoder(lanes_of(self._kafka), self._registry(stack), self._kafka.fields)
            return self._sorted(letters, decoder, events)

    def _registry(self, stack: ExitStack) -> SchemaRegistry | None:
        """The schema registry, closed with ``stack``; None where none is configured or it does not answer: what only
        it can read then counts among what nobody can tell of."""
        if not self._config.registry.url:
            return None
        registry = SchemaRegistry(self._config.registry)
        stack.callback(registry.close)
        try:
            registry.examine()
        except RegistryError as error:
            _log.warning("dead letters are read without the schema registry: %s", error)
            return None
        return registry

    def _sorted(
        self, letters: Letters, decoder: Decoder, events: set[str]
    ) -> tuple[dict[bytes, int], set[bytes], set[bytes]]:
        meant: dict[bytes, int] = {}
        unread: set[bytes] = set()
        newer: set[bytes] = set()
        for message in letters.read():
            key, value = message.key() or b"", message.value()
            meant.pop(key, None)
            unread.discard(key)
            newer.discard(key)
            if value is None:
                continue
            record = _record(message)
            told = decoder.told(record)
            # The key of an alert is its subject.
            sure = told.sure if record.topic in events else names_somebody(None, value)
            if self._user in told.people:
                if self._is_newer(message.timestamp()[1], told.time_ms):
                    newer.add(key)
                else:
                    meant[key] = message.partition()
            elif not sure:
                unread.add(key)
        return meant, unread, newer

    def _is_newer(self, written_ms: int, told_ms: int | None) -> bool:
        """Whether a letter is of what the person did after a cut-off that stands."""
        if self._standing is None:
            return False  # up to now: all that there is
        since_ms = written_ms - NOTICE_MS if told_ms is None else min(written_ms, told_ms)
        return since_ms > self._erasure.cutoff_ms

    def _topics(self, published: bool, letters: int) -> list[TopicReceipt]:
        names = all_topics(self._kafka)
        settings = {} if self._kafka.embedded else topic_settings(self._kafka, list(names))
        return [
            topic_receipt(
                contract,
                name,
                {**TOPICS[contract].config(1), **settings.get(name, {})},
                time.time_ns() // 1_000_000,
                pending=contract == FEATURES_USER and not published,
                deleted=letters if contract == EVENTS_DEAD else None,
            )
            for name, contract in names.items()
        ]


def _record(letter: Any) -> Record:
    """The record that became the letter; of no topic where the letter does not say."""
    try:
        found = read_letter(letter.value(), letter.headers() or [])
    except FormatError:
        return Record("", -1, -1, -1, None, letter.value())
    source = found.source
    written_ms = -1 if found.timestamp_ms is None else found.timestamp_ms
    return Record(source.topic, source.partition, source.offset, written_ms, found.key, letter.value())


def _literally(text: str) -> str:
    """A glob that matches only this text."""
    return "".join(f"\\{char}" if char in "*?[]\\^-" else char for char in text)
