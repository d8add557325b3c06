"""A shop's own records become events by its rules; what they pass over is nothing, what they cannot read a letter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.null import NullScorer
from schemas.dead import HEADER_TIMESTAMP, DeadLetter, read_letter
from schemas.events import ClickEvent, ReviewEvent
from worker.config import KafkaConfig, load_config
from worker.errors import ConfigError
from worker.kafka.ledger import OffsetLedger
from worker.kafka.records import Record
from worker.privacy.erasures import Erasures
from worker.scoring.cache import VectorCache
from worker.scoring.decode import Decoder, lanes_of
from worker.scoring.intake import Intake

ROOT: Final = Path(__file__).resolve().parents[4]
NOW_MS = 1_800_000_000_000
CLICKS = {
    "event_id": "{@topic}-{@partition}-{@offset}",
    "event_time_ms": "time:meta.at@+08:00",
    "action": "map:type(product_view=impression, click=click, add_to_cart=cart, pay=purchase, *=-)",
    "clicked": "map:type(click=true, *=null)",
    "user_id": "str:customer.id",
    "item_id": "product.sku",
    "title": "{product.brand} {product.name}",
    "context.price": "product.price",
    "context.device": "map:app(ios=phone, android=phone, *=desk)",
}
REVIEWS = {
    "event_id": "id",
    "event_time_ms": "@timestamp",
    "text": "body",
    "user_id": "@key",
    "stars": "rating",
    "brand": "value:Acme",
}
KAFKA = KafkaConfig(
    topics={"events.click": "web.tracking", "events.review": "cms.reviews"},
    fields={"web.tracking": CLICKS, "cms.reviews": REVIEWS},
)
ROW: dict[str, Any] = {
    "type": "product_view",
    "meta": {"at": "2025-11-11 08:00:00.250"},
    "customer": {"id": 4711.0, "name": "SECRET"},
    "product": {"sku": "k-1", "brand": "Acme", "name": "红色水壶", "price": 19.9, "stock": [1, 2]},
    "app": "ios",
}


def decoder(kafka: KafkaConfig = KAFKA) -> Decoder:
    return Decoder(lanes_of(kafka), fields=kafka.fields)


def record(value: Any, topic: str = "web.tracking", key: bytes | None = b"u-1") -> Record:
    data = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
    return Record(topic, 3, 41, NOW_MS - 5, key, data)


def decode(value: Any, topic: str = "web.tracking", key: bytes | None = b"u-1") -> Any:
    return decoder().decode(record(value, topic, key), NOW_MS)


def test_a_shops_click_is_an_event() -> None:
    assert decode(ROW) == ClickEvent(
        event_id="web.tracking-3-41",
        event_time_ms=1_762_819_200_250,
        user_id="4711",
        item_id="k-1",
        title="Acme 红色水壶",
        context={"price": 19.9, "device": "phone"},
    )
    click = decode(ROW | {"type": "click", "app": None, "customer": None})
    assert (click.action, click.clicked, click.user_id, click.context["device"]) == ("click", True, None, "desk")


def test_what_kafka_knows_of_a_record_can_be_read_too() -> None:
    assert decode({"id": "r1", "body": "很好", "rating": 5}, "cms.reviews") == ReviewEvent(
        event_id="r1", event_time_ms=NOW_MS - 5, text="很好", user_id="u-1", stars=5.0, brand="Acme"
    )
    assert decode({"id": "r1", "body": "很好"}, "cms.reviews", None).user_id is None


def test_fields_of_the_record_that_bear_a_name_of_ours_are_not_ours() -> None:
    theirs = {"event_id": 7, "user_id": "other", "context": "mobile", "candidates": 3, "query": ["x"]}
    assert decode(ROW | theirs) == decode(ROW)


@pytest.mark.parametrize("kind", ["scroll", "", 7, True, ["click"], None, "missing"])
def test_another_kind_of_record_is_passed_over_whatever_else_is_in_it(kind: Any) -> None:
    row = {**ROW, "type": kind, "meta": {"at": "no time"}}
    if kind == "missing":
        del row["type"]
    if kind == ["click"]:
        assert decode(row).reason == "wrong_type"
    else:
        assert decode(row) is None


def test_a_change_log_tells_which_of_its_records_are_events() -> None:
    rules = {
        "@when": "map:op(c=true, r=true, *=-)",
        "event_id": "review-{after.id}",
        "event_time_ms": "ts_ms",
        "text": "after.body",
        "user_id": "str:after.customer_id",
    }
    reading = decoder(KafkaConfig(fields={"events.review": rules}))

    def read(value: Any) -> Any:
        return reading.decode(record(value, "events.review"), NOW_MS)

    row = {"id": 5, "body": "质量很好", "customer_id": 9}
    change = {"before": None, "after": row, "op": "c", "ts_ms": NOW_MS - 7, "source": {"table": "reviews"}}
    told = ReviewEvent(event_id="review-5", event_time_ms=NOW_MS - 7, text="质量很好", user_id="9")
    assert read(change) == read(change | {"op": "r"}) == told
    assert read(change | {"op": "d", "before": row, "after": None}) is None
    assert read(change | {"op": None}) is None
    assert read(None) is None, "the mark of a deletion"
    assert read(change | {"after": row | {"body": None}}).reason == "missing_field"
    assert decode(None).reason == "tombstone", "where nothing says which records are events"


BAD = [
    (b"no json", "not_json", "malformed"),
    (b'{"type":"\xff"}', "not_utf8", ""),
    (b"[]", "wrong_type", "object"),
    (ROW | {"meta": {"at": "SECRET"}}, "wrong_type", "meta.at is not an ISO 8601 time (kafka.fields.web.tracking)"),
    (ROW | {"meta": {}}, "missing_field", "event_time_ms"),
    (ROW | {"product": {"sku": ["SECRET"]}}, "wrong_type", "item_id"),
    (ROW | {"product": {"sku": "\0fence"}}, "out_of_range", "NUL"),
    (ROW | {"product": {"sku": "a" * 257}}, "too_large", "item_id"),
    (ROW | {"meta": {"at": "2099-01-01"}}, "future_time", ""),
    (ROW | {"customer": {"id": {"SECRET": 1}}}, "wrong_type", "customer.id is not text or number"),
    (b'{"type":"click","x":' + b"[" * 100_000, "not_json", "deep"),
    (None, "tombstone", ""),
]


@pytest.mark.parametrize(("row", "reason", "word"), BAD)
def test_what_the_rules_cannot_read_is_a_dead_letter_with_its_bytes(row: Any, reason: str, word: str) -> None:
    letter = decode(row)
    assert isinstance(letter, DeadLetter), letter
    assert letter.reason == reason
    assert word in letter.detail
    assert "SECRET" not in letter.detail
    assert letter.value == record(row).value


def test_a_value_that_no_case_names_is_a_letter_where_there_is_no_other() -> None:
    action = "map:type(view=impression, pay=purchase)"
    kafka = KafkaConfig(fields={"events.click": {"event_id": "id", "event_time_ms": "@timestamp", "action": action}})
    letter = decoder(kafka).decode(record({"type": "SECRET"}, "events.click"), NOW_MS)
    assert isinstance(letter, DeadLetter)
    assert letter.detail == "type is none of view, pay (kafka.fields.events.click)"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
near_rows = st.fixed_dictionaries(
    {"type": st.sampled_from(["click", "product_view", "x"]) | json_values},
    optional={
        "meta": st.fixed_dictionaries({}, optional={"at": json_values | st.datetimes().map(str)}) | json_values,
        "customer": st.fixed_dictionaries({}, optional={"id": json_values}) | json_values,
        "product": st.dictionaries(st.sampled_from(["sku", "brand", "name", "price"]), json_values) | json_values,
        "id": json_values,
        "body": json_values,
        "rating": json_values,
        "app": json_values,
    },
)


@settings(max_examples=400)
@given(st.sampled_from(sorted(KAFKA.fields)), near_rows.map(json.dumps).map(str.encode) | st.binary(max_size=99))
@example("cms.reviews", b'{"id":"a","body":"b","rating":1' + b"0" * 400 + b"}")
@example("web.tracking", b'{"type":"click","customer":{"id":1' + b"0" * 40 + b"}}")
def test_any_bytes_give_an_event_a_letter_or_nothing(topic: str, value: bytes) -> None:
    result = decode(value, topic)
    if isinstance(result, DeadLetter):
        assert result.value == value
    elif result is not None:
        msgspec.json.encode(result)


@given(json_values, st.floats(1e300, 1.7e308))
def test_numbers_of_any_size_are_no_defect(value: Any, large: float) -> None:
    sources = {"event_id": "str:x", "event_time_ms": "x*1000000", "context.a": "int:x", "context.b": "float:x"}
    scaled = decoder(KafkaConfig(fields={"events.click": sources}))
    for x in (value, large, -large, int(large)):
        scaled.decode(record({"x": x}, "events.click"), NOW_MS)


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("bool:valid", [{"valid": True}, {"valid": "yes"}]),
        ("map:op(c=true, d=false)", [{"op": "c"}]),
        ("map:op(c=true, *=null)", [{"op": "c"}]),
        ("map:op(1.0=true, True=true, *=-)", [{"op": 1}, {"op": 1.0}, {"op": "1"}, {"op": True}, {"op": "true"}]),
        ("map:op(d=-, *=true)", [{}, {"op": "c"}, {"op": ""}]),
    ],
)
def test_only_what_is_true_of_when_is_an_event(source: str, kept: list[dict[str, Any]]) -> None:
    rules = {"event_id": "{@offset}", "event_time_ms": "@timestamp", "@when": source}
    reading = decoder(KafkaConfig(fields={"events.click": rules}))
    others: list[dict[str, Any]] = [{"op": "d"}, {"valid": False, "op": "d"}, {"op": "d", "valid": None}]
    for row in kept:
        assert isinstance(reading.decode(record(row, "events.click"), NOW_MS), ClickEvent), row
    for row in others:
        assert reading.decode(record(row, "events.click"), NOW_MS) is None, row


def test_the_order_of_rules_is_no_matter() -> None:
    first = {"context.device": "map:app(ios=phone)", "context.price": "price", "context": "props"}
    rules = {
        **first,
        "event_id": "{@offset}",
        "event_time_ms": "@timestamp",
        "action": "map:type(view=impression, *=-)",
    }
    reading = decoder(KafkaConfig(fields={"events.click": rules}))
    row = {"type": "view", "app": "ios", "price": 2, "props": {"os": "x", "price": 1}}
    found = reading.decode(record(row, "events.click"), NOW_MS)
    assert isinstance(found, ClickEvent)
    assert found.context == {"os": "x", "price": 2.0, "device": "phone"}
    assert reading.decode(record(row | {"type": "scroll", "app": "web"}, "events.click"), NOW_MS) is None


def test_a_key_that_is_no_text_is_nobodys() -> None:
    for key in (b"\xff\xfe", b"\xfe\xff"):
        assert decode({"id": "r1", "body": "很好"}, "cms.reviews", key).reason == "not_utf8"


def test_what_is_passed_over_is_finished_counted_and_costs_no_letter() -> None:
    passed: list[str] = []
    intake = Intake(
        lanes_of(KAFKA), NullScorer(), VectorCache(1 << 20), decoder=decoder(), count_passed_over=passed.append
    )
    ledger: OffsetLedger[Any] = OffsetLedger()
    ledger.assign([("web.tracking", 3)])
    records = [record(ROW | {"type": kind}) for kind in ("scroll", "click", "scroll")]
    records = [msgspec.structs.replace(each, offset=n) for n, each in enumerate(records)]
    units, letters = intake.admit(records, ledger, 0.0, NOW_MS)
    assert ([unit.ticket.offset for unit in units], letters) == ([1], [])
    assert passed == ["web.tracking", "web.tracking"]
    assert [ticket.offset for ticket in ledger.release()] == [0], "what stands behind a unit waits for it"


def test_a_letter_tells_whose_it_is_by_the_rules() -> None:
    broken = ROW | {"product": {"sku": 7}}
    told = decoder().told(record(broken, key=None))
    assert (told.people, told.sure, told.time_ms) == ({"4711"}, True, 1_762_819_200_250)
    assert decoder().told(record(b'{"user_id": "x"', key=b"k")) == ({"x", "k"}, True, None)
    assert decoder().told(record(b"\0\0\0\0\7" + json.dumps(broken).encode())).people == {"4711"}, "in a frame, too"
    others = broken | {"seller": {"user_id": "A"}}
    assert decoder().told(record(others)).people == {"4711"}, "what the rules find, and nobody else"
    assert decoder().told(record(others | {"customer": None}, key=None)) == (set(), False, 1_762_819_200_250)
    number = decoder(KafkaConfig(fields={"events.review": REVIEWS | {"user_id": "who"}}))
    assert number.told(record({"who": 12.0}, "events.review", None)).people == {"12"}
    assert decoder().told(record(b"no json", key=b"k")).sure is False
    timeless = decoder().told(record(ROW | {"type": "scroll", "meta": {"at": "no time"}}, key=None))
    assert timeless == ({"4711"}, True, None), "whatever else is wrong with it"
    erasures = Erasures()
    erasures.add("4711", NOW_MS, 0)
    intake = Intake(lanes_of(KAFKA), NullScorer(), VectorCache(1 << 20), erasures, decoder=decoder())
    ledger: OffsetLedger[Any] = OffsetLedger()
    ledger.assign([("web.tracking", 3)])
    assert intake.admit([record(broken, key=None)], ledger, 0.0, NOW_MS) == ([], []), "forgotten, so no letter either"


def test_what_is_replayed_from_a_letter_keeps_the_time_at_which_it_first_came() -> None:
    letter = decode({"id": "r1", "body": None}, "cms.reviews")
    assert letter.timestamp_ms == NOW_MS - 5
    again = read_letter(letter.value, letter.headers())
    assert again.timestamp_ms == NOW_MS - 5
    later = Record("cms.reviews", 3, 99, NOW_MS - 1, b"u", b'{"id":"r1","body":"fine"}')
    for headers, at_ms in ((None, 1), ([(HEADER_TIMESTAMP, b"1799999999000")], 1000), ([(HEADER_TIMESTAMP, b"x")], 1)):
        event = decoder().decode(msgspec.structs.replace(later, headers=headers), NOW_MS)
        assert event.event_time_ms == NOW_MS - at_ms  # type: ignore[union-attr]


def test_a_topic_for_backfill_has_fields_of_its_own() -> None:
    kafka = KafkaConfig(backfill={"old.reviews": "events.review"}, fields={"old.reviews": REVIEWS})
    found = decoder(kafka).decode(record({"id": "r", "body": "fine"}, "old.reviews"), NOW_MS)
    assert isinstance(found, ReviewEvent)
    plain = {"event_id": "r", "event_time_ms": NOW_MS, "text": "fine"}
    assert isinstance(decoder(kafka).decode(record(plain, "events.review"), NOW_MS), ReviewEvent)


@pytest.mark.parametrize(
    ("topic", "field", "source", "word"),
    [
        ("web.clicks", "title", "name", "kafka.fields.web.clicks: events are read from cms.reviews, events.service"),
        ("web.tracking", "titel", "name", "kafka.fields.web.tracking has no field 'titel'; it has action, candidates"),
        ("web.tracking", "text", "name", "has no field 'text'"),
        ("web.tracking", "title.en", "name", "has no field 'title.en'"),
        ("web.tracking", "title", "a b", "a source is a field"),
        ("web.tracking", "title", "@now", "or @key, @offset, @partition, @timestamp, @topic"),
        ("web.tracking", "title", "{@now}", "@now is not known here"),
        ("web.tracking", "action", "map:type(view)", "its=ours"),
        ("web.tracking", "action", "map:type(view=impression, view=click)", "its=ours, each once"),
        ("web.tracking", "action", "map:type()", "a source is a field"),
        ("web.tracking", "action", "value:{", "no YAML value"),
        ("web.tracking", "action", "value:view", "Invalid enum value 'view'"),
        ("web.tracking", "action", "map:type(pay=buy, *=-)", "Invalid enum value 'buy'"),
        ("web.tracking", "action", "map:类型(浏览=impression，点击=click, *=-)", "with commas between"),
        ("web.tracking", "action", "map:type('view'=click, *=-)", "without quotes"),
        ("web.tracking", "experiment_id", "value:007", "Expected `str | null`, got `int`"),
        ("web.tracking", "experiment_id", "value:#1", "it is nothing"),
        ("web.tracking", "experiment_id", "value:2025-02-30", "no YAML value"),
        ("web.tracking", "experiment_id", "value:" + "[" * 9999, "no YAML value"),
        ("web.tracking", "context.country", "value:NO", "Expected `float | str`, got `bool`"),
        ("web.tracking", "title", "map:type(a=1:30)", "Expected `str`, got `int`"),
        ("web.tracking", "event_time_ms", "value:.inf", "Expected `int`, got `float`"),
        ("web.tracking", "context", "value:{null: 2}", "Expected `str`"),
        ("web.tracking", "@when", "map:op(c=yes please)", "Expected `bool`"),
        ("web.tracking", "event_time_ms", "time:at@Mars", "is no zone"),
        ("web.tracking", "title", "name", "kafka.fields.web.tracking fills no event_id, event_time_ms"),
    ],
)
def test_rules_that_cannot_be_used_are_told_at_the_start(topic: str, field: str, source: str, word: str) -> None:
    with pytest.raises(ConfigError) as told:
        decoder(msgspec.structs.replace(KAFKA, fields={topic: {field: source}}))
    assert word in str(told.value)
    assert "kafka.fields" in str(told.value)


def test_the_rules_stand_in_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "millrace.yaml"
    file.write_text("kafka: {fields: {events.click: {event_id: id, event_time_ms: ts*1000, title: 5}}}")
    with pytest.raises(ConfigError, match=r"kafka\.fields"):
        load_config(file)
    file.write_text(file.read_text().replace(": 5", ": name"))
    assert load_config(file).kafka.fields["events.click"]["title"] == "name"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_rules_that_the_readme_shows_read_a_shops_records(name: str, tmp_path: Path) -> None:
    (block,) = [
        each for each in re.findall(r"```yaml\n(.*?)```", (ROOT / name).read_text(), re.DOTALL) if "map:" in each
    ]
    (tmp_path / "millrace.yaml").write_text(block)
    kafka = load_config(tmp_path / "millrace.yaml").kafka
    row = {
        "session": "s",
        "seq": 7,
        "ts": 1_767_225_600,
        "type": "click",
        "customer": {"id": 3},
        "product": {"sku": "k"},
    }
    click = decoder(kafka).decode(record(row), NOW_MS)
    assert isinstance(click, ClickEvent), click
    assert (click.event_id, click.action, click.clicked, click.user_id) == ("s-7", "click", True, "3")
    review = {"id": "r", "ts": 1_767_225_600_000, "body": "fine", "rating": 4}
    assert isinstance(decoder(kafka).decode(record(review, "cms.reviews"), NOW_MS), ReviewEvent)
