"""Rows of other people's files become events."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.events import FUTURE_LIMIT_MS, ClickEvent, ReviewEvent, ServiceEvent
from worker.errors import InputError
from worker.scoring.rules import _TEXTS, _WHOLE, find
from worker.tools.mapping import PRESET_OF, EventMapping

NOW_MS = 1_800_000_000_000
TS = 1_767_225_600
KINDS = (ClickEvent, ReviewEvent, ServiceEvent)


def mapped(topic: str, row: dict[str, Any], *, preset: str | None = None, **more: Any) -> tuple[str, Any]:
    """Key and event of a row. One without a time is from now: most tests are not about it."""
    mapping = EventMapping(topic, preset=preset or PRESET_OF[topic], **{"start_time_ms": NOW_MS, **more})
    key, value = mapping.event(row, file="part", n=7, now_ms=NOW_MS)
    return key, msgspec.json.decode(value)


def one(field: str, source: str, row: dict[str, Any], topic: str = "events.review") -> Any:
    """What one rule makes of a row for a field of a review; None where it sets nothing."""
    return mapped(topic, {"text": "a", "title": "a", **row}, rules=(f"{field}={source}",))[1].get(field)


def test_a_logged_impression_becomes_a_click_event_with_its_outcome() -> None:
    row = {"user_id": 12, "item_id": 5, "title": "Kettle", "ts": TS, "clicked": 0, "history": [1, 2]}
    key, event = mapped("events.click", row)
    assert key == "12"
    assert event == {
        "event_id": "part-7",
        "event_time_ms": TS * 1000,
        "user_id": "12",
        "item_id": "5",
        "title": "Kettle",
        "clicked": False,
    }
    assert msgspec.convert(event, ClickEvent).action == "impression"


def test_a_review_without_user_is_keyed_by_its_id_and_stands_without_its_label() -> None:
    key, event = mapped("events.review", {"text": "好", "ts": TS, "sentiment": "positive"})
    assert key == "part-7"
    assert event == {"event_id": "part-7", "event_time_ms": TS * 1000, "text": "好"}
    msgspec.convert(event, ReviewEvent)


def test_a_review_with_everything() -> None:
    row = {"user_id": "A1", "item_id": "B2", "ts": TS + 0.5, "title": "good", "text": "fine", "stars": 5}
    _, event = mapped("events.review", {**row, "category": "书籍", "topics": ["a"], "brand": "b", "sentiment": "x"})
    assert (event["event_time_ms"], event["stars"], event["item_id"]) == (TS * 1000 + 500, 5.0, "B2")
    assert (event["category"], event["topics"], event["brand"]) == ("书籍", ["a"], "b")
    assert "sentiment" not in event


@pytest.mark.parametrize("row", [{"category": ["a", "b"], "topics": "a"}, {"category": 7, "topics": [{"name": "a"}]}])
def test_categories_and_topics_of_another_shape_are_left_out(row: dict[str, Any]) -> None:
    _, event = mapped("events.review", {"text": "fine", **row})
    assert not {"category", "topics"} & event.keys()


def test_rules_and_constants_win_over_the_preset() -> None:
    row = {"body": "hello", "who": 3, "when": TS, "text": "not this"}
    rules = ("text=body", "user_id=str:who", "event_time_ms=when*1000", "event_id=chat-{who}-{n}")
    key, event = mapped("events.service", row, rules=rules, constants=("channel=chat",))
    assert key == "3"
    known = {"event_id": "chat-3-7", "event_time_ms": TS * 1000, "text": "hello"}
    assert event == {**known, "user_id": "3", "channel": "chat"}
    msgspec.convert(event, ServiceEvent)


def test_a_rule_without_its_source_leaves_the_earlier_one_standing() -> None:
    _, event = mapped("events.service", {"text": "a", "body": None}, rules=("text=body", "channel=absent"))
    assert event["text"] == "a"
    assert "channel" not in event


def test_events_go_as_they_are_and_may_be_changed_by_rules() -> None:
    row = {"event_id": "e", "event_time_ms": NOW_MS, "text": "a", "user_id": "", "channel": None, "extra": {"b": 1}}
    assert mapped("events.service", row, preset="none")[1] == row
    assert mapped("events.service", row, preset="none", constants=("channel=mail",))[1] == {**row, "channel": "mail"}


# Times


def test_a_row_without_a_time_is_refused_unless_a_time_for_such_rows_is_given() -> None:
    with pytest.raises(ValueError, match="no event time"):
        mapped("events.review", {"text": "a", "timestamp": TS}, start_time_ms=None)
    assert mapped("events.review", {"text": "a"}, start_time_ms=NOW_MS - 5)[1]["event_time_ms"] == NOW_MS - 5
    assert mapped("events.review", {"text": "a", "ts": TS}, start_time_ms=NOW_MS - 5)[1]["event_time_ms"] == TS * 1000
    rules = ("event_time_ms=@now",)
    assert mapped("events.review", {"text": "a"}, start_time_ms=None, rules=rules)[1]["event_time_ms"] == NOW_MS
    known = {"event_id": "e", "event_time_ms": NOW_MS - 9, "text": "a"}
    assert mapped("events.review", known, preset="none")[1] == known


@given(st.integers(946_684_800_000, NOW_MS), st.integers(-14 * 60, 14 * 60))
def test_an_iso_time_is_its_milliseconds_whatever_its_zone(expected: int, minutes: int) -> None:
    utc = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=expected)
    zoned = utc.astimezone(timezone(timedelta(minutes=minutes)))
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    zone = f"{sign}{hours:02}:{rest:02}"
    assert one("event_time_ms", "time:at", {"at": zoned.isoformat()}) == expected
    assert one("event_time_ms", f"time:at@{zone}", {"at": zoned.replace(tzinfo=None).isoformat(" ")}) == expected
    assert one("event_time_ms", "time:at@Z", {"at": zoned.isoformat()}) == expected, "what the row says counts"


def test_a_time_may_be_of_a_named_zone_and_needs_one() -> None:
    at = {"at": "2025-07-11T10:00:00"}
    assert one("event_time_ms", "time:at@Europe/Berlin", at) == 1752220800000
    assert one("event_time_ms", "time:at@Asia/Shanghai", {"at": "2025-11-11"}) == 1762790400000
    with pytest.raises(ValueError, match=r"time without zone.*time:at@"):
        one("event_time_ms", "time:at", at)
    for value in ("11/11/2025", "yesterday", 1762790400, ["2025-11-11"]):
        with pytest.raises(ValueError, match="at is not an ISO 8601 time"):
            one("event_time_ms", "time:at", {"at": value})
    assert one("event_time_ms", "time:at", {"at": " ", "ts": TS}) == TS * 1000


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"ts": NOW_MS}, r"in the future \(milliseconds already"),
        ({"event_time_ms": TS}, r"event_time_ms is before March 1973 \(seconds\? multiply by 1000\)"),
        ({"event_time_ms": TS * 1_000_000}, "microseconds"),
        ({"event_time_ms": TS * 1_000_000_000}, "nanoseconds"),
        ({"event_time_ms": 0}, "before March 1973$"),
        ({"event_time_ms": NOW_MS + FUTURE_LIMIT_MS + 1}, "300 s in the future$"),
        ({"event_time_ms": 10**30}, "event_time_ms"),
        ({"event_time_ms": NOW_MS, "impression_time_ms": TS}, "impression_time_ms is before.*seconds"),
    ],
)
def test_a_time_in_another_unit_is_refused_and_the_unit_named(row: dict[str, Any], hint: str) -> None:
    rules = ("impression_time_ms=impression_time_ms",)
    with pytest.raises(ValueError, match=hint):
        mapped("events.click", {"title": "a", **row}, rules=rules)
    event = {"event_id": "e", "title": "a", "event_time_ms": row.get("ts", 0) * 1000, **row}
    with pytest.raises(ValueError, match=hint):
        mapped("events.click", event, preset="none")
    assert mapped("events.click", {"title": "a", "event_time_ms": NOW_MS + FUTURE_LIMIT_MS})


# Numbers


@given(st.floats(0, 5) | st.integers(0, 5))
@example(4.5)
def test_a_scaled_number_is_rounded_only_where_the_field_is_whole(score: float) -> None:
    assert one("stars", "score*0.5", {"score": score}) == pytest.approx(score / 2)
    assert one("event_time_ms", "when*1000", {"when": TS + score / 10}) == round((TS + score / 10) * 1000)
    assert one("event_time_ms", "when", {"when": NOW_MS + 0.0}) == NOW_MS, "as pandas writes a column with gaps"


def test_the_fields_that_may_be_blank_and_that_are_whole_are_those_of_the_types() -> None:
    types: dict[str, str] = {}
    for kind in KINDS:
        for name, shape in msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"].items():
            types[name] = str([each.get("type") for each in shape.get("anyOf", [shape])])
    assert {name for name, type_ in types.items() if "integer" in type_} == _WHOLE
    assert types.keys() >= _TEXTS


@pytest.mark.parametrize("value", ["inf", "nan", "-Infinity", "1e999", 10**400, "1e308"])
@pytest.mark.parametrize("rule", ["event_time_ms=ts*1000", "stars=float:ts", "stars=int:ts"])
def test_a_number_that_is_not_finite_makes_no_event(value: Any, rule: str) -> None:
    if value == "1e308" and "*" not in rule:
        rule = "stars=ts*1000"
    with pytest.raises(ValueError, match="ts is not a"):
        mapped("events.review", {"text": "a", "ts": value}, rules=(rule,))


# Templates, ids and blanks


def test_a_template_with_a_gap_sets_no_id_and_an_empty_place_in_a_text() -> None:
    for gap in ({}, {"order_id": None}, {"order_id": ""}):
        assert one("event_id", "tmall-{order_id}", gap) == "part-7"
        assert one("item_id", "{order_id}/{n}", gap) is None
        assert one("text", "{subject} {body}", {"body": "broke", "subject": gap.get("order_id")}) == " broke"
        assert one("text", "{order_id}{other}", gap) == "a", "nothing is there: the earlier rule stands"
    assert one("event_id", "{file}-{order.id}", {"order": {"id": 7.0}}) == "part-7"
    assert one("event_id", "x-{order.id}-{order-no}", {"order": {"id": 8.0}, "order-no": "b"}) == "x-8-b"


@given(st.integers(-(2**53), 2**53))
def test_an_id_is_the_same_as_integer_and_as_the_float_that_pandas_makes_of_it(number: int) -> None:
    texts = {one("user_id", source, {"u": value}) for source in ("str:u", "{u}") for value in (number, float(number))}
    assert texts == {str(number)}
    assert one("user_id", "str:u", {"u": 0.5}) == "0.5"


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_blank_means_absent(blank: str | None) -> None:
    ids = dict.fromkeys(("user_id", "item_id", "impression_id", "event_id", "clicked", "purchased", "ts"), blank)
    assert mapped("events.click", {"title": "a", "query": "", **ids})[1] == {
        "event_id": "part-7",
        "event_time_ms": NOW_MS,
        "title": "a",
        "query": "",
    }
    ids = dict.fromkeys(("user_id", "stars", "brand", "category", "event_time_ms"), blank)
    assert mapped("events.review", {"text": "a", **ids})[1].keys() == {"event_id", "event_time_ms", "text"}


@pytest.mark.parametrize(("value", "known"), [(1.0, True), (0.0, False), ("no", False), (True, True), ("Y", True)])
def test_an_outcome_is_true_or_false(value: Any, known: bool) -> None:
    assert mapped("events.click", {"title": "a", "clicked": value})[1]["clicked"] is known


# Nested sources and targets


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("review.text", {"review": {"text": "found"}}),
        ("review.text", {"review.text": "found", "review": {"text": "not this"}}),
        ("review-text", {"review-text": "found"}),
        ("str:a.b-c.d", {"a": {"b-c": {"d": "found"}}}),
        ("{评论.正文}", {"评论": {"正文": "found"}}),
    ],
)
def test_a_source_may_be_nested_and_hyphened(source: str, row: dict[str, Any]) -> None:
    assert one("text", source, row) == "found"
    assert one("text", source, dict.fromkeys(row)) == "a"


def test_a_field_of_the_context_is_a_target_and_the_rows_own_context_stays() -> None:
    row = {"title": "a", "price": 9.5, "context": {"os": "x"}, "kind": "app"}
    rules = ("context.price=price", "context.device=kind", "context.brand=absent", "context.size=blank")
    _, event = mapped("events.click", {**row, "blank": ""}, rules=rules, constants=("context.shop=1",))
    assert event["context"] == {"os": "x", "price": 9.5, "device": "app", "shop": 1}
    assert row["context"] == {"os": "x"}
    assert mapped("events.click", {"title": "a", "price": 1}, rules=rules)[1]["context"] == {"price": 1}
    with pytest.raises(ValueError, match="context is not an object"):
        mapped("events.click", {**row, "context": "x"}, rules=rules)


@given(st.recursive(st.none() | st.text(max_size=3), lambda inner: st.dictionaries(st.text("a.-", max_size=4), inner)))
def test_any_path_finds_a_value_or_the_default(row: Any) -> None:
    for path in ("a", "a.a", "a-a.a", "a.a.a"):
        found = find(row if isinstance(row, dict) else {"a": row}, path, math.inf)
        assert found is None or found == math.inf or isinstance(found, str | dict)


# What is told


def test_it_knows_which_sources_no_row_had_and_which_fields_nothing_read() -> None:
    rules = ("text=body", "event_id={shop}-{order.id}-{n}", "title=headline")
    mapping = EventMapping("events.review", preset="reviews", rules=rules)
    mapping.event({"body": "a", "ts": TS, "sentiment": 1, "order": {}}, file="f", n=1, now_ms=NOW_MS)
    mapping.event({"body": "a", "ts": TS, "shop": None, "score": 3, "sentiment": 1}, file="f", n=2, now_ms=NOW_MS)
    assert mapping.unmet == [(rules[1], "order.id"), (rules[2], "headline")]
    assert mapping.unused == ["sentiment", "score"]
    whole = EventMapping("events.service", preset="none")
    whole.event({"event_id": "e", "event_time_ms": NOW_MS, "text": "a", "x": 1}, file="f", n=1, now_ms=NOW_MS)
    assert (whole.unmet, whole.unused) == ([], ["x"])


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
        {"rules": ("text={order id}",)},
        {"rules": ("text={}",)},
        {"rules": ("text={a",)},
        {"rules": ("text={{a}}",)},
        {"rules": ("text=a..b",)},
        {"rules": ("event_time_ms=time:at@nowhere",)},
        {"rules": ("event_time_ms=time:at@../zone",)},
        {"rules": ("context.price=a",)},
        {"rules": ("text.part=a",)},
        {"constants": ("user_id.x=a",)},
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


def test_a_constant_and_what_a_word_stands_for_are_sources_too() -> None:
    rules = ("action=map:type(view=impression, buy=purchase, *=-)", "purchased=map:type(buy=true, *=null)")
    rules += ("title=value:Kettle", "context.price=value:2.5")
    _, event = mapped("events.click", {"type": "buy"}, rules=rules)
    assert (event["action"], event["purchased"], event["title"]) == ("purchase", True, "Kettle")
    assert event["context"] == {"price": 2.5}
    _, event = mapped("events.click", {"type": "view"}, rules=rules)
    assert (event["action"], "purchased" in event) == ("impression", False)
    mapping = EventMapping("events.click", preset="clicks", rules=rules, start_time_ms=NOW_MS)
    assert mapping.event({"type": "scroll"}, file="part", n=7, now_ms=NOW_MS) is None
    with pytest.raises(ValueError, match="type is none of view, buy"):
        one("brand", "map:type(view=a, buy=b)", {"type": "scroll"})
