"""What the demo counts: events in, outputs out, the time between them, and the latest of everything for the view.

Pure: times are arguments. Bounds: `MAX_WAITING` events without a score are remembered, `MAX_LATENCIES` latencies,
`MAX_IMPRESSIONS` impressions, `SAMPLES` samples a stream, `SUBJECTS` subjects with `SUBJECT_OPINIONS` opinions each;
the oldest make room.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Final

import msgspec
import numpy as np

from model.metrics import auc
from schemas.events import ClickEvent
from schemas.scores import Alert, CtrScore, IntentScore, Opinion, SentimentScore
from schemas.states import FENCE_RECORD_KEY, State, decode_state
from schemas.topics import (
    ALERTS_OPINION,
    EVENTS_DEAD,
    FEATURES_USER,
    OPINIONS,
    SCORES_CTR,
    SCORES_INTENT,
    SCORES_SENTIMENT,
)
from worker.demo.shop import ShopEvent

MAX_WAITING: Final = 200_000
MAX_LATENCIES: Final = 1_000_000
MAX_IMPRESSIONS: Final = 5_000
CLICK_DELAY_MS: Final = 60_000
"""After so much shop time an impression that was not clicked will not be."""
RECENT: Final = 2_000
SAMPLES: Final = 12
SUBJECTS: Final = 1_000
SUBJECT_OPINIONS: Final = 300
SUBJECT_MINUTES: Final = 5
RATE_WINDOW_S: Final = 10

AnyScore = CtrScore | SentimentScore | IntentScore
_SCORES: Final[dict[str, msgspec.json.Decoder[AnyScore]]] = {
    SCORES_CTR: msgspec.json.Decoder(CtrScore),
    SCORES_SENTIMENT: msgspec.json.Decoder(SentimentScore),
    SCORES_INTENT: msgspec.json.Decoder(IntentScore),
}
_opinion = msgspec.json.Decoder(Opinion).decode
_alert = msgspec.json.Decoder(Alert).decode


class Sample(msgspec.Struct, frozen=True):
    """A score beside the event that it is of."""

    sent: ShopEvent
    score: AnyScore
    latency_s: float


class _Shown(msgspec.Struct):
    """An impression: what the model said, and what came of it."""

    time_ms: int
    p_click: float | None = None
    clicked: bool = False


class _Sent(msgspec.Struct, frozen=True):
    event: ShopEvent
    at_s: float
    timed: bool


class Meter:
    """Counts by contract topic. ``agreement`` compares what the model found with what the shop meant."""

    def __init__(self) -> None:
        self.events_in: Counter[str] = Counter()
        self.outputs: Counter[str] = Counter()
        self.repeats = 0
        self.broken_sent = 0
        self.alerts: OrderedDict[str, Alert] = OrderedDict()
        self.opened: set[str] = set()
        self.samples: dict[str, deque[Sample]] = {topic: deque(maxlen=SAMPLES) for topic in _SCORES}
        self.subjects: OrderedDict[str, deque[tuple[int, float]]] = OrderedDict()
        self.agreement: dict[str, deque[bool]] = {topic: deque(maxlen=RECENT) for topic in _SCORES}
        self.state: State | None = None
        self.event_time_ms = 0
        self._waiting: OrderedDict[str, _Sent] = OrderedDict()
        self._shown: OrderedDict[str, _Shown] = OrderedDict()
        self._latencies: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._recent: dict[str, deque[float]] = {topic: deque(maxlen=RECENT) for topic in _SCORES}
        self._seconds: dict[str, deque[tuple[int, int]]] = {}
        self._timed = 0
        self._first_s: float | None = None
        self._scored_s: float | None = None

    @property
    def waiting(self) -> int:
        """Events without a score, and broken ones without a dead letter."""
        return len(self._waiting) + max(0, self.broken_sent - self.dead_letters)

    @property
    def dead_letters(self) -> int:
        """Dead letters read."""
        return self.outputs[EVENTS_DEAD]

    def sent(self, event: ShopEvent, at_s: float, *, timed: bool = True) -> None:
        """An event was produced. Untimed ones (sent while the roles start) have no latency."""
        self._count(self.events_in, event.topic, at_s)
        self.event_time_ms = max(self.event_time_ms, event.event.event_time_ms)
        self._waiting[event.event.event_id] = _Sent(event, at_s, timed)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)
        if timed and self._first_s is None:
            self._first_s = at_s
        if isinstance(event.event, ClickEvent):
            self._follow(event.event)

    def sent_broken(self, topic: str, at_s: float) -> None:
        """A record that cannot be scored was produced."""
        self._count(self.events_in, topic, at_s)
        self.broken_sent += 1

    def received(self, topic: str, key: bytes | None, value: bytes | None, at_s: float) -> None:
        """A record of an output topic (the contract's name) became readable."""
        if topic in _SCORES:
            self._score(topic, _SCORES[topic].decode(value or b""), at_s)
            return
        self._count(self.outputs, topic, at_s)
        if topic == OPINIONS:
            self._opinion(_opinion(value or b""))
        elif topic == ALERTS_OPINION:
            alert = _alert(value or b"")
            self.opened.add(alert.alert_id)
            self.alerts[alert.alert_id] = alert
            self.alerts.move_to_end(alert.alert_id)
        elif topic == FEATURES_USER and value is not None and key != FENCE_RECORD_KEY:
            state = decode_state(value)
            # Who has only reviewed has no counts, and says little on the screen.
            self.state = state if state.counts.any() or self.state is None else self.state

    def latency_ms(self, topic: str | None = None) -> dict[str, float]:
        """Median and 99th percentile, milliseconds: of all timed events, or of the latest of one scores topic."""
        values = self._latencies if topic is None else self._recent[topic]
        if not values:
            return {"p50": 0.0, "p99": 0.0}
        p50, p99 = np.percentile(np.fromiter(values, float, len(values)), (50, 99)) * 1000
        return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}

    def events_per_second(self) -> float:
        """Timed events that were scored, by the time from the first sent to the last readable."""
        if self._first_s is None or self._scored_s is None or self._scored_s <= self._first_s:
            return 0.0
        return round(self._timed / (self._scored_s - self._first_s), 1)

    def rate(self, topic: str, now_s: float) -> float:
        """Records a second of a topic over the last `RATE_WINDOW_S` whole seconds."""
        now = int(now_s)
        counts = self._seconds.get(topic, ())
        return sum(n for second, n in counts if now - RATE_WINDOW_S <= second < now) / RATE_WINDOW_S

    def click_auc(self) -> float | None:
        """Whether clicked impressions were thought likelier than others: area under the ROC curve, None before clicks.

        Of the latest impressions, those old enough for their outcome to be known. The model had not seen it.
        """
        known = [
            (shown.p_click, shown.clicked)
            for shown in self._shown.values()
            if shown.p_click is not None and shown.time_ms + CLICK_DELAY_MS < self.event_time_ms
        ]
        if not known:
            return None
        found = auc(*np.array(known).T)
        return None if np.isnan(found) else found

    def negative_shares(self, volume_min: int = 5) -> list[tuple[str, float, int]]:
        """(subject, share of negatives, opinions) of the last `SUBJECT_MINUTES` of event time, most negative first."""
        oldest_ms = self.event_time_ms - SUBJECT_MINUTES * 60_000
        found = []
        for name, opinions in self.subjects.items():
            recent = [negative for time_ms, negative in opinions if time_ms >= oldest_ms]
            if len(recent) >= volume_min:
                found.append((name, sum(recent) / len(recent), len(recent)))
        return sorted(found, key=lambda row: -row[1])

    def _score(self, topic: str, score: AnyScore, at_s: float) -> None:
        sent = self._waiting.pop(score.event_id, None)
        if sent is None:
            self.repeats += 1
            return
        self._count(self.outputs, topic, at_s)
        latency_s = at_s - sent.at_s
        if sent.timed:
            self._timed += 1
            self._scored_s = at_s
            self._latencies.append(latency_s)
            self._recent[topic].append(latency_s)
        self.samples[topic].append(Sample(sent.event, score, latency_s))
        if isinstance(score, CtrScore):
            if (shown := self._shown.get(score.event_id)) is not None:
                shown.p_click = score.p_click
        elif isinstance(score, SentimentScore):
            self.agreement[topic].append(score.sentiment == sent.event.meant)
        else:
            self.agreement[topic].append(score.intent == sent.event.meant)

    def _follow(self, click: ClickEvent) -> None:
        if click.action == "impression":
            self._shown[click.event_id] = _Shown(click.event_time_ms)
            if len(self._shown) > MAX_IMPRESSIONS:
                self._shown.popitem(last=False)
        elif click.action == "click" and (shown := self._shown.get(click.impression_id or "")) is not None:
            shown.clicked = True

    def _opinion(self, opinion: Opinion) -> None:
        seen = self.subjects.setdefault(opinion.subject, deque(maxlen=SUBJECT_OPINIONS))
        seen.append((opinion.event_time_ms, opinion.p_negative))
        self.subjects.move_to_end(opinion.subject)
        if len(self.subjects) > SUBJECTS:
            self.subjects.popitem(last=False)

    def _count(self, counter: Counter[str], topic: str, at_s: float) -> None:
        counter[topic] += 1
        seconds = self._seconds.setdefault(topic, deque(maxlen=RATE_WINDOW_S + 2))
        second = int(at_s)
        if seconds and seconds[-1][0] == second:
            seconds[-1] = (second, seconds[-1][1] + 1)
        else:
            seconds.append((second, 1))
