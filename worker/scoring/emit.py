"""Results to messages: scores, opinions, dead letters, and what each event adds to user and item state. Pure.

Folds leave in blocks, gathered until the next commit: one record per event would cost the client library more than
everything else costs us.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, cast

import msgspec
import numpy as np

from schemas.events import ClickEvent, Event, ReviewEvent, ServiceEvent
from schemas.folds import F16, MAX_BLOCK_BYTES, MAX_BLOCK_FOLDS, ROW_BYTES, VECTOR_SIZE, FoldBlock, encode_block
from schemas.redis_keys import Kind
from schemas.scores import CtrScore, IntentAlternative, IntentScore, Level, Opinion, SentimentScore, SourcePosition
from schemas.shards import shard_of
from schemas.topics import (
    FOLDS,
    OPINIONS,
    SCORES_CTR,
    SCORES_INTENT,
    SCORES_SENTIMENT,
)
from worker.config import WorkerConfig
from worker.kafka.dead import dead_letter, dead_message
from worker.kafka.records import OutMessage, Record
from worker.privacy.fingerprint import author_of, fingerprints
from worker.privacy.masking import excerpt
from worker.scoring.aspects import Aspects, load_aspects
from worker.scoring.batcher import Unit
from worker.scoring.results import ClickResult, Failure, Result, ReviewResult, ServiceResult
from worker.scoring.routing import Routing

CATEGORY_CONFIDENCE_MIN: Final = 0.8
"""A review that names no category counts for the model's when the model is this sure."""
Weights = tuple[float, float, float, float, float]
"""What a fold adds: weights (shown, liked), counts (shown, clicked, purchased)."""


class Fold(msgspec.Struct, gc=False):
    """What one event adds to one user or item."""

    kind: Kind
    key: str
    source: SourcePosition
    time_ms: int
    weights: Weights
    vector: F16 | None


class Outcome(msgspec.Struct, gc=False):
    """All that becomes of one record. ``reason`` is set for dead letters."""

    messages: list[OutMessage]
    folds: list[Fold]
    reason: str | None = None


_IMPRESSION: Final[dict[tuple[bool, bool], Weights]] = {
    # (clicked, purchased) as known at once; unknown is not yet, and never "no"
    (False, False): (1, 0, 1, 0, 0),
    (True, False): (1, 1, 1, 1, 0),
    (True, True): (1, 1, 1, 1, 1),
    (False, True): (1, 0, 1, 0, 1),
}
_ANSWER: Final[Weights] = (0, 1, 0, 1, 0)
_ANSWER_PURCHASE: Final[Weights] = (0, 1, 0, 0, 1)
_OWN: Final[Weights] = (1, 1, 1, 1, 0)
_OWN_PURCHASE: Final[Weights] = (1, 1, 1, 1, 1)
# A verdict is a surprise either way: it was as likely as not.
_GOOD_REVIEW: Final[Weights] = (0.5, 1, 0, 0, 0)
_BAD_REVIEW: Final[Weights] = (0.5, 0, 0, 0, 0)


class Emitter:
    """Builds the outcome of every record."""

    def __init__(
        self, model_version: str, routing: Routing, config: WorkerConfig, topic_ids: Mapping[str, str] | None = None
    ) -> None:
        """``topic_ids``: Kafka's ids of the source topics. Raises `ConfigError` when the lexicon of aspects cannot be
        read."""
        self._version = model_version
        self._routing = routing
        self._good_stars = config.good_review_stars
        self._bad_stars = config.bad_review_stars
        self._excerpt_chars = config.excerpt_chars
        self._aspects = load_aspects(config.aspects)
        self._topic_ids = topic_ids or {}
        self._json = msgspec.json.Encoder().encode

    def emit(self, units: Sequence[Unit], results: Sequence[Result], now_ms: int) -> list[Outcome]:
        """Outcomes of scored events, in their order; ``now_ms`` is their process time. An event whose output cannot be
        made becomes a dead letter, and costs its neighbours nothing."""
        pairs = list(zip(units, results, strict=True))
        try:
            return self._outcomes(pairs, now_ms)
        except Exception as error:  # noqa: BLE001 whatever it is, its letter tells
            if len(pairs) == 1:
                return [_dead(units[0].record, f"making the output raised {type(error).__name__}")]
        return [outcome for unit, result in pairs for outcome in self.emit([unit], [result], now_ms)]

    def _outcomes(self, pairs: list[tuple[Unit, Result]], now_ms: int) -> list[Outcome]:
        reviews = [cast("ReviewEvent", unit.event).text for unit, result in pairs if type(result) is ReviewResult]
        prints = iter(fingerprints(reviews))
        outcomes: list[Outcome] = []
        for unit, result in pairs:
            record = unit.record
            source = SourcePosition(record.topic, record.partition, record.offset)
            if type(result) is ClickResult:
                outcome = self._click(cast("ClickEvent", unit.event), result, source, now_ms)
            elif type(result) is ReviewResult:
                outcome = self._review(cast("ReviewEvent", unit.event), result, source, now_ms, next(prints))
            elif type(result) is ServiceResult:
                outcome = self._service(cast("ServiceEvent", unit.event), result, source, now_ms)
            else:
                outcome = _dead(record, cast("Failure", result).detail)
            outcomes.append(outcome)
        return outcomes

    def _click(self, event: ClickEvent, result: ClickResult, source: SourcePosition, now_ms: int) -> Outcome:
        score = CtrScore(
            output_id=source.output_id("ctr"),
            **self._common(event, source, now_ms),
            p_click=result.p_click,
            p_purchase=result.p_purchase,
            item_id=event.item_id,
            action=event.action,
            state=result.state,
            state_time_ms=result.state_time_ms,
            candidates=result.candidates,
        )
        message = OutMessage(SCORES_CTR, (event.user_id or event.event_id).encode(), self._json(score))
        weights, time_ms = click_weights(event)
        return Outcome([message], _folds(event, source, time_ms, expecting(weights, result.p_click), result.vector))

    def _review(
        self, event: ReviewEvent, result: ReviewResult, source: SourcePosition, now_ms: int, text_print: str
    ) -> Outcome:
        negative, neutral, positive = result.sentiment
        common = self._common(event, source, now_ms)
        score = SentimentScore(
            output_id=source.output_id("sentiment"),
            **common,
            sentiment=result.label,
            p_negative=negative,
            p_neutral=neutral,
            p_positive=positive,
            polarity=round(positive - negative, 6),
            category=result.category,
            category_confidence=result.category_confidence,
            item_id=event.item_id,
            stars=event.stars,
        )
        key = (event.user_id or event.event_id).encode()
        messages = [OutMessage(SCORES_SENTIMENT, key, self._json(score))]
        category = event.category
        if category is None and result.category_confidence >= CATEGORY_CONFIDENCE_MIN:
            category = result.category
        subjects = _subjects(event, category, self._aspects)
        if subjects:
            names = [f"{level}:{name}" for level, name in subjects]
            shown = excerpt(event.text, self._excerpt_chars)
            text_hash = blake2b(event.text.strip().lower().encode(), digest_size=8).hexdigest()
            author = author_of(event.user_id)
            for (level, _), subject in zip(subjects, names, strict=True):
                opinion = Opinion(
                    output_id=source.output_id(f"opinion:{subject}"),
                    **common,
                    subject=subject,
                    level=level,
                    p_negative=negative,
                    p_neutral=neutral,
                    p_positive=positive,
                    item_id=event.item_id,
                    category=category,
                    stars=event.stars,
                    text_hash=text_hash,
                    text_print=text_print,
                    author=author,
                    source_topic_id=self._topic_ids.get(source.topic, ""),
                    related=[name for name in names if name != subject],
                    excerpt=shown,
                )
                messages.append(OutMessage(OPINIONS, subject.encode(), self._json(opinion)))
        weights = self._review_weights(event.stars, negative, positive)
        return Outcome(messages, _folds(event, source, event.event_time_ms, weights, result.vector) if weights else [])

    def _service(self, event: ServiceEvent, result: ServiceResult, source: SourcePosition, now_ms: int) -> Outcome:
        intent, confidence = result.intents[0]
        others = result.intents[1:]
        if result.out_of_scope:
            intent, others = "oos", [pair for pair in result.intents if pair[0] != "oos"]
            queue, reply = self._routing.human, None
        else:
            queue, reply = self._routing.route(intent, event.text)
        score = IntentScore(
            output_id=source.output_id("intent"),
            **self._common(event, source, now_ms),
            intent=intent,
            confidence=confidence,
            queue=queue,
            out_of_scope=result.out_of_scope,
            reply=reply,
            alternatives=[IntentAlternative(intent=name, confidence=p) for name, p in others[:3]],
            conversation_id=event.conversation_id,
            channel=event.channel,
        )
        return Outcome([OutMessage(SCORES_INTENT, (event.user_id or event.event_id).encode(), self._json(score))], [])

    def _common(self, event: Event, source: SourcePosition, now_ms: int) -> dict[str, Any]:
        """What every output of an event carries, but for its own id."""
        return {
            "event_id": event.event_id,
            "source": source,
            "model_version": self._version,
            "event_time_ms": event.event_time_ms,
            "process_time_ms": now_ms,
            "user_id": event.user_id,
            "experiment_id": event.experiment_id,
        }

    def _review_weights(self, stars: float | None, negative: float, positive: float) -> Weights | None:
        if stars is not None:
            good, bad = stars >= self._good_stars, stars <= self._bad_stars
        else:
            good, bad = positive >= 0.5, negative >= 0.5
        return _GOOD_REVIEW if good else _BAD_REVIEW if bad else None


def click_weights(event: ClickEvent) -> tuple[Weights, int]:
    """What a click event adds to state, and when: an answer counts at the time of the impression it answers."""
    if event.action == "impression":
        return _IMPRESSION[event.clicked is True, event.purchased is True], event.event_time_ms
    if event.impression_id is not None:
        when = event.event_time_ms if event.impression_time_ms is None else event.impression_time_ms
        return (_ANSWER_PURCHASE if event.action == "purchase" else _ANSWER), when
    return (_OWN_PURCHASE if event.action == "purchase" else _OWN), event.event_time_ms


def expecting(weights: Weights, p_click: float | None) -> Weights:
    """The part in shown weighs as much as a click was expected: see `model.clicks.features`. Where there was nothing to
    predict (neither item nor title) nothing was expected."""
    return (weights[0] * (p_click or 0.0), *weights[1:])


def _dead(record: Record, detail: str) -> Outcome:
    letter = dead_letter(record, "model", "model_error", detail)
    return Outcome([dead_message(letter)], [], letter.reason)


def _folds(
    event: ClickEvent | ReviewEvent, source: SourcePosition, time_ms: int, weights: Weights, vector: F16 | None
) -> list[Fold]:
    folds = []
    if event.user_id is not None:
        folds.append(Fold("user", event.user_id, source, time_ms, weights, vector))
    if event.item_id is not None:
        folds.append(Fold("item", event.item_id, source, time_ms, weights, vector))
    return folds


def _subjects(event: ReviewEvent, category: str | None, aspects: Aspects) -> list[tuple[Level, str]]:
    """Where a review counts: its item, category, brand and topics, and what its text is about, each once."""
    subjects: list[tuple[Level, str]] = []
    if event.item_id:
        subjects.append(("item", event.item_id))
    if category:
        subjects.append(("category", category))
    if event.brand:
        subjects.append(("brand", event.brand))
    subjects += [("topic", topic) for topic in dict.fromkeys(event.topics) if topic]
    subjects += [("aspect", aspect) for aspect in aspects.match(event.text)]
    return subjects


class FoldBuffer:
    """Folds in release order, until they leave as blocks, one per kind and shard (or more: blocks are bounded)."""

    def __init__(self, space: str, shards: int, topic_ids: Mapping[str, str]) -> None:
        self._space = space
        self._shards = shards
        self._topic_ids = list(topic_ids.values())
        self._topic_index = {topic: i for i, topic in enumerate(topic_ids)}
        self._waiting: list[Fold] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, folds: Iterable[Fold]) -> None:
        """Put folds behind the others; those of one source partition must come in source order."""
        self._waiting.extend(folds)

    def clear(self) -> None:
        """Forget what waits: its events are read again."""
        self._waiting.clear()

    def blocks(self) -> list[OutMessage]:
        """All that waits, as records for partition = shard."""
        by_shard: dict[tuple[Kind, int], list[Fold]] = {}
        for fold in self._waiting:
            by_shard.setdefault((fold.kind, shard_of(fold.key, self._shards)), []).append(fold)
        self._waiting = []
        return [
            OutMessage(FOLDS[kind], None, self._block(kind, shard, part), None, shard)
            for (kind, shard), folds in by_shard.items()
            for part in _parts(folds)
        ]

    def _block(self, kind: Kind, shard: int, folds: list[Fold]) -> bytes:
        weights = np.array([fold.weights for fold in folds], np.float32)
        return encode_block(
            FoldBlock(
                kind=kind,
                space=self._space,
                shard=shard,
                topic_ids=self._topic_ids,
                keys=[fold.key for fold in folds],
                topic_index=np.array([self._topic_index[fold.source.topic] for fold in folds], np.int32),
                partition=np.array([fold.source.partition for fold in folds], np.int32),
                offset=np.array([fold.source.offset for fold in folds], np.int64),
                time_ms=np.array([fold.time_ms for fold in folds], np.int64),
                weights=weights[:, :2],
                counts=weights[:, 2:],
                vectors=np.array([_NO_VECTOR if fold.vector is None else fold.vector for fold in folds], np.float16),
            )
        )


def _parts(folds: list[Fold]) -> Iterator[list[Fold]]:
    """Folds in runs that one block holds."""
    start, room = 0, MAX_BLOCK_BYTES
    for i, fold in enumerate(folds):
        more = ROW_BYTES + 4 * len(fold.key)  # bytes of a key at most, without encoding it
        if i - start == MAX_BLOCK_FOLDS or more > room:
            yield folds[start:i]
            start, room = i, MAX_BLOCK_BYTES
        room -= more
    yield folds[start:]


_NO_VECTOR: Final = np.zeros(VECTOR_SIZE, np.float16)
