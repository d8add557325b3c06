"""Any bytes give an event or a dead letter; the reason is right and the detail tells no value."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.dead import DeadLetter
from schemas.events import EARLIEST_MS, FUTURE_LIMIT_MS, ClickEvent, ReviewEvent, ServiceEvent
from schemas.topics import MAX_EVENT_BYTES
from worker.errors import RegistryError
from worker.kafka.avro import AvroError
from worker.kafka.records import Record
from worker.scoring.decode import LANES, Decoder

NOW_MS = 1_700_000_000_000
decoder = Decoder(LANES)


def record(value: bytes | None, topic: str = "events.click") -> Record:
    return Record(topic, 3, 41, NOW_MS, b"k", value)


def decode(value: bytes | None, topic: str = "events.click") -> Any:
    return decoder.decode(record(value, topic), NOW_MS)


def click(**fields: Any) -> bytes:
    return json.dumps({"event_id": "e", "event_time_ms": NOW_MS, **fields}).encode()


def review(**fields: Any) -> bytes:
    return json.dumps({"event_id": "e", "event_time_ms": NOW_MS, "text": "good", **fields}).encode()


DEEP = b'{"event_id":"e","event_time_ms":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BAD = [
    # topic, value, reason, a word of the detail
    ("events.click", None, "tombstone", "without value"),
    ("events.click", b"", "not_json", ""),
    ("events.click", b"not json", "not_json", ""),
    ("events.click", click()[:-1], "not_json", ""),
    ("events.click", b"\xef\xbb\xbf" + click(), "not_json", ""),
    ("events.click", DEEP, "not_json", "deep"),
    ("events.click", click(title="x").replace(b'"x"', b'"a\x00b"'), "not_json", ""),
    ("events.click", b'{"event_id":"\\ud800","event_time_ms":1}', "not_json", ""),
    ("events.click", b"\xff\xfe{}", "not_utf8", ""),
    ("events.click", click(title="x").replace(b'"x"', b'"\xff\xfe"'), "not_utf8", ""),
    ("events.click", b"[]", "wrong_type", "object"),
    ("events.click", b"null", "wrong_type", "object"),
    ("events.click", click(event_id=7), "wrong_type", "event_id"),
    ("events.click", click(event_id=None), "wrong_type", "event_id"),
    ("events.click", click(event_time_ms=None), "wrong_type", "event_time_ms"),
    ("events.click", click(title=None, clicked="yes"), "wrong_type", "clicked"),
    ("events.click", click(candidates=[{"item_id": None, "title": None}]), "wrong_type", "candidates[0].item_id"),
    ("events.review", review(text=None), "wrong_type", "text"),
    ("events.review", review(topics=[None]), "wrong_type", "topics"),
    ("events.click", click(user_id=7), "wrong_type", "user_id"),
    ("events.click", click(clicked="yes"), "wrong_type", "clicked"),
    ("events.click", click(action="stare"), "wrong_type", "action"),
    ("events.click", click(event_time_ms="1"), "wrong_type", "event_time_ms"),
    ("events.click", click(event_time_ms=1.5), "wrong_type", "event_time_ms"),
    ("events.click", click(context={"a": []}), "wrong_type", "context"),
    ("events.click", click(candidates=[{"item_id": 3}]), "wrong_type", "candidates[0].item_id"),
    ("events.click", b'{"event_time_ms":1}', "missing_field", "event_id"),
    ("events.click", b'{"event_id":"e"}', "missing_field", "event_time_ms"),
    ("events.click", click(candidates=[{}]), "missing_field", "item_id"),
    ("events.review", click(), "missing_field", "text"),
    ("events.click", click(event_time_ms=-1), "out_of_range", "event_time_ms"),
    ("events.click", click(event_time_ms=0), "out_of_range", "seconds, not milliseconds?) - at `$.event_time_ms`"),
    ("events.review", review(event_time_ms=NOW_MS // 1000), "out_of_range", "seconds, not milliseconds?"),
    ("events.click", click(event_time_ms=EARLIEST_MS - 1), "out_of_range", "1973"),
    ("events.click", click(impression_time_ms=NOW_MS // 1000), "out_of_range", "at `$.impression_time_ms`"),
    ("events.click", click(event_id=""), "out_of_range", "event_id"),
    ("events.click", click(candidates=[{"item_id": ""}]), "out_of_range", "candidates[0].item_id"),
    ("events.click", click(user_id="a\0b"), "out_of_range", "user_id"),
    ("events.click", click(candidates=[{"item_id": "\0fence"}]), "out_of_range", "item_id"),
    ("events.click", b'{"event_id":"e","event_time_ms":1e999}', "out_of_range", "event_time_ms"),
    ("events.click", b'{"event_id":"e","event_time_ms":' + b"9" * 5000 + b"}", "out_of_range", "event_time_ms"),
    ("events.review", review(stars=5.5), "out_of_range", "stars"),
    ("events.review", review(stars=-1), "out_of_range", "stars"),
    ("events.review", review(text=""), "empty_text", "text"),
    ("events.service", review(text=""), "empty_text", "text"),
    ("events.click", click(event_time_ms=NOW_MS + FUTURE_LIMIT_MS + 1), "future_time", "event_time_ms"),
    ("events.click", click(event_time_ms=10**23), "future_time", "event_time_ms"),
    ("events.click", click(impression_time_ms=NOW_MS + FUTURE_LIMIT_MS + 1), "future_time", "impression_time_ms"),
    ("events.review", review(text="a" * 200_001), "too_large", "text"),
    ("events.click", click(event_id="a" * 257), "too_large", "event_id"),
    ("events.click", click(candidates=[{"item_id": "a"}] * 257), "too_large", "candidates"),
    ("events.click", b" " * (MAX_EVENT_BYTES + 1), "too_large", "bytes"),
]


@pytest.mark.parametrize(("topic", "value", "reason", "word"), BAD)
def test_bad_input_becomes_a_dead_letter_with_its_reason(topic: str, value: bytes, reason: str, word: str) -> None:
    letter = decode(value, topic)
    assert isinstance(letter, DeadLetter), letter
    assert (letter.reason, letter.stage) == (reason, "decode")
    assert word in letter.detail
    assert letter.value == value
    assert letter.key == b"k"
    assert (letter.source.topic, letter.source.partition, letter.source.offset) == (topic, 3, 41)


@pytest.mark.parametrize("field", ["action", "user_id", "title", "clicked", "context", "event_time_ms"])
def test_details_never_tell_the_value(field: str) -> None:
    for value in ("SECRET", ["SECRET"], {"SECRET": [None]}, "SECRET" * 50_000):
        letter = decode(click(**{field: value}))
        if isinstance(letter, DeadLetter):
            assert "SECRET" not in letter.detail


def test_good_input_is_an_event_of_its_topic() -> None:
    assert isinstance(decode(click()), ClickEvent)
    assert isinstance(decode(review(), "events.review"), ReviewEvent)
    assert isinstance(decode(review(), "events.service"), ServiceEvent)


@pytest.mark.parametrize("time_ms", [EARLIEST_MS, NOW_MS - 10**12, NOW_MS + FUTURE_LIMIT_MS])
def test_late_is_welcome_and_a_little_early_too(time_ms: int) -> None:
    assert decode(click(event_time_ms=time_ms)).event_time_ms == time_ms


KINDS = (ClickEvent, ReviewEvent, ServiceEvent)
OPTIONAL = {field.name for kind in KINDS for field in msgspec.structs.fields(kind) if not field.required}


@given(st.sets(st.sampled_from(sorted(OPTIONAL))), st.sampled_from(list(LANES)))
def test_null_where_there_is_a_default_is_the_default(names: set[str], topic: str) -> None:
    assert decode(review(**dict.fromkeys(names)), topic) == decode(review(), topic)


@pytest.mark.parametrize("field", ["user_id", "item_id", "impression_id"])
def test_a_blank_id_is_nobodys(field: str) -> None:
    assert decode(click(**{field: "", "title": None})) == decode(click())
    assert decode(review(conversation_id=""), "events.service") == decode(review(), "events.service")


def test_a_time_that_was_never_set_is_none() -> None:
    event = decode(click(impression_time_ms=0))
    assert (event.event_id, event.impression_time_ms) == (decode(click()).event_id, None)
    assert decode(click(impression_time_ms=1)).reason == "out_of_range"


def test_null_in_a_candidate_or_a_context_is_left_out() -> None:
    given_ = click(candidates=[{"item_id": "a", "title": None, "context": {"p": None}}], context={"p": None, "q": 2})
    assert decode(given_) == decode(click(candidates=[{"item_id": "a"}], context={"q": 2}))


FRAME = b"\x00\x00\x00\x01\x02"
"""What the serialisers of a schema registry put first: a zero byte and the schema's id."""


def test_json_in_the_frame_of_a_schema_registry_is_decoded() -> None:
    assert decode(FRAME + click(title="x")) == decode(click(title="x"))
    assert decode(FRAME + click(title=None)) == decode(click())
    assert decode(FRAME + click(title=3)).reason == "wrong_type"


@pytest.mark.parametrize("binary", [b"\x04c1\x80\xd0", b"\x00\x0a\x02c1", b"\x02\xff\xfe", b"{"])
def test_other_values_in_that_frame_are_told_as_such(binary: bytes) -> None:
    letter = decode(FRAME + binary)
    assert (letter.reason, letter.value) == ("not_json", FRAME + binary)
    assert "schema registry" in letter.detail
    assert "Avro or Protobuf" in letter.detail


class Registry:
    """As `SchemaRegistry`: whatever it is given stands for this JSON, or for what went wrong."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer, self.asked = answer, 0

    def json_of(self, framed: bytes) -> bytes:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def decode_with(answer: bytes | Exception, value: bytes = FRAME + b"\x04c1", topic: str = "events.click") -> Any:
    return Decoder(LANES, Registry(answer)).decode(record(value, topic), NOW_MS)  # type: ignore[arg-type]


def test_with_a_registry_what_is_framed_is_what_the_registry_says() -> None:
    assert decode_with(click(title="x")) == decode(click(title="x"))
    assert decode_with(click(user_id="")) == decode(click())
    assert decode_with(review(stars=None), topic="events.review") == decode(review(), "events.review")
    letter = decode_with(click(title=[1]))
    assert (letter.reason, letter.value) == ("wrong_type", FRAME + b"\x04c1"), "the bytes as they came"
    assert decode_with(b"no json").detail == decode(b"no json").detail


def test_what_the_registry_cannot_read_is_a_letter_and_a_registry_that_is_away_is_not() -> None:
    letter = decode_with(AvroError("not_utf8", "schema 7: invalid UTF-8"))
    assert (letter.reason, letter.detail, letter.value) == ("not_utf8", "schema 7: invalid UTF-8", FRAME + b"\x04c1")
    with pytest.raises(RegistryError):
        decode_with(RegistryError("away"))


def test_plain_json_needs_no_registry() -> None:
    registry = Registry(RegistryError("away"))
    plain = Decoder(LANES, registry)  # type: ignore[arg-type]
    for value in (click(title="x"), click(title=None), b"no json", b"\x00", b"\x01\x02\x03\x04\x05\x06"):
        plain.decode(record(value), NOW_MS)
    assert registry.asked == 0


@pytest.mark.parametrize("value", [b"\x00", b"\x00\x00\x00\x00\x01", b"\x01" + click()])
def test_what_is_no_frame_is_no_json(value: bytes) -> None:
    letter = decode(value)
    assert letter.reason == "not_json"
    assert "registry" not in letter.detail


def test_odd_but_good_input_scores() -> None:
    assert decode(click(title="👍🏽 emoji 混合 text", unknown={"deep": [1]})).title.startswith("👍")
    assert decode(review(text="a\0b"), "events.review").text == "a\0b"
    assert decode(review(text="x" * 200_000), "events.review")


def test_a_shops_own_topic_names_are_decoded() -> None:
    shop = Decoder({"shop.clicks": "click"})
    assert isinstance(shop.decode(record(click(), "shop.clicks"), NOW_MS), ClickEvent)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from([*ClickEvent.__struct_fields__, *ReviewEvent.__struct_fields__])
near_events = st.dictionaries(fields, json_values).map(lambda tree: json.dumps(tree).encode())


@settings(max_examples=400)
@given(st.sampled_from(list(LANES)), st.one_of(st.binary(max_size=200), near_events, st.none()))
def test_any_bytes_give_an_event_or_a_letter(topic: str, value: bytes | None) -> None:
    result = decode(value, topic)
    assert isinstance(result, ClickEvent | ReviewEvent | ServiceEvent | DeadLetter)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_event_gives_an_event_or_a_letter(data: st.DataObject) -> None:
    good = bytearray(click(title="红色吉他", candidates=[{"item_id": "a"}], context={"p": 1.5}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(decode(bytes(good)), ClickEvent | DeadLetter)
