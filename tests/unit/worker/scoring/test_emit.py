"""What becomes of each event: scores, opinions, folds by rule, dead letters that fit their topic."""

from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.dead import HEADER_KEY, HEADER_NULL, HEADER_OF_SOURCE, HEADER_TRUNCATED
from schemas.events import Candidate, ClickEvent, Event, ReviewEvent, ServiceEvent
from schemas.folds import MAX_BLOCK_FOLDS, decode_block
from schemas.scores import CtrScore, IntentScore, Opinion, RankedCandidate, SentimentScore, SourcePosition
from schemas.shards import shard_of
from schemas.topics import EVENTS_DEAD, HEADROOM_BYTES, MAX_EVENT_BYTES, TOPICS
from worker.config import WorkerConfig
from worker.kafka.dead import dead_letter, dead_message
from worker.kafka.ledger import Ticket
from worker.kafka.records import OutMessage, Record
from worker.scoring.batcher import Unit
from worker.scoring.decode import Lane
from worker.scoring.emit import Emitter, Fold, FoldBuffer, Outcome, click_weights
from worker.scoring.results import ClickResult, Failure, Result, ReviewResult, ServiceResult
from worker.scoring.routing import load_routing

NOW_MS = 1_700_000_000_000
VECTOR = np.full(64, 0.125, np.float16)
emitter = Emitter("model-1", load_routing(), WorkerConfig(), {"events.review": "id-r"})


def emit(lane: Lane, event: Event, result: Result, value: bytes = b"raw") -> Outcome:
    record = Record(f"events.{lane}", 2, 77, 0, b"key", value)
    ticket: Ticket[None] = Ticket((record.topic, 2), 1, 77, lane, 0.0)
    return emitter.emit([Unit(lane, event, record, ticket, [], 1, 0.0)], [result], NOW_MS)[0]


def click(**fields: Any) -> ClickEvent:
    return ClickEvent(event_id="e1", event_time_ms=1000, **fields)


def clicked(**fields: Any) -> ClickResult:
    return ClickResult(
        **{"p_click": 0.25, "p_purchase": 0.05, "state": "cold", "state_time_ms": None}
        | {"candidates": [], "vector": VECTOR}
        | fields
    )


FOLD_RULES = [
    # event, weights (shown, liked), counts (shown, clicked, purchased), time
    (click(), (1, 0), (1, 0, 0), 1000),
    (click(clicked=False), (1, 0), (1, 0, 0), 1000),
    (click(clicked=True), (1, 1), (1, 1, 0), 1000),
    (click(clicked=True, purchased=True), (1, 1), (1, 1, 1), 1000),
    (click(purchased=True), (1, 0), (1, 0, 1), 1000),
    (click(action="click", impression_id="i", impression_time_ms=900), (0, 1), (0, 1, 0), 900),
    (click(action="click", impression_id="i"), (0, 1), (0, 1, 0), 1000),
    (click(action="favourite", impression_id="i", impression_time_ms=0), (0, 1), (0, 1, 0), 0),
    (click(action="purchase", impression_id="i", impression_time_ms=900), (0, 1), (0, 0, 1), 900),
    (click(action="click"), (1, 1), (1, 1, 0), 1000),
    (click(action="click", impression_time_ms=900), (1, 1), (1, 1, 0), 1000),
    (click(action="cart"), (1, 1), (1, 1, 0), 1000),
    (click(action="favourite"), (1, 1), (1, 1, 0), 1000),
    (click(action="share"), (1, 1), (1, 1, 0), 1000),
    (click(action="search", query="q"), (1, 1), (1, 1, 0), 1000),
    (click(action="purchase"), (1, 1), (1, 1, 1), 1000),
]


@pytest.mark.parametrize(("event", "weights", "counts", "time_ms"), FOLD_RULES)
def test_fold_rules(event: ClickEvent, weights: tuple[int, ...], counts: tuple[int, ...], time_ms: int) -> None:
    assert click_weights(event) == ((*weights, *counts), time_ms)


@pytest.mark.parametrize(
    ("stars", "negative", "positive", "expected"),
    [
        (5.0, 0.9, 0.1, (0.5, 1, 0, 0, 0)),
        (4.0, 0.9, 0.1, (0.5, 1, 0, 0, 0)),
        (3.0, 0.9, 0.9, None),
        (2.0, 0.1, 0.9, (0.5, 0, 0, 0, 0)),
        (0.0, 0.1, 0.9, (0.5, 0, 0, 0, 0)),
        (None, 0.1, 0.5, (0.5, 1, 0, 0, 0)),
        (None, 0.5, 0.3, (0.5, 0, 0, 0, 0)),
        (None, 0.4, 0.4, None),
    ],
)
def test_review_folds(stars: float | None, negative: float, positive: float, expected: tuple[int, ...] | None) -> None:
    event = ReviewEvent(event_id="e", event_time_ms=5, text="t", user_id="u", item_id="i", stars=stars)
    result = ReviewResult("neutral", [negative, 1 - negative - positive, positive], "books", 0.3, VECTOR)
    folds = emit("review", event, result).folds
    assert [(fold.kind, fold.key, fold.weights) for fold in folds] == (
        [] if expected is None else [("user", "u", expected), ("item", "i", expected)]
    )


@pytest.mark.parametrize(("p_click", "shown"), [(0.25, 0.25), (None, 0.0)])
def test_an_impression_weighs_what_was_expected_of_it(p_click: float | None, shown: float) -> None:
    folds = emit("click", click(user_id="u", clicked=True), clicked(p_click=p_click)).folds
    assert [fold.weights for fold in folds] == [(shown, 1, 1, 1, 0)]


def test_only_who_is_named_is_folded() -> None:
    assert [f.kind for f in emit("click", click(user_id="u"), clicked()).folds] == ["user"]
    assert [f.kind for f in emit("click", click(item_id="i"), clicked()).folds] == ["item"]
    assert emit("click", click(), clicked()).folds == []


def test_service_messages_fold_nothing() -> None:
    event = ServiceEvent(event_id="e", event_time_ms=5, text="hi", user_id="u")
    assert emit("service", event, ServiceResult([("get_refund", 0.9)], False)).folds == []


def test_click_score_carries_where_it_comes_from() -> None:
    event = click(user_id="u", item_id="i", experiment_id="x", candidates=[Candidate(item_id="c")])
    ranked = [RankedCandidate(item_id="c", p_click=0.3, p_purchase=0.1)]
    outcome = emit("click", event, clicked(state="known", state_time_ms=7, candidates=ranked))
    (message,) = outcome.messages
    assert (message.topic, message.key) == ("scores.ctr", b"u")
    score = msgspec.json.decode(message.value, type=CtrScore)
    assert score.output_id == "events.click/2/77#ctr"
    assert score.source == SourcePosition("events.click", 2, 77)
    assert (score.event_id, score.event_time_ms, score.process_time_ms) == ("e1", 1000, NOW_MS)
    assert (score.model_version, score.experiment_id) == ("model-1", "x")
    assert (score.p_click, score.p_purchase, score.state, score.state_time_ms) == (0.25, 0.05, "known", 7)
    assert score.candidates == ranked


def test_an_event_without_user_is_keyed_by_its_id() -> None:
    assert emit("click", click(), clicked()).messages[0].key == b"e1"


def test_review_gives_a_score_and_one_opinion_per_level() -> None:
    event = ReviewEvent(
        event_id="e", event_time_ms=5, text=" Good ", item_id="i", brand="b", category="c", topics=["t", "s", "t", ""]
    )
    outcome = emit("review", event, ReviewResult("positive", [0.1, 0.2, 0.7], "books", 0.99, VECTOR))
    score = msgspec.json.decode(outcome.messages[0].value, type=SentimentScore)
    assert (score.sentiment, score.polarity, score.category) == ("positive", 0.6, "books")
    opinions = [msgspec.json.decode(m.value, type=Opinion) for m in outcome.messages[1:]]
    assert [o.subject for o in opinions] == ["item:i", "category:c", "brand:b", "topic:t", "topic:s"]
    assert [m.key for m in outcome.messages[1:]] == [o.subject.encode() for o in opinions]
    assert len({o.output_id for o in opinions}) == 5
    assert {o.level for o in opinions} == {"item", "category", "brand", "topic"}
    assert all(len(o.text_hash) == 16 and o.p_positive == 0.7 for o in opinions)
    assert {o.excerpt for o in opinions} == {"Good"}
    assert {o.source_topic_id for o in opinions} == {"id-r"}
    assert opinions[2].related == ["item:i", "category:c", "topic:t", "topic:s"]


def test_a_review_counts_for_every_aspect_it_names() -> None:
    event = ReviewEvent(event_id="e", event_time_ms=5, text="物流太慢，包装也破了", item_id="i")
    outcome = emit("review", event, ReviewResult("negative", [0.9, 0.05, 0.05], "books", 0.1, VECTOR))
    opinions = [msgspec.json.decode(m.value, type=Opinion) for m in outcome.messages[1:]]
    assert [(o.level, o.subject) for o in opinions] == [
        ("item", "item:i"),
        ("aspect", "aspect:delivery"),
        ("aspect", "aspect:packaging"),
    ]
    assert opinions[0].related == ["aspect:delivery", "aspect:packaging"]


def test_an_excerpt_is_masked_and_short_and_can_be_left_out() -> None:
    text = "打13812345678没人接，" + "慢" * 500
    event = ReviewEvent(event_id="e", event_time_ms=5, text=text, item_id="i")
    result = ReviewResult("negative", [0.9, 0.05, 0.05], "books", 0.1, VECTOR)
    shown = msgspec.json.decode(emit("review", event, result).messages[1].value, type=Opinion).excerpt
    assert shown.startswith("打[phone]没人接")
    assert len(shown) == WorkerConfig().excerpt_chars
    private = Emitter("m", load_routing(), WorkerConfig(excerpt_chars=0, aspects="none"))
    record = Record("events.review", 2, 77, 0, b"key", b"raw")
    ticket: Ticket[None] = Ticket((record.topic, 2), 1, 77, "review", 0.0)
    messages = private.emit([Unit("review", event, record, ticket, [], 1, 0.0)], [result], NOW_MS)[0].messages
    assert len(messages) == 2
    assert not any("慢".encode() in message.value or b"\\u6162" in message.value for message in messages)


@pytest.mark.parametrize(("confidence", "subjects"), [(0.8, ["category:books"]), (0.79, [])])
def test_the_models_category_counts_only_when_it_is_sure(confidence: float, subjects: list[str]) -> None:
    event = ReviewEvent(event_id="e", event_time_ms=5, text="good")
    outcome = emit("review", event, ReviewResult("positive", [0.1, 0.2, 0.7], "books", confidence, VECTOR))
    assert [msgspec.json.decode(m.value, type=Opinion).subject for m in outcome.messages[1:]] == subjects


def test_intent_is_routed_with_a_reply_in_the_messages_language() -> None:
    result = ServiceResult([("get_refund", 0.9), ("track_refund", 0.05), ("complaint", 0.02), ("review", 0.01)], False)
    for text, start in (("I want my money back", "I will"), ("我要退款", "您好")):
        event = ServiceEvent(event_id="e", event_time_ms=5, text=text, conversation_id="c", channel="app")
        score = msgspec.json.decode(emit("service", event, result).messages[0].value, type=IntentScore)
        assert (score.intent, score.queue, score.out_of_scope) == ("get_refund", "refunds", False)
        assert score.reply is not None
        assert score.reply.startswith(start)
        assert [a.intent for a in score.alternatives] == ["track_refund", "complaint", "review"]
        assert (score.conversation_id, score.channel) == ("c", "app")


def test_what_no_head_knows_goes_to_people() -> None:
    event = ServiceEvent(event_id="e", event_time_ms=5, text="colourless green ideas")
    outcome = emit("service", event, ServiceResult([("oos", 0.5), ("get_refund", 0.2)], True))
    score = msgspec.json.decode(outcome.messages[0].value, type=IntentScore)
    assert (score.intent, score.queue, score.out_of_scope, score.reply) == ("oos", "human", True, None)
    assert [a.intent for a in score.alternatives] == ["get_refund"]


def test_an_unlisted_intent_goes_to_the_default_queue() -> None:
    assert load_routing().route("banking_7", "hello") == ("service", None)


def test_a_failure_is_a_dead_letter_with_the_original_bytes() -> None:
    outcome = emit("click", click(), Failure("a score is not a number"), value=b'{"original": 1}')
    (message,) = outcome.messages
    assert (outcome.reason, message.topic, message.value) == ("model_error", EVENTS_DEAD, b'{"original": 1}')
    assert dict(message.headers or [])["millrace-stage"] == b"model"


def letter(value: bytes | None, key: bytes | None = b"k") -> OutMessage:
    return dead_message(dead_letter(Record("events.click", 1, 2, 0, key, value), "decode", "not_json", "detail"))


def size(message: OutMessage) -> int:
    return len(message.value) + len(message.key or b"") + sum(len(k) + len(v or b"") for k, v in message.headers or [])


def test_a_tombstones_letter_has_an_empty_value_and_says_so() -> None:
    message = letter(None)
    assert message.value == b""
    assert dict(message.headers or [])[HEADER_NULL] == b"1"


def test_the_largest_event_fits_whole() -> None:
    message = letter(b"x" * MAX_EVENT_BYTES)
    assert len(message.value) == MAX_EVENT_BYTES


@pytest.mark.parametrize("key_bytes", [1, 2000, MAX_EVENT_BYTES])
def test_what_does_not_fit_is_cut_and_says_so(key_bytes: int) -> None:
    message = letter(b"x" * (MAX_EVENT_BYTES + HEADROOM_BYTES), b"k" * key_bytes)
    headers = dict(message.headers or [])
    assert (message.value, headers[HEADER_TRUNCATED]) == (b"", b"1")
    assert (HEADER_KEY in headers) == (key_bytes < 1024)
    assert size(message) < TOPICS[EVENTS_DEAD].max_message_bytes


@pytest.mark.parametrize("count", [1, 3_000, 40_000])
def test_a_records_own_headers_go_along_while_they_fit(count: int) -> None:
    headers = [("h", b"v"), ("none", None)] + [(f"h{n}", b"") for n in range(count)]
    record = Record("events.click", 1, 2, 0, b"k", b"x" * MAX_EVENT_BYTES, headers)  # type: ignore[arg-type]
    message = dead_message(dead_letter(record, "decode", "not_json", "detail"))
    kept = [(name, value) for name, value in message.headers or () if name.startswith(HEADER_OF_SOURCE)]
    if count == 1:
        assert kept == [(HEADER_OF_SOURCE + name, value) for name, value in headers]
        assert len(message.value) == MAX_EVENT_BYTES
    else:
        assert (kept, message.value) == ([], b"")
        assert (HEADER_TRUNCATED, b"1") in (message.headers or ())


def fold(key: str, offset: int, kind: Any = "user", vector: Any = VECTOR) -> Fold:
    return Fold(kind, key, SourcePosition("shop.clicks", 3, offset), 1000 + offset, (1, 0, 1, 0, 0), vector)


def test_folds_leave_in_blocks_by_kind_and_shard_in_order() -> None:
    buffer = FoldBuffer("space", 4, {"events.review": "id-r", "shop.clicks": "id-c"})
    keys = [f"u{n % 7}" for n in range(50)]
    buffer.add(fold(key, n) for n, key in enumerate(keys))
    buffer.add([fold("i", 50, "item", None)])
    blocks = [(message, decode_block(message.value)) for message in buffer.blocks()]
    assert len(buffer) == 0
    assert buffer.blocks() == []
    found = []
    for message, block in blocks:
        assert message.topic == f"folds.{block.kind}"
        assert (message.partition, message.key, block.space) == (block.shard, None, "space")
        assert all(shard_of(key, 4) == block.shard for key in block.keys)
        assert (np.diff(block.offset) > 0).all()
        assert {block.topic_ids[i] for i in block.topic_index} == {"id-c"}
        assert (block.partition == 3).all()
        assert (block.time_ms == 1000 + block.offset).all()
        found += list(zip(block.keys, block.offset.tolist(), strict=True))
    assert sorted(found, key=lambda pair: pair[1]) == [(key, n) for n, key in enumerate(keys)] + [("i", 50)]
    item = next(block for _, block in blocks if block.kind == "item")
    assert (item.vectors == 0).all()
    user = next(block for _, block in blocks if block.kind == "user")
    assert (user.vectors == VECTOR).all()
    assert (user.weights == [1, 0]).all()
    assert (user.counts == [1, 0, 0]).all()


def test_blocks_are_bounded() -> None:
    buffer = FoldBuffer("space", 4, {"shop.clicks": "id"})
    buffer.add(fold("u", n) for n in range(MAX_BLOCK_FOLDS + 5))
    assert [len(decode_block(m.value)) for m in buffer.blocks()] == [MAX_BLOCK_FOLDS, 5]


def test_an_event_whose_output_cannot_be_made_costs_its_neighbours_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(event: ClickEvent) -> Any:
        if event.user_id == "culprit":
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        return click_weights(event)

    monkeypatch.setattr("worker.scoring.emit.click_weights", broken)
    units = []
    for n, user in enumerate(["a", "culprit", "b"]):
        record = Record("events.click", 2, n, 0, b"key", b"raw")
        ticket: Ticket[None] = Ticket(("events.click", 2), 1, n, "click", 0.0)
        units.append(Unit("click", click(user_id=user), record, ticket, [], 1, 0.0))
    outcomes = emitter.emit(units, [clicked()] * 3, NOW_MS)
    assert [outcome.reason for outcome in outcomes] == [None, "model_error", None]
    (letter,) = outcomes[1].messages
    assert (letter.topic, letter.value) == (EVENTS_DEAD, b"raw")
    assert b"making the output raised UnicodeEncodeError" in dict(letter.headers or [])["millrace-detail"]
    assert [fold.key for outcome in outcomes for fold in outcome.folds] == ["a", "b"]
