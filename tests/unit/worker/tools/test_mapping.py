"""Rows of other people's files become events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import ClickEvent, ReviewEvent, ServiceEvent
from worker.errors import InputError
from worker.tools.mapping import PRESET_OF, EventMapping


def mapped(topic: str, row: dict[str, Any], *, preset: str | None = None, **more: Any) -> tuple[str, Any]:
    mapping = EventMapping(topic, preset=preset or PRESET_OF[topic], **more)
    key, value = mapping.event(row, file="part", n=7, now_ms=1234)
    return key, msgspec.json.decode(value)


def test_a_logged_impression_becomes_a_click_event_with_its_outcome() -> None:
    row = {"user_id": 12, "item_id": 5, "title": "Kettle", "ts": 1000, "clicked": 0, "history": [1, 2]}
    key, event = mapped("events.click", row)
    assert key == "12"
    assert event == {
        "event_id": "part-7",
        "event_time_ms": 1_000_000,
        "user_id": "12",
        "item_id": "5",
        "title": "Kettle",
        "clicked": False,
    }
    assert msgspec.convert(event, ClickEvent).action == "impression"


def test_a_review_without_user_or_time_is_keyed_by_its_id_and_stands_at_now_without_its_label() -> None:
    key, event = mapped("events.review", {"text": "好", "category": "书籍", "sentiment": "positive"})
    assert key == "part-7"
    assert event == {"event_id": "part-7", "event_time_ms": 1234, "text": "好"}
    msgspec.convert(event, ReviewEvent)


def test_a_review_with_everything() -> None:
    row = {"user_id": "A1", "item_id": "B2", "ts": 1.5, "title": "good", "text": "fine", "stars": 5, "sentiment": "x"}
    _, event = mapped("events.review", row)
    assert (event["event_time_ms"], event["stars"], event["item_id"]) == (1500, 5.0, "B2")
    assert "sentiment" not in event


def test_rules_and_constants_win_over_the_preset() -> None:
    row = {"body": "hello", "who": 3, "when": 2, "text": "not this"}
    rules = ("text=body", "user_id=str:who", "event_time_ms=when*1000", "event_id=chat-{who}-{n}")
    key, event = mapped("events.service", row, rules=rules, constants=("channel=chat",))
    assert key == "3"
    assert event == {"event_id": "chat-3-7", "event_time_ms": 2000, "text": "hello", "user_id": "3", "channel": "chat"}
    msgspec.convert(event, ServiceEvent)


def test_a_rule_without_its_source_leaves_the_earlier_one_standing() -> None:
    _, event = mapped("events.service", {"text": "a", "body": None}, rules=("text=body", "channel=absent"))
    assert event["text"] == "a"
    assert "channel" not in event


def test_events_go_as_they_are_and_may_be_changed_by_rules() -> None:
    row = {"event_id": "e", "event_time_ms": 5, "text": "a", "extra": {"b": 1}}
    assert mapped("events.service", row, preset="none")[1] == row
    assert mapped("events.service", row, preset="none", constants=("channel=mail",))[1] == {**row, "channel": "mail"}


@pytest.mark.parametrize(
    ("topic", "row", "complaint"),
    [
        ("events.review", {"text": ""}, "text"),
        ("events.review", {"text": "a", "stars": "many"}, "stars is not a number"),
        ("events.review", {"text": "a", "ts": "yesterday"}, "ts is not a number"),
        ("events.click", {"title": "a", "clicked": "perhaps"}, "clicked is neither true nor false"),
        ("events.click", {"title": "a", "user_id": {"a": 1}}, "user_id is not text or number"),
        ("events.click", {"text": "where is my parcel"}, "the row has none of"),
        ("events.service", {"message": "a"}, "the row has none of"),
        ("events.service", {"channel": "chat"}, "text"),
    ],
)
def test_a_row_that_makes_no_event_says_why(topic: str, row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        mapped(topic, row)


@pytest.mark.parametrize(
    "more",
    [
        {"rules": ("text",)},
        {"rules": ("text=a b",)},
        {"rules": ("text=call()",)},
        {"rules": ("txt=body",)},
        {"constants": ("channel",)},
        {"constants": ("chanel=a",)},
        {"constants": ("channel=[",)},
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        EventMapping("events.service", preset="service", **more)


@given(st.dictionaries(st.text(max_size=10), st.none() | st.text(max_size=10) | st.integers() | st.lists(st.none())))
def test_any_row_gives_a_valid_event_or_a_value_error(row: dict[str, Any]) -> None:
    try:
        key, event = mapped("events.review", {"text": "a", **row})
    except ValueError:
        return
    assert key
    msgspec.convert(event, ReviewEvent)
