"""Scores that go out, as JSON. Every one can be traced to its event, its source position and its model."""

from __future__ import annotations

from typing import Literal

import msgspec

from schemas.evidence import Evidence

StateSource = Literal["known", "cold", "unavailable", "none"]
"""Where the user state behind a score came from: Redis knew the user, Redis did not, Redis did not answer,
or the event has no user."""


class SourcePosition(msgspec.Struct, frozen=True):
    """Where an event stood in Kafka."""

    topic: str
    partition: int
    offset: int

    def output_id(self, kind: str) -> str:
        """Id of an output of this event: the same after a replay, so that consumers can drop repeats."""
        return f"{self.topic}/{self.partition}/{self.offset}#{kind}"


class Score(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every output carries."""

    output_id: str
    event_id: str
    source: SourcePosition
    model_version: str
    event_time_ms: int
    process_time_ms: int
    v: int = 1
    user_id: str | None = None
    experiment_id: str | None = None


class RankedCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate with its probabilities; lists are ordered by ``p_click``, best first."""

    item_id: str
    p_click: float
    p_purchase: float


class CtrScore(Score, frozen=True, kw_only=True, omit_defaults=True):
    """Click and purchase probability of an item shown to a user.

    ``p_purchase`` is over impressions: pCTCVR = pCTR * pCVR. ``state_time_ms`` is the latest event time that
    the user state behind the score had seen; None where there was no state.
    """

    p_click: float | None = None
    p_purchase: float | None = None
    item_id: str | None = None
    action: str = "impression"
    state: StateSource = "none"
    state_time_ms: int | None = None
    candidates: list[RankedCandidate] = []


Sentiment = Literal["negative", "neutral", "positive"]


class SentimentScore(Score, frozen=True, kw_only=True, omit_defaults=True):
    """Sentiment and subject of a review. ``polarity`` is p(positive) - p(negative), in [-1, 1]."""

    sentiment: Sentiment
    p_negative: float
    p_neutral: float
    p_positive: float
    polarity: float
    category: str
    category_confidence: float
    item_id: str | None = None
    stars: float | None = None


class IntentAlternative(msgspec.Struct, frozen=True, kw_only=True):
    """Another intent the message may have had."""

    intent: str
    confidence: float


class IntentScore(Score, frozen=True, kw_only=True, omit_defaults=True):
    """Intent of a service message, the queue it goes to, and a reply an agent may start from.

    ``intent`` is ``oos`` where no known intent is likely enough; such messages go to people.
    """

    intent: str
    confidence: float
    queue: str
    out_of_scope: bool = False
    reply: str | None = None
    alternatives: list[IntentAlternative] = []
    conversation_id: str | None = None
    channel: str | None = None


Level = Literal["item", "category", "brand", "topic", "aspect"]
"""More levels may come; a reader should pass over one it does not know."""


class Opinion(Score, frozen=True, kw_only=True, omit_defaults=True):
    """One review counted at one level. Keyed by ``subject``, which is ``level:name``.

    ``text_hash`` tells exact copies of one text from many voices without carrying the text, ``text_print`` (a 64-bit
    simhash in hexadecimal; empty for short texts) near-copies too; ``author`` is the user's keyed pseudonym.
    ``source_topic_id`` is Kafka's id of ``source.topic``: made again under its name it has another, and new offsets.
    ``related`` are the other subjects at which the same review counts. ``excerpt`` is the beginning of the text, masked
    (`worker.privacy.masking`); empty where the configuration keeps texts out (``worker.excerpt_chars: 0``).
    """

    subject: str
    level: Level
    p_negative: float
    p_neutral: float
    p_positive: float
    item_id: str | None = None
    category: str | None = None
    stars: float | None = None
    text_hash: str = ""
    text_print: str = ""
    author: str = ""
    source_topic_id: str = ""
    related: list[str] = []
    excerpt: str = ""


AlertStatus = Literal["opened", "worsening", "improving", "resolved"]
AlertMetric = Literal["negative_volume", "negative_share", "slow_burn", "dropout"]


class Alert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A surge of negative opinion on a subject: opened once, updated, resolved.

    ``alert_id`` derives from rule, subject and the window it opened in, so a replay does not alarm twice. Messages of
    equal ``(alert_id, status, severity, window_end_ms)`` are one, told again.
    Times are event time except ``process_time_ms``. ``score`` is the detector's statistic: standard deviations; for
    ``slow_burn`` the height of its CUSUM, for ``dropout`` the opinions missed.
    ``negative`` and ``total`` are what was counted in the window, as the model said it; ``negative_share`` and
    ``expected_share`` are shares with the model's errors undone. ``expected_negative`` is the mass that was to be
    expected in the window, ``set_apart`` the opinions that did not count: copies of a text, many of one author.
    ``sinks`` names those that `millrace notify` sends it to; empty means all whose own filter lets it pass.
    ``evidence`` is a help for people: it depends on what the role still held, and may be less after a restart.
    """

    alert_id: str
    rule: str
    subject: str
    level: Level
    status: AlertStatus
    severity: Literal["warning", "critical"]
    opened_at_ms: int
    window_start_ms: int
    window_end_ms: int
    process_time_ms: int
    negative: float
    total: int
    negative_share: float
    expected_share: float
    score: float
    model_version: str
    v: int = 1
    metric: AlertMetric = "negative_share"
    expected_negative: float | None = None
    set_apart: int = 0
    sinks: list[str] = []
    evidence: Evidence | None = None


Output = CtrScore | SentimentScore | IntentScore | Opinion | Alert
