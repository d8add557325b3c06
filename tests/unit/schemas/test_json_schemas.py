"""The JSON Schemas that others read: as the types say, and never less than the first release promised."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from schemas.__main__ import FOLDER, TYPES, json_schema
from schemas.dead import DeadLetter
from schemas.events import EARLIEST_MS
from schemas.topics import INPUTS
from worker.kafka.records import Record
from worker.scoring.decode import LANES, Decoder

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
            elif _changed(shape, after["properties"][field], read_by_us=read_by_us):
                found.append(f"{name}.{field} has another type")
        now, then = set(after.get("required", [])), set(before.get("required", []))
        changed = now - then if read_by_us else then - now
        found += [f"{name}.{field} is {'newly' if read_by_us else 'no longer'} required" for field in sorted(changed)]
    return found


def _changed(before: Schema, after: Schema, *, read_by_us: bool) -> bool:
    then, now = _kinds(before), _kinds(after)
    if read_by_us:  # what we read may be null as well
        now = [kind for kind in now if kind in then or kind != _kind({"type": "null"})]
    return then != now or bool(_words(before) - _words(after))


def _kinds(shape: Schema) -> list[str]:
    """What of a field's schema readers rely on: its types, not its limits, words or default."""
    return sorted(map(_kind, _alternatives(shape)))


def _kind(shape: Schema) -> str:
    return json.dumps([shape.get("type"), shape.get("$ref"), _kinds(shape["items"]) if "items" in shape else None])


def _words(shape: Schema) -> set[str]:
    """The words that a field may say. More may come (a new level of opinions); none may go."""
    return {str(word) for each in _alternatives(shape) for word in each.get("enum", [])}


def _alternatives(shape: Schema) -> list[Schema]:
    found: list[Schema] = shape.get("anyOf", [shape])
    return found


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
    title = {**fields, "title": {"type": "string"}}
    assert problems(changed(properties=title), old, read_by_us=True) == []
    assert problems(changed(properties=title), old, read_by_us=False) == ["ReviewEvent.title has another type"]
    assert problems(old, changed(properties=title), read_by_us=True) == ["ReviewEvent.title has another type"]
    added = {**fields, "new": {"type": "string"}}
    assert problems(old, changed(properties=added), read_by_us=True) == []


NOW_MS = 1_767_225_600_000
TIMED = {"event_id": "e", "event_time_ms": NOW_MS}
SAID = {**TIMED, "text": "好"}
NOTHING = {
    "title": None,
    "query": None,
    "action": None,
    "candidates": None,
    "context": None,
    "impression_time_ms": None,
}
EXAMPLES: dict[str, list[Schema]] = {
    "events.click": [
        TIMED,
        {"event_id": "c2", "event_time_ms": EARLIEST_MS, "action": "search", "query": "茶壶"},
        {**TIMED, "candidates": [{"item_id": "i"}], "clicked": None, "unknown": [1]},
        {**TIMED, "context": {"price": 9.5, "os": "x", "brand": None}},
        {**TIMED, **NOTHING},
        {**TIMED, "candidates": [{"item_id": "i", "title": None, "context": None}]},
    ],
    "events.review": [
        {**SAID, "stars": 4.5, "topics": ["delivery"]},
        {**SAID, "title": None, "topics": None, "stars": None, "user_id": None},
    ],
    "events.service": [{**SAID, "channel": "chat", "user_id": None}],
}
REFUSED: dict[str, list[Schema]] = {
    "events.click": [
        {**TIMED, "event_id": ""},
        {**TIMED, "event_id": None},
        {**TIMED, "event_time_ms": None},
        {**TIMED, "event_time_ms": -1},
        {**TIMED, "event_time_ms": NOW_MS // 1000},
        {**TIMED, "impression_time_ms": NOW_MS // 1000},
        {**TIMED, "action": "hover"},
        {**TIMED, "candidates": [{"item_id": None}]},
        {"event_time_ms": NOW_MS},
    ],
    "events.review": [
        {**SAID, "stars": 6},
        {**SAID, "text": None},
        {**SAID, "topics": [None]},
        {"event_id": "r", "text": "x"},
    ],
    "events.service": [{**SAID, "text": ""}],
}


@pytest.mark.parametrize("topic", INPUTS)
def test_schema_and_decoder_agree_on_what_is_an_event(topic: str) -> None:
    schema = json_schema(topic)
    decode = Decoder(LANES).decode
    for event in EXAMPLES[topic]:
        jsonschema.validate(event, schema)
        assert not isinstance(decode(Record(topic, 0, 0, 0, None, json.dumps(event).encode()), NOW_MS), DeadLetter)
    for event in REFUSED[topic]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(event, schema)
        assert isinstance(decode(Record(topic, 0, 0, 0, None, json.dumps(event).encode()), NOW_MS), DeadLetter)
