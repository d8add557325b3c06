"""The JSON Schemas that others read: as the types say, and never less than the first release promised."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from schemas.__main__ import FOLDER, TYPES, json_schema
from schemas.topics import INPUTS

V1 = Path(__file__).parent / "v1"
Schema = dict[str, Any]


def definition(schema: Schema, name: str) -> Schema:
    found: Schema = schema["$defs"][name]
    return found


def problems(old: Schema, new: Schema, *, read_by_us: bool) -> list[str]:
    """Why ``new`` is no compatible successor of ``old``; empty when it is one.

    What we read (events) must still be accepted: nothing newly required. What we write (scores) must still be
    found: nothing that was always there may go. Neither may lose or retype a field.
    """
    found = []
    for name, before in old["$defs"].items():
        after = new["$defs"].get(name)
        if after is None:
            found.append(f"{name} is gone")
            continue
        if before.get("type") != "object":
            continue
        for field, shape in before["properties"].items():
            if field not in after["properties"]:
                found.append(f"{name}.{field} is gone")
            elif _kind(after["properties"][field]) != _kind(shape) or _words(shape) - _words(
                after["properties"][field]
            ):
                found.append(f"{name}.{field} has another type")
        now, then = set(after.get("required", [])), set(before.get("required", []))
        changed = now - then if read_by_us else then - now
        found += [f"{name}.{field} is {'newly' if read_by_us else 'no longer'} required" for field in sorted(changed)]
    return found


def _kind(shape: Schema) -> Any:
    """The part of a field's schema that readers rely on: its type, not its limits, words or default."""
    if "anyOf" in shape:
        return sorted((json.dumps(_kind(each)) for each in shape["anyOf"]), key=str)
    items = _kind(shape["items"]) if "items" in shape else None
    return [shape.get("type"), shape.get("$ref"), items]


def _words(shape: Schema) -> set[str]:
    """The words that a field may say. More may come (a new level of opinions); none may go."""
    return set(map(str, shape.get("enum", [])))


@pytest.mark.parametrize("topic", TYPES)
def test_the_checked_in_schema_is_the_types(topic: str) -> None:
    kept = json.loads((FOLDER / f"{topic}.json").read_text(encoding="utf-8"))
    assert kept == json_schema(topic), "the types changed: run `make schemas`, and keep the change compatible"


def test_every_schema_has_a_type_and_a_frozen_first_version() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(TYPES) == {path.stem for path in V1.glob("*.json")}


@pytest.mark.parametrize("topic", TYPES)
def test_the_schema_keeps_what_the_first_release_promised(topic: str) -> None:
    old = json.loads((V1 / f"{topic}.json").read_text(encoding="utf-8"))
    assert problems(old, json_schema(topic), read_by_us=topic in INPUTS) == []


def test_the_comparison_sees_what_breaks_readers() -> None:
    old = json_schema("events.review")
    name = "ReviewEvent"

    def changed(**edits: Any) -> Schema:
        new = copy.deepcopy(old)
        definition(new, name).update(edits)
        return new

    fields = definition(old, name)["properties"]
    less = {field: shape for field, shape in fields.items() if field != "brand"}
    assert problems(old, changed(properties=less), read_by_us=True) == ["ReviewEvent.brand is gone"]
    retyped = {**fields, "text": {"type": "integer"}}
    assert problems(old, changed(properties=retyped), read_by_us=True) == ["ReviewEvent.text has another type"]
    more = [*definition(old, name)["required"], "brand"]
    assert problems(old, changed(required=more), read_by_us=True) == ["ReviewEvent.brand is newly required"]
    assert problems(changed(required=more), old, read_by_us=False) == ["ReviewEvent.brand is no longer required"]
    alert = json_schema("alerts.opinion")
    fewer = copy.deepcopy(alert)
    definition(fewer, "Alert")["properties"]["status"]["enum"].remove("improving")
    assert problems(alert, fewer, read_by_us=False) == ["Alert.status has another type"]
    assert problems(fewer, alert, read_by_us=False) == []
    added = {**fields, "new": {"type": "string"}}
    assert problems(old, changed(properties=added), read_by_us=True) == []


EXAMPLES: dict[str, list[Schema]] = {
    "events.click": [
        {"event_id": "c1", "event_time_ms": 1},
        {
            "event_id": "c2",
            "event_time_ms": 0,
            "action": "search",
            "query": "茶壶",
            "context": {"price": 9.5, "os": "x"},
        },
        {"event_id": "c3", "event_time_ms": 1, "candidates": [{"item_id": "i"}], "clicked": None, "unknown": [1]},
    ],
    "events.review": [{"event_id": "r", "event_time_ms": 1, "text": "好", "stars": 4.5, "topics": ["delivery"]}],
    "events.service": [{"event_id": "s", "event_time_ms": 1, "text": "?", "channel": "chat", "user_id": None}],
}
REFUSED: dict[str, list[Schema]] = {
    "events.click": [
        {"event_id": "", "event_time_ms": 1},
        {"event_id": "c", "event_time_ms": -1},
        {"event_id": "c", "event_time_ms": 1, "action": "hover"},
        {"event_time_ms": 1},
    ],
    "events.review": [{"event_id": "r", "event_time_ms": 1, "text": "x", "stars": 6}, {"event_id": "r", "text": "x"}],
    "events.service": [{"event_id": "s", "event_time_ms": 1, "text": ""}],
}


@pytest.mark.parametrize("topic", INPUTS)
def test_schema_and_decoder_agree_on_what_is_an_event(topic: str) -> None:
    schema = json_schema(topic)
    for event in EXAMPLES[topic]:
        jsonschema.validate(event, schema)
        msgspec.convert(event, TYPES[topic])
    for event in REFUSED[topic]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(event, schema)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(event, TYPES[topic])
