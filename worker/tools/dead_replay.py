"""Dead letters back to where they came from, each once: the record and the letter's tombstone in one transaction.

A crash between two transactions leaves every letter either replayed and gone or there and not replayed (to readers of
committed records), so running the command again goes on where it stopped. A second command running at the same time
takes over from the first: both use one transactional id. A replayed record keeps bytes, key, headers and partition,
and says in headers of which letter it is and how often it has been replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, Final, cast

import msgspec
from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException, Producer

from schemas.dead import HEADER_REPLAY_COUNT, HEADER_REPLAY_OF, HEADER_TIMESTAMP, HEADER_TOMBSTONE, DeadLetter
from schemas.topics import EVENTS_DEAD
from worker.config import KafkaConfig
from worker.errors import InputError, KafkaError
from worker.kafka.admin import partition_counts
from worker.kafka.clients import FENCED, REQUEST_TIMEOUT_S, transactional_config, translate
from worker.tools.dead_letters import Filter, Found, Letters, Search, letter_of, replays_of

BATCH_LETTERS: Final = 200
BATCH_BYTES: Final = 8 * 1024 * 1024
"""A transaction holds at most so many letters, or so many bytes and one letter more."""
DELIVERY_TIMEOUT_S: Final = 30.0
ATTEMPTS: Final = 5
_BY_KEY: Final = -1
_MARKS: Final = frozenset({HEADER_REPLAY_OF, HEADER_REPLAY_COUNT, HEADER_TIMESTAMP})


class ReplayedLetters(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did, or with ``dry_run`` would do. ``cut`` letters hold no bytes to replay; ``ended`` tells of the
    wanted letters that were not there."""

    dry_run: bool
    replayed: int
    cut: int
    by_topic: dict[str, int]
    by_reason: dict[str, int]
    ended: dict[str, str]


class DeadReplay:
    """Replays letters: `look` at what is meant, then `send` it. To be closed.

    Raises `InputError` for a target that cannot be one, `TopicError` for one that is missing, `KafkaError`.
    """

    def __init__(self, kafka: KafkaConfig, to: str | None = None) -> None:
        """``to`` is a name of the contract or of the cluster; None sends each letter to its source topic."""
        self._kafka = kafka
        self._to = None if to is None else kafka.topic(to)
        if self._to == kafka.topic(EVENTS_DEAD):
            raise InputError(f"--to {to}: letters are read from there. Name the topic that should take them")
        if self._to is not None:
            partition_counts(kafka, [self._to])
        self._letters = Letters(kafka)

    def close(self) -> None:
        """Close the connections."""
        self._letters.close()

    def look(self, wanted: Filter, limit: int | None = None) -> Search:
        """The letters that are meant, oldest first, at most ``limit``."""
        return self._letters.search(wanted, limit)

    def plan(self, search: Search) -> ReplayedLetters:
        """What `send` would do with what `look` found."""
        good = [letter for letter in search.letters if not letter.truncated]
        return self._report(search, good, dry_run=True)

    def send(self, wanted: Filter, limit: int | None, progress: Callable[[int], None]) -> ReplayedLetters:
        """Replay what is meant; returns when all of it is committed."""
        with ExitStack() as stack:
            transactions = stack.enter_context(closing(_Transactions(self._kafka)))
            # Looked up only now: whoever was replaying before us is fenced, and what they had committed is gone.
            search = self.look(wanted, limit)
            chosen = {letter.place: letter for letter in search.letters if not letter.truncated}
            counts = partition_counts(self._kafka, {self._to or letter.topic for letter in chosen.values()})
            done: list[Found] = []
            messages = stack.enter_context(closing(self._letters.read(wanted.since_ms)))
            for batch in _batches(messages, chosen):
                transactions.run([record for pair in batch for record in self._records(*pair, counts)], len(done))
                done += [found for found, _ in batch]
                progress(len(done))
        return self._report(search, done, dry_run=False)

    def _records(self, found: Found, letter: DeadLetter, counts: dict[str, int]) -> list[dict[str, Any]]:
        topic = self._to or letter.source.topic
        own = letter.source.partition if topic == letter.source.topic else _BY_KEY
        headers = [(name, data) for name, data in letter.source_headers if name not in _MARKS]
        headers.append((HEADER_REPLAY_OF, letter.record_key()))
        if letter.timestamp_ms is not None:
            # Told, not set: the broker deletes by a record's own time, and would by that of long ago.
            headers.append((HEADER_TIMESTAMP, str(letter.timestamp_ms).encode()))
        headers.append((HEADER_REPLAY_COUNT, str(replays_of(letter) + 1).encode()))
        return [
            {
                "topic": topic,
                "value": letter.value,
                "key": letter.key,
                "partition": own if own < counts[topic] else _BY_KEY,
                "headers": headers,
            },
            {
                "topic": self._letters.topic,
                "value": None,
                "key": letter.record_key(),
                "partition": found.place[0],
                "headers": [(HEADER_TOMBSTONE, b"replayed")],
            },
        ]

    def _report(self, search: Search, done: Sequence[Found], *, dry_run: bool) -> ReplayedLetters:
        targets = [self._to or letter.topic for letter in done]
        return ReplayedLetters(
            dry_run=dry_run,
            replayed=len(done),
            cut=sum(letter.truncated for letter in search.letters),
            by_topic={topic: targets.count(topic) for topic in sorted(set(targets))},
            by_reason=Search(letters=list(done), ended={}).by_reason(),
            ended=search.ended,
        )


class _Transactions:
    """A transactional producer: one list of records, one transaction."""

    # Not a `worker.kafka.session.Session`, which never gives up its id: fenced, it fences back. Here whoever comes
    # second takes over, and there are no group offsets to ask what became of a commit: whoever runs again looks.

    def __init__(self, kafka: KafkaConfig) -> None:
        settings = transactional_config(kafka, f"{kafka.group_prefix}.dead-replay", int(DELIVERY_TIMEOUT_S * 1000))
        # No callbacks at all: the commit itself waits for every delivery and fails with it, and the client raises
        # fatal errors out of whatever serves a callback.
        self._producer = Producer(settings)
        self._call(lambda: self._producer.init_transactions(REQUEST_TIMEOUT_S * 3), 0)

    def run(self, records: Sequence[dict[str, Any]], done: int) -> None:
        """All of the records, or none. ``done`` letters were replayed before, for the error that may come."""
        self._call(self._producer.begin_transaction, done)
        for record in records:
            self._call(lambda r=record: self._producer.produce(**r), done)  # type: ignore[misc]
        self._call(lambda: self._producer.commit_transaction(DELIVERY_TIMEOUT_S), done)

    def close(self) -> None:
        """Give up what is open; it never becomes visible to readers of committed records."""
        self._producer.purge()
        with suppress(KafkaException):  # a fatal error, told already by the call that met it
            self._producer.flush(1.0)

    def _why(self, error: ClientError) -> ClientError:
        """What made a producer unusable: calls after that say only that it is, the client's own poll says why."""
        if error.code() == ClientError._FATAL:
            try:
                self._producer.poll(0)
            except KafkaException as fatal:
                return cast("ClientError", fatal.args[0])
        return error

    def _call(self, call: Callable[[], object], done: int) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                call()
            except KafkaException as error:
                cause = self._why(error.args[0])
                if cause.retriable() and attempt < ATTEMPTS:
                    continue
                if cause.code() in FENCED or (cause.fatal() and "fenced" in cause.str()):
                    raise KafkaError(
                        f"another replay took over; {done} letters were replayed here. Run one at a time"
                    ) from error
                if cause.txn_requires_abort():
                    with suppress(KafkaException):  # the broker gives it up by itself, only later
                        self._producer.abort_transaction(REQUEST_TIMEOUT_S)
                raise KafkaError(
                    f"{translate(error, doing='replaying')}. {done} letters were replayed before, and perhaps the batch"
                    " under way: run it again, what was replayed is not replayed twice"
                ) from error
            else:
                return


def _batches(messages: Iterable[Any], chosen: dict[tuple[int, int], Found]) -> Iterable[list[tuple[Found, DeadLetter]]]:
    """The chosen letters with their values, in batches for a transaction each."""
    batch: list[tuple[Found, DeadLetter]] = []
    size = 0
    left = len(chosen)
    for message in messages:
        found = chosen.get((message.partition(), message.offset()))
        letter = None if found is None else letter_of(message)
        if found is None or letter is None:
            continue
        batch.append((found, letter))
        size += found.size_bytes
        left -= 1
        if len(batch) >= BATCH_LETTERS or size > BATCH_BYTES or not left:
            yield batch
            batch, size = [], 0
        if not left:
            return
    if batch:
        yield batch
