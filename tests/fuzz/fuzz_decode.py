"""Fuzz the way in: any bytes give an event within the contract's limits or a dead letter with the original bytes.

``make fuzz ARGS="--inputs 100000 --seed 1"``; the last line is JSON. Inputs are made by hypothesis from a seed: bytes,
JSON that is nearly an event, and whole events damaged in one to six places (bits, cuts, splices, odd tokens, sizes at
and beyond the limits). What fails is shrunk and shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, get_args

import msgspec
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from model.null import NullScorer
from schemas.dead import MAX_DETAIL_CHARS, DeadLetter, Reason, read_letter
from schemas.events import EARLIEST_MS, FUTURE_LIMIT_MS, MAX_CANDIDATES, ClickEvent, Event, ReviewEvent, ServiceEvent
from schemas.topics import EVENTS_DEAD, MAX_EVENT_BYTES, TOPICS
from worker.kafka.dead import dead_message
from worker.kafka.ledger import OffsetLedger
from worker.kafka.records import Record
from worker.scoring.batcher import Unit
from worker.scoring.cache import VectorCache
from worker.scoring.decode import LANES, Decoder
from worker.scoring.intake import Intake

NOW_MS: Final = 1_700_000_000_000
MAX_TEXT: Final = 200_000
MAX_ID: Final = 256
REASONS: Final = frozenset(get_args(Reason))
Decode = Callable[[Record, int], Event | DeadLetter]

_CLICK: Final[dict[str, Any]] = {
    "event_id": "c1",
    "event_time_ms": NOW_MS,
    "action": "click",
    "user_id": "u",
    "item_id": "红",
    "title": "吉他 👍🏽",
    "query": "q",
    "impression_id": "i",
    "impression_time_ms": NOW_MS - 1,
    "clicked": True,
    "purchased": None,
    "candidates": [{"item_id": "a", "title": "t", "context": {"p": 1.5}}],
    "context": {"device": "app"},
}
_REVIEW: Final[dict[str, Any]] = {
    "event_id": "r1",
    "event_time_ms": EARLIEST_MS,
    "text": "物流太慢了",
    "stars": 4.5,
    "category": "c",
    "topics": ["x", "y"],
    "unknown": {"deep": [1, [2, [3]]]},
}
_SERVICE: Final[dict[str, Any]] = {
    "event_id": "s1",
    "event_time_ms": NOW_MS - 10**12,
    "text": "Where\nis it?",
    "conversation_id": "k",
    "channel": "chat",
}
_EVENTS: Final = {"events.click": _CLICK, "events.review": _REVIEW, "events.service": _SERVICE}
_TOPICS: Final = sorted(_EVENTS)
_TOKENS: Final = [
    *(b"\x00", b"\\u0000", b"\\ud800", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80", b"\\", b'"'),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"0x1",
        b"1.",
        b"00",
    ),
    *(b"9" * 30, b"-1", b"9223372036854775808", b'"user_id":', b'"event_time_ms":4102444800000,', b"[" * 2000),
    *(b"/*", b"'", b" \t\r\n", "\u202e\u2028".encode(), b'"event_id":"","event_id":"x",'),
]
_FIELDS: Final = sorted(
    {*ClickEvent.__struct_fields__, *ReviewEvent.__struct_fields__, *ServiceEvent.__struct_fields__}
)
_ODD: Final[list[Any]] = [
    *(None, True, 0, -1, 1, 2.5, -0.0, 1e300, float("nan"), 2**53, 2**63, 2**64, NOW_MS, NOW_MS + FUTURE_LIMIT_MS),
    *(
        NOW_MS + FUTURE_LIMIT_MS + 1,
        EARLIEST_MS - 1,
        "",
        " ",
        "a",
        "红",
        "\x00",
        "\u200b",
        "a\x00b",
        "\ud800",
        "👍🏽" * 40,
        [],
        {},
        [[]],
        [{}],
    ),
    *({"": ""}, {"a": None}, [{"item_id": ""}], [{"item_id": "\x00"}], ["x"] * 17, "impression", "search", 5, 5.01),
]
_LENGTHS: Final = [0, 1, MAX_ID, MAX_ID + 1, MAX_TEXT, MAX_TEXT + 1]


class Recipe:
    """Choices out of bytes: what hypothesis draws is one run of bytes an input, which is quick and shrinks well."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, n: int) -> int:
        """A number below ``n``; 0 when the bytes are used up."""
        taken = self._data[self._at : self._at + (1 if n <= 256 else 3)]
        self._at += len(taken)
        return int.from_bytes(taken, "little") % n

    def one_of(self, choices: Sequence[Any]) -> Any:
        """One of some things."""
        return choices[self.below(len(choices))]

    def rest(self) -> bytes:
        """What was not used yet."""
        return self._data[self._at :]


def make(data: bytes) -> Record:
    """The input of a recipe."""
    recipe = Recipe(data)
    topic = recipe.one_of(_TOPICS)
    key = recipe.one_of([None, b"", b"user", b"\xff\x00", b"k" * 300])
    headers = recipe.one_of([None, [], [("a", b"1"), ("a", None)], [("millrace-null", b"1"), ("", b"\xff")]])
    kind = recipe.below(64)
    if kind == 0:
        value = None
    elif kind < 3:
        value = recipe.rest()
    elif kind < 5:
        value = _sized(recipe, topic)
    elif kind < 32:
        value = _dump(recipe, _changed(recipe, topic))
    else:
        value = _damaged(recipe, _dump(recipe, _changed(recipe, topic) if kind < 40 else _EVENTS[topic]))
    return Record(topic, 3, 41, NOW_MS, key, value, headers)


def _dump(recipe: Recipe, event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=recipe.below(2) == 0).encode(errors="surrogatepass")


def _changed(recipe: Recipe, topic: str) -> dict[str, Any]:
    """A whole event with fields left out, or odd values in them."""
    event = dict(_EVENTS[topic])
    for _ in range(recipe.below(4)):
        field = recipe.one_of(_FIELDS)
        if recipe.below(4) == 0:
            event.pop(field, None)
        else:
            event[field] = recipe.one_of(_ODD)
    return event


def _damaged(recipe: Recipe, whole: bytes) -> bytes:
    """Some of its bytes changed."""
    value = bytearray(whole)
    for _ in range(1 + recipe.below(4)):
        at = recipe.below(max(1, len(value)))
        match recipe.below(6):
            case 0:
                value[at : at + 1] = bytes([recipe.below(256)])
            case 1:
                del value[at : at + 1 + recipe.below(20)]
            case 2:
                value[at:at] = recipe.one_of(_TOKENS)
            case 3:
                value[at:at] = bytes([recipe.below(256), recipe.below(256)])
            case 4:
                other = json.dumps(_EVENTS[recipe.one_of(_TOPICS)]).encode()
                value[at:] = other[recipe.below(len(other)) :]
            case _:
                value[at:at] = value[at : at + 1 + recipe.below(40)]
    return bytes(value)


def _sized(recipe: Recipe, topic: str) -> bytes:
    """An event with one field at or beyond a limit, or a whole record there."""
    event = dict(_EVENTS[topic])
    letter = recipe.one_of(["a", "量", "\\", "\x00", "👍"])
    match recipe.below(4):
        case 0:
            event[recipe.one_of(_FIELDS)] = letter * recipe.one_of(_LENGTHS)
        case 1:
            event["candidates"] = [{"item_id": letter}] * (MAX_CANDIDATES + recipe.below(2))
        case 2:
            event["context"] = {letter * recipe.one_of(_LENGTHS): recipe.one_of([1.0, "x", None, []])}
        case _:
            event["padding"] = "x" * (MAX_EVENT_BYTES - len(json.dumps(event)) - recipe.below(30))
    return _dump(recipe, event)


class Oracle:
    """What must hold of every input, told apart from what the decoder itself does."""

    def __init__(self, decode: Decode | None = None) -> None:
        self._decode = decode or Decoder(LANES).decode
        self._cache = VectorCache(1 << 20)
        self._intake = Intake(LANES, NullScorer(), self._cache)
        self.seen: Counter[str] = Counter()

    def check(self, record: Record) -> None:
        """Raises AssertionError for an input that is neither, or not as the contract says."""
        result = self._decode(record, NOW_MS)
        if isinstance(result, DeadLetter):
            self._check_letter(record, result)
            self.seen[result.reason] += 1
        else:
            self._check_event(record, result)
            self.seen["event"] += 1
        again = self._decode(record, NOW_MS)
        assert again == result, "the same bytes, another answer"
        self._check_intake(record, result)

    def _check_letter(self, record: Record, letter: DeadLetter) -> None:
        assert letter.value is record.value
        assert letter.key is record.key
        assert (letter.source.topic, letter.source.partition) == (record.topic, record.partition)
        assert letter.source.offset == record.offset
        assert letter.reason in REASONS
        assert letter.stage == "decode"
        message = dead_message(letter)
        size = (
            len(message.value) + len(message.key or b"") + sum(len(n) + len(v or b"") for n, v in message.headers or ())
        )
        assert size < TOPICS[EVENTS_DEAD].max_message_bytes
        kept = read_letter(message.value, message.headers or ())
        if not kept.truncated:
            cut = letter.detail[:MAX_DETAIL_CHARS]
            same = msgspec.structs.replace(letter, detail=cut, source_headers=list(letter.source_headers))
            assert kept == same, "not the letter that was written"
        else:
            assert len(record.value or b"") > MAX_EVENT_BYTES

    def _check_event(self, record: Record, event: Event) -> None:
        assert record.value is not None
        assert len(record.value) <= MAX_EVENT_BYTES
        assert EARLIEST_MS <= event.event_time_ms <= NOW_MS + FUTURE_LIMIT_MS
        assert event.event_id
        for name in ("event_id", "user_id", "item_id", "impression_id", "conversation_id"):
            identifier = getattr(event, name, None)
            assert identifier is None or (1 <= len(identifier) <= MAX_ID and "\x00" not in identifier)
        for name in ("text", "title", "query"):
            assert len(getattr(event, name, "")) <= MAX_TEXT
        if isinstance(event, ClickEvent):
            assert len(event.candidates) <= MAX_CANDIDATES
            assert all(1 <= len(each.item_id) <= MAX_ID and "\x00" not in each.item_id for each in event.candidates)
            for context in (event.context, *(each.context for each in event.candidates)):
                assert all(len(name) <= MAX_ID and isinstance(value, float | str) for name, value in context.items())
        else:
            assert event.text
        assert msgspec.json.decode(msgspec.json.encode(event), type=type(event)) == event

    def _check_intake(self, record: Record, result: Event | DeadLetter) -> None:
        ledger: OffsetLedger[Any] = OffsetLedger()
        ledger.assign([(record.topic, record.partition)])
        units, letters = self._intake.admit([record], ledger, 0.0, NOW_MS)
        assert len(units) + len(letters) == 1, "neither an event nor a letter, or both"
        if isinstance(result, DeadLetter):
            assert letters
        elif letters:
            assert letters[0][1].reason == "empty_text"
        self._forget(units)

    def _forget(self, units: list[Unit]) -> None:
        self._intake.forget(units)
        assert self._cache.pending == 0, "a text that nobody waits for"


def fuzz(inputs: int, seed_: int, oracle: Oracle, progress: Callable[[int], None] = lambda _: None) -> None:
    """Check so many inputs of a seed. Raises AssertionError with the smallest input found that fails."""
    done = 0

    @seed(seed_)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(min_size=30, max_size=40))
    def one(recipe: bytes) -> None:
        nonlocal done
        record = make(recipe)
        note(f"{record.topic}: {(record.value or b'')[:500]!r}")
        oracle.check(record)
        done += 1
        if done % 1000 == 0:
            progress(done)

    one()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    oracle, began = Oracle(), time.monotonic()

    def progress(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {arguments.inputs}", end="", file=sys.stderr, flush=True)

    fuzz(arguments.inputs, arguments.seed, oracle, progress)
    seconds = time.monotonic() - began
    print()
    print(
        json.dumps(
            {
                "inputs": sum(oracle.seen.values()),
                "seed": arguments.seed,
                "failures": 0,
                "seconds": round(seconds, 1),
                "outcomes": dict(oracle.seen.most_common()),
            }
        )
    )


if __name__ == "__main__":
    main()
