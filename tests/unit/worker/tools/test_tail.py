"""What a person sees of a record: all that matters, no message text, no user id."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.dead import DeadLetter
from schemas.events import Candidate, ClickEvent, ServiceEvent
from schemas.folds import FoldBlock, encode_block
from schemas.scores import CtrScore, IntentScore, SourcePosition
from schemas.states import FENCE_RECORD_KEY, Fence, State, encode_fence, encode_state
from worker.config import Config, KafkaConfig
from worker.errors import InputError
from worker.logs import pseudonym
from worker.scoring.decode import Decoder, lanes_of
from worker.tools.tail import Line, _line, _place, decode, follow, summary

SOURCE = SourcePosition("events.click", 1, 2)
COMMON: dict[str, Any] = {
    "output_id": "o",
    "event_id": "e",
    "source": SOURCE,
    "model_version": "m",
    "event_time_ms": 1,
    "process_time_ms": 2,
    "user_id": "alice",
}


def line(topic: str, value: bytes | None, key: bytes | None = None, *, show_ids: bool = False) -> dict[str, Any]:
    return decode(topic, key, value, None, show_ids=show_ids)


def test_a_score_shows_its_answer_and_hides_the_user() -> None:
    score = IntentScore(**COMMON, intent="track_order", confidence=0.912345, queue="logistics")
    fields = line("scores.intent", msgspec.json.encode(score))
    text = summary(Line(topic="scores.intent", partition=0, offset=0, time_ms=0, fields=fields))
    assert "intent=track_order" in text
    assert "confidence=0.9123" in text
    assert f"user_id={pseudonym('alice')}" in text
    assert "alice" not in text
    assert line("scores.intent", msgspec.json.encode(score), show_ids=True)["user_id"] == "alice"


def test_words_of_customers_are_shown_as_their_length_only() -> None:
    message = ServiceEvent(event_id="e", event_time_ms=1, text="secret words")
    fields = line("events.service", msgspec.json.encode(message), show_ids=True)
    assert fields["text_chars"] == 12
    click = ClickEvent(
        event_id="e", event_time_ms=1, query="secret", candidates=[Candidate(item_id="i", title="secret")]
    )
    for shown in (fields, line("events.click", msgspec.json.encode(click))):
        assert "secret" not in repr(shown)


def test_folds_features_and_fences_are_decoded() -> None:
    block = FoldBlock(
        kind="user",
        space="s",
        shard=3,
        topic_ids=["t"],
        keys=["alice", "alice"],
        topic_index=np.zeros(2, np.int32),
        partition=np.zeros(2, np.int32),
        offset=np.array([4, 9], np.int64),
        time_ms=np.zeros(2, np.int64),
        weights=np.zeros((2, 2), np.float32),
        counts=np.array([[1, 1, 0], [1, 0, 0]], np.float32),
        vectors=np.zeros((2, 64), np.float16),
    )
    fields = line("folds.user", encode_block(block))
    assert (fields["shard"], fields["folds"], fields["keys"], fields["source_offsets"]) == (3, 2, 1, "4..9")
    assert "alice" not in repr(fields)
    state = State(
        kind="user",
        key="alice",
        incarnation=1,
        fold_offset=5,
        time_ms=6,
        sums=np.zeros((2, 1, 64), np.float32),
        weights=np.zeros((2, 1), np.float32),
        counts=np.array([[3, 2, 1]], np.float32),
    )
    fields = line("features.user", encode_state(state), b"alice")
    assert (fields["key"], fields["shown"], fields["clicked"]) == (pseudonym("alice"), 3, 2)
    fence = encode_fence(Fence(incarnation=1, fold_offset=8, marks={}))
    assert line("features.user", fence, FENCE_RECORD_KEY)["fold_offset"] == 8
    assert line("features.user", None, b"alice") == {"tombstone": True}


def test_a_dead_letter_shows_why_and_whence_but_not_its_bytes() -> None:
    letter = DeadLetter(stage="decode", reason="not_json", detail="at byte 0", source=SOURCE, key=None, value=b"secret")
    headers: list[tuple[str, Any]] = list(letter.headers())
    fields = decode("events.dead", letter.record_key(), letter.value, headers, show_ids=False)
    assert (fields["reason"], fields["topic"], fields["offset"], fields["bytes"]) == (
        "not_json",
        "events.click",
        "2",
        6,
    )
    assert "secret" not in repr(fields)


@pytest.mark.parametrize("topic", ["scores.ctr", "folds.user", "features.item", "alerts.opinion"])
def test_what_is_not_as_the_contract_says_is_a_value_error(topic: str) -> None:
    for value in (b"", b"{", b"\xff\xff\xff", b'{"v": 1}'):
        with pytest.raises(ValueError, match=r"\w"):
            line(topic, value)


def test_control_characters_do_not_reach_the_terminal() -> None:
    score = CtrScore(**{**COMMON, "event_id": "a\x1b[2Jb"}, p_click=0.5)
    fields = line("scores.ctr", msgspec.json.encode(score))
    assert "\x1b" not in summary(Line(topic="scores.ctr", partition=0, offset=0, time_ms=0, fields=fields))


def test_a_topic_outside_the_contract_is_refused() -> None:
    with pytest.raises(InputError, match=r"scores\.ctr"):
        next(follow(Config(kafka=KafkaConfig(bootstrap="127.0.0.1:1")), ("scores",)))


def test_the_erased_are_pseudonyms_too() -> None:
    value = b'{"user_id": "anna", "cutoff_ms": 7}'
    assert decode("erasures", b"anna", value, None, show_ids=False) == {
        "user_id": pseudonym("anna"),
        "cutoff_ms": 7,
        "v": 1,
    }
    assert decode("erasures", b"anna", None, None, show_ids=False) == {"tombstone": True}


class Message:
    """Of a client's message what the tail asks for."""

    def __init__(self, topic: str, value: Any) -> None:
        self._topic, self._value = topic, json.dumps(value).encode()

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_700_000_000_000

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return self._value

    def headers(self) -> None:
        return None

    def error(self) -> None:
        return None


def test_events_are_read_as_the_worker_reads_them() -> None:
    rules = {"event_id": "id", "event_time_ms": "@timestamp", "text": "body", "user_id": "who", "@when": "bool:live"}
    kafka = KafkaConfig(further_topics={"cms.reviews": "events.review"}, fields={"cms.reviews": rules})
    assert dict(_place(kafka, name) for name in ("cms.reviews", "events.click")) == {
        "cms.reviews": "events.review",
        "events.click": "events.click",
    }
    events = Decoder(lanes_of(kafka), fields=kafka.fields)

    def shown(value: dict[str, Any]) -> Line:
        return _line("events.review", events, Message("cms.reviews", value), False)

    row = {"id": "r", "body": "secret", "who": "anna", "live": True}
    line = shown(row)
    assert (line.fields["event_id"], line.fields["text_chars"], line.fields["user_id"]) == ("r", 6, pseudonym("anna"))
    assert shown(row | {"live": False}).fields == {"passed_over": True}
    assert shown(row | {"body": 5}).error == (
        "cannot be read as the contract says: wrong_type, Expected `str`, got `int` - at `$.text`"
    )
