"""Events, scores, dead letters and topics: what is written as JSON is read back, and the tables hold together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import dead, topics
from schemas.dead import DeadLetter
from schemas.events import Candidate, ClickEvent, ReviewEvent, ServiceEvent
from schemas.folds import FormatError
from schemas.redis_keys import fence_key, state_key
from schemas.scores import CtrScore, RankedCandidate, SentimentScore, SourcePosition
from schemas.topics import TOPICS

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
TIMES = st.integers(0, 2**53)
SHARE = st.floats(0, 1)
MAYBE_ID = st.none() | WORDS

CLICKS = st.builds(
    ClickEvent,
    event_id=WORDS,
    event_time_ms=TIMES,
    action=st.sampled_from(["impression", "click", "cart", "favourite", "share", "purchase", "search"]),
    user_id=MAYBE_ID,
    item_id=MAYBE_ID,
    title=WORDS,
    impression_id=MAYBE_ID,
    clicked=st.none() | st.booleans(),
    candidates=st.lists(st.builds(Candidate, item_id=WORDS, title=WORDS), max_size=3),
    context=st.dictionaries(WORDS, st.floats(allow_nan=False, allow_infinity=False) | WORDS, max_size=3),
)
REVIEWS = st.builds(
    ReviewEvent,
    event_id=WORDS,
    event_time_ms=TIMES,
    text=WORDS,
    stars=st.none() | st.floats(0, 5),
    topics=st.just(["a"]),
)
MESSAGES = st.builds(ServiceEvent, event_id=WORDS, event_time_ms=TIMES, text=WORDS, channel=MAYBE_ID)
POSITIONS = st.builds(SourcePosition, topic=WORDS, partition=st.integers(0, 99), offset=st.integers(0, 2**62))
COMMON: dict[str, Any] = {
    "output_id": WORDS,
    "event_id": WORDS,
    "source": POSITIONS,
    "model_version": WORDS,
    "event_time_ms": TIMES,
    "process_time_ms": TIMES,
    "user_id": MAYBE_ID,
}
CTR = st.builds(
    CtrScore,
    **COMMON,
    p_click=st.none() | SHARE,
    state=st.sampled_from(["known", "cold", "unavailable", "none"]),
    candidates=st.lists(st.builds(RankedCandidate, item_id=WORDS, p_click=SHARE, p_purchase=SHARE), max_size=3),
)
SENTIMENT = st.builds(
    SentimentScore,
    **COMMON,
    sentiment=st.sampled_from(["negative", "neutral", "positive"]),
    p_negative=SHARE,
    p_neutral=SHARE,
    p_positive=SHARE,
    polarity=st.floats(-1, 1),
    category=WORDS,
    category_confidence=SHARE,
)


@given(CLICKS | REVIEWS | MESSAGES | CTR | SENTIMENT)
def test_json_round_trips(value: msgspec.Struct) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


def test_unknown_outcome_is_not_no() -> None:
    event = msgspec.json.decode(b'{"event_id": "c", "event_time_ms": 1}', type=ClickEvent)
    assert event.clicked is None
    assert event.action == "impression"


def test_an_output_id_names_its_source_and_kind() -> None:
    position = SourcePosition("events.click", 3, 14)
    assert position.output_id("ctr") == "events.click/3/14#ctr"


BYTES = st.none() | st.binary(max_size=20)
HEADERS = st.lists(st.tuples(st.text(max_size=8) | st.sampled_from([dead.HEADER_NULL, dead.HEADER_TOPIC]), BYTES))


# A topic's name on a real cluster is letters, digits, dots, underscores and dashes.
PLACES = st.builds(
    SourcePosition,
    topic=st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True),
    partition=st.integers(0, 99),
    offset=st.integers(0, 2**62),
)
SINKS = st.just("") | st.text("ab#/-_", min_size=1, max_size=8)


@given(PLACES, BYTES, BYTES, HEADERS, st.booleans(), SINKS)
def test_a_dead_letter_is_read_back_whole(
    source: SourcePosition, key: bytes | None, value: bytes | None, headers: dead.Headers, truncated: bool, sink: str
) -> None:
    letter = DeadLetter(
        stage="model",
        reason="model_error",
        detail="d",
        source=source,
        key=key,
        value=value,
        source_headers=headers,
        sink=sink,
    )
    written = [*letter.headers(), *([(dead.HEADER_TRUNCATED, b"1")] if truncated else [])]
    assert dead.read_letter(value or b"", written) == msgspec.structs.replace(letter, truncated=truncated)
    assert dead.parse_letter_id(letter.letter_id) == (source, sink)


@pytest.mark.parametrize("headers", [[], [("millrace-stage", b"decode")], [("a", None)]])
def test_a_record_that_is_no_letter_is_said_to_be_none(headers: dead.Headers) -> None:
    with pytest.raises(FormatError, match="dead letter"):
        dead.read_letter(b"", headers)


@pytest.mark.parametrize("text", ["", "a", "a/1", "a/b/1", "/1/1", "a/1/", "a/-1/1", "a/1/1/x", "a/1/1#", "#b"])
def test_what_is_no_letter_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="topic/partition/offset"):
        dead.parse_letter_id(text)


@given(POSITIONS, st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=20), st.text(max_size=2000))
def test_a_dead_letter_tells_why_and_whence(
    source: SourcePosition, key: bytes | None, value: bytes | None, detail: str
) -> None:
    letter = DeadLetter(stage="decode", reason="not_json", detail=detail, source=source, key=key, value=value)
    headers = dict(letter.headers())
    assert headers[dead.HEADER_REASON] == b"not_json"
    assert headers[dead.HEADER_DETAIL].decode() == detail[: dead.MAX_DETAIL_CHARS]
    assert int(headers[dead.HEADER_OFFSET]) == source.offset
    assert headers.get(dead.HEADER_KEY) == key
    assert (dead.HEADER_NULL in headers) == (value is None)
    assert letter.record_key() == f"{source.topic}/{source.partition}/{source.offset}".encode()


def test_the_state_of_a_shard_and_its_fence_share_a_slot_and_spaces_share_nothing() -> None:
    assert state_key("s1", "user", 17, "alice") == "s1:user:{u17}:alice"
    assert fence_key("s1", "user", 17) == "s1:fence:{u17}"
    assert fence_key("s1", "item", 17) == "s1:fence:{i17}"
    assert fence_key("s2", "user", 17) != fence_key("s1", "user", 17)


def test_the_table_of_topics_holds_together() -> None:
    assert all(name == topic.name for name, topic in TOPICS.items())
    sharded = [TOPICS[name] for name in (*topics.FOLDS.values(), *topics.FEATURES.values())]
    assert {topic.partitions for topic in sharded} == {topics.FOLD_SHARDS}
    assert {name for name, topic in TOPICS.items() if topic.compacted} == {
        "features.user",
        "features.item",
        "events.dead",
        "erasures",
        "alerts.control",
        "trends.opinion",
    }
    largest_input = max(TOPICS[name].max_message_bytes for name in topics.INPUTS)
    assert TOPICS["events.dead"].max_message_bytes >= largest_input + topics.HEADROOM_BYTES


@pytest.mark.parametrize(("copies", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "2")])
def test_a_topic_can_lose_one_copy_and_still_be_written(copies: int, in_sync: str) -> None:
    for topic in TOPICS.values():
        config = topic.config(copies)
        assert config["min.insync.replicas"] == in_sync
        assert ("retention.ms" in config) == (topic.retention_ms is not None)
    assert TOPICS["features.user"].config(copies)["cleanup.policy"] == "compact"
    assert TOPICS["alerts.control"].config(copies)["cleanup.policy"] == "compact,delete"
