"""Avro values mean what the same JSON means; any bytes give JSON or an error; no schema makes reading without bound."""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import fastavro
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.kafka.avro import AvroError, AvroReader


def optional(kind: Any) -> list[Any]:
    return ["null", kind]


CANDIDATE = {"name": "Candidate", "type": "record", "fields": [{"name": "item_id", "type": "string"}]}
CLICK = {
    "type": "record",
    "name": "shop.Click",
    "fields": [
        {"name": "event_id", "type": "string"},
        {"name": "event_time_ms", "type": "long"},
        {"name": "action", "type": {"type": "enum", "name": "Action", "symbols": ["impression", "click"]}},
        {"name": "user_id", "type": optional("string")},
        {"name": "clicked", "type": optional("boolean")},
        {"name": "context", "type": {"type": "map", "values": ["double", "string"]}},
        {"name": "candidates", "type": {"type": "array", "items": CANDIDATE}},
    ],
}
clicks = st.fixed_dictionaries(
    {
        "event_id": st.text(min_size=1, max_size=9),
        "event_time_ms": st.integers(-(2**63), 2**63 - 1),
        "action": st.sampled_from(["impression", "click"]),
        "context": st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False) | st.text()),
        "candidates": st.lists(st.fixed_dictionaries({"item_id": st.text(max_size=5)}), max_size=3),
    },
    optional={"user_id": st.text(max_size=9), "clicked": st.booleans()},
)


def written(schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


def field(kind: Any, value: Any) -> Any:
    """What a field of this type is in JSON."""
    schema = {"type": "record", "name": "E", "fields": [{"name": "x", "type": kind}]}
    return json.loads(AvroReader(schema).json(written(schema, {"x": value}))).get("x", "left out")


@given(clicks)
def test_a_value_is_the_json_that_it_would_have_been(click: dict[str, Any]) -> None:
    assert json.loads(AvroReader(CLICK).json(written(CLICK, click))) == click


MOMENT = datetime(2026, 11, 26, 23, 59, 59, 999_000, tzinfo=UTC)
MOMENT_MS = 1_795_737_599_999


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ({"type": "long", "logicalType": "timestamp-millis"}, MOMENT, MOMENT_MS),
        ({"type": "long", "logicalType": "timestamp-micros"}, MOMENT, MOMENT_MS),
        ({"type": "long", "logicalType": "local-timestamp-millis"}, MOMENT.replace(tzinfo=None), MOMENT_MS),
        ({"type": "long", "logicalType": "timestamp-millis"}, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), -1000),
        ({"type": "int", "logicalType": "date"}, date(2026, 11, 26), "2026-11-26"),
        ({"type": "int", "logicalType": "time-millis"}, time(23, 59), "23:59:00"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}, Decimal("19.90"), 19.9),
        ({"type": "bytes", "logicalType": "decimal", "precision": 38}, Decimal(9007199254740993), 9007199254740993),
        ({"type": "fixed", "name": "F", "size": 9, "logicalType": "decimal", "precision": 20}, Decimal(-7), -7),
        ({"type": "int", "logicalType": "date"}, 2**31 - 1, "left out"),
        ({"type": "int", "logicalType": "time-millis"}, -1, "left out"),
        ({"type": "long", "logicalType": "time-micros"}, time(1, 2, 3), "01:02:03"),
        ({"type": "long", "logicalType": "timestamp-micros"}, 9223372036825200000, 9223372036825200),
        ({"type": "long", "logicalType": "timestamp-nanos"}, MOMENT_MS * 1_000_000 + 999, MOMENT_MS),
        ({"type": "long", "logicalType": "local-timestamp-nanos"}, -1, -1),
        ({"type": "string", "logicalType": "uuid"}, "no uuid", "no uuid"),
        ({"type": "string", "logicalType": "uuid"}, uuid.UUID(int=7), str(uuid.UUID(int=7))),
        ({"type": "fixed", "name": "F", "size": 2}, b"ab", [97, 98]),
        ("bytes", b"\xff", [255]),
        ("float", float("nan"), None),
        ("double", float("-inf"), None),
        (optional("string"), None, "left out"),
        (["int", "string"], "7", "7"),
    ],
)
def test_what_json_has_no_type_for_is_told_in_one(kind: Any, value: Any, told: Any) -> None:
    assert field(kind, value) == told


@given(st.binary(max_size=60))
@example(b"\x02e\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x01")
@example(b"\x02e\x02\x08")
def test_any_bytes_give_json_or_an_error(body: bytes) -> None:
    with contextlib.suppress(AvroError):
        json.loads(AvroReader(CLICK).json(body))


@given(clicks, st.data())
def test_a_value_cut_or_with_something_behind_it_is_an_error(click: dict[str, Any], data: st.DataObject) -> None:
    body = written(CLICK, click)
    cut = data.draw(st.integers(0, len(body) - 1))
    for wrong in (body[:cut], body + b"\0"):
        with pytest.raises(AvroError):
            AvroReader(CLICK).json(wrong)


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in fields.items()]}


@pytest.mark.parametrize(
    "schema",
    [
        record("Chain", next=optional("Chain")),
        record("Tree", children={"type": "array", "items": "Tree"}),
        record("Folder", files={"type": "map", "values": "Folder"}),
        record("A", b=record("B", a=optional("A"))),
    ],
)
def test_a_type_that_contains_itself_is_refused(schema: Any) -> None:
    # The library reads it by recursion in C: a deep value would end the process.
    with pytest.raises(AvroError, match="contains itself"):
        AvroReader(schema)


@pytest.mark.parametrize("items", ["null", record("Nothing"), record("N", a="null", b=record("M", c="null"))])
def test_a_list_of_what_takes_no_bytes_is_refused(items: Any) -> None:
    # A few bytes would be a list of any length.
    with pytest.raises(AvroError, match="no bytes"):
        AvroReader({"type": "array", "items": items})


def test_a_type_may_stand_in_several_places() -> None:
    money = record("Money", amount="double")
    schema = record("Order", price=money, paid="Money", back=optional("Money"))
    value = {"price": {"amount": 2.5}, "paid": {"amount": 1.0}}
    assert json.loads(AvroReader(schema).json(written(schema, value))) == value


def test_a_long_decimal_is_refused_before_it_is_read() -> None:
    schema = record("E", x={"type": "bytes", "logicalType": "decimal", "precision": 38})
    body = written(record("E", x="bytes"), {"x": b"\x7f" * 65})
    with pytest.raises(AvroError, match="more than 64 bytes") as told:
        AvroReader(schema).json(body)
    assert told.value.reason == "too_large"


def test_what_stands_at_the_top_may_be_another_schema_or_one_of_several() -> None:
    view, buy = record("shop.View", id="string"), record("shop.Buy", id="string", price="double")
    several = AvroReader(["shop.View", "shop.Buy"], [view, buy])
    assert several.json(b"\x00" + written(view, {"id": "a"})) == b'{"id":"a"}'
    assert several.json(b"\x02" + written(buy, {"id": "a", "price": 2.5})) == b'{"id":"a","price":2.5}'
    assert AvroReader("shop.View", [view]).json(written(view, {"id": "b"})) == b'{"id":"b"}'
    assert AvroReader({"type": "array", "items": "shop.View"}, [view]).json(b"\x00") == b"[]"


def test_types_that_double_with_every_level_are_refused() -> None:
    needed = [record("R0", a="null")] + [record(f"R{n}", a=f"R{n - 1}", b=f"R{n - 1}") for n in range(1, 60)]
    with pytest.raises(AvroError, match="more than 100000 values"):
        AvroReader("R59", needed)
    assert AvroReader("R9", needed[:10]).json(b"").count(b"{") == 2**10 - 1


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"fields": []}, 5, "X"])
def test_what_is_no_schema_is_told_as_such(schema: Any) -> None:
    with pytest.raises(AvroError, match="no Avro"):
        AvroReader(schema)
