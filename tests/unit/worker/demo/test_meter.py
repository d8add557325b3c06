"""The demo's counting: every event once, repeats apart, latencies of the timed only, everything bounded."""

from itertools import islice

import msgspec
import pytest

import worker.demo.meter as module
from schemas.scores import Alert, CtrScore, IntentScore, Opinion, SentimentScore, SourcePosition
from schemas.topics import (
    ALERTS_OPINION,
    EVENTS_CLICK,
    EVENTS_DEAD,
    EVENTS_REVIEW,
    OPINIONS,
    SCORES_CTR,
    SCORES_INTENT,
    SCORES_SENTIMENT,
)
from worker.demo.catalogue import Catalogue
from worker.demo.meter import Meter
from worker.demo.shop import Shop

PLACE = SourcePosition("t", 0, 0)
BASE = {"output_id": "o", "source": PLACE, "model_version": "m", "event_time_ms": 0, "process_time_ms": 0}


@pytest.fixture
def events():
    return list(islice(Shop(1, Catalogue.load()).events(1_000_000, 1000.0), 200))


def score_of(sent):
    base = {**BASE, "event_id": sent.event.event_id}
    if sent.topic == EVENTS_CLICK:
        return SCORES_CTR, CtrScore(**base, p_click=0.5)
    if sent.topic == EVENTS_REVIEW:
        moods = dict.fromkeys(("p_negative", "p_neutral", "p_positive"), 0.0)
        return SCORES_SENTIMENT, SentimentScore(
            **base, **moods, sentiment=sent.meant, polarity=0.0, category="c", category_confidence=1.0
        )
    return SCORES_INTENT, IntentScore(**base, intent=sent.meant, confidence=1.0, queue="q")


def answer(meter, sent, at_s):
    topic, score = score_of(sent)
    meter.received(topic, b"k", msgspec.json.encode(score), at_s)


def opinion(subject, negative, time_ms):
    fields = {**BASE, "event_time_ms": time_ms}
    return msgspec.json.encode(
        Opinion(
            **fields,
            event_id="e",
            subject=subject,
            level="item",
            p_negative=negative,
            p_neutral=0.0,
            p_positive=1 - negative,
        )
    )


def test_every_event_is_counted_in_and_out_once(events):
    meter = Meter()
    for sent in events:
        meter.sent(sent, 0.0)
    assert meter.waiting == len(events)
    for sent in events:
        answer(meter, sent, 1.0)
        answer(meter, sent, 2.0)
    assert meter.waiting == 0
    assert meter.events_in.total() == meter.outputs.total() == meter.repeats == len(events)
    assert all(all(agreed) and agreed for topic, agreed in meter.agreement.items() if topic != SCORES_CTR)


def test_latency_is_of_timed_events_only(events):
    meter = Meter()
    meter.sent(events[0], 0.0, timed=False)
    answer(meter, events[0], 50.0)
    assert meter.latency_ms() == {"p50": 0.0, "p99": 0.0}
    for i, sent in enumerate(events[1:101]):
        meter.sent(sent, 100.0)
        answer(meter, sent, 100.0 + (i + 1) / 1000)
    assert meter.latency_ms()["p50"] == pytest.approx(50.5, abs=0.1)
    assert meter.latency_ms()["p99"] == pytest.approx(99.0, abs=0.1)
    assert meter.events_per_second() == pytest.approx(100 / 0.1, rel=0.01)


def test_broken_records_wait_for_their_dead_letters():
    meter = Meter()
    meter.sent_broken(EVENTS_REVIEW, 0.0)
    assert (meter.waiting, meter.events_in[EVENTS_REVIEW]) == (1, 1)
    meter.received(EVENTS_DEAD, b"k", b"junk", 1.0)
    assert (meter.waiting, meter.dead_letters) == (0, 1)


def test_the_auc_is_of_impressions_whose_outcome_is_known():
    events = list(islice(Shop(1, Catalogue.load()).events(1_000_000, 1000.0), 3000))
    clicked = {sent.event.impression_id for sent in events if sent.meant == "click"}
    right, wrong, silent = Meter(), Meter(), Meter()
    for sent in events:
        for meter in (right, wrong, silent):
            meter.sent(sent, 0.0)
    for sent in events:
        if sent.topic == EVENTS_CLICK:
            for meter, likely in ((right, 0.9), (wrong, 0.1)):
                p = likely if sent.event.event_id in clicked else 0.5
                score = CtrScore(**BASE, event_id=sent.event.event_id, p_click=p)
                meter.received(SCORES_CTR, b"k", msgspec.json.encode(score), 1.0)
    assert (right.click_auc(), wrong.click_auc(), silent.click_auc()) == (1.0, 0.0, None)


def test_what_waits_is_bounded_and_the_oldest_goes(monkeypatch, events):
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    meter = Meter()
    for sent in events[:11]:
        meter.sent(sent, 0.0)
    assert meter.waiting == 10
    answer(meter, events[0], 1.0)
    assert (meter.waiting, meter.repeats) == (10, 1)


def test_subjects_are_bounded_and_only_the_last_minutes_count(monkeypatch, events):
    monkeypatch.setattr(module, "SUBJECTS", 3)
    meter = Meter()
    meter.sent(msgspec.structs.replace(events[0]), 0.0)
    meter.event_time_ms = 10 * 60_000
    for n in range(5):
        for time_ms, negative in ((0, 0.0), (9 * 60_000, 1.0)):
            for _ in range(6):
                meter.received(OPINIONS, b"k", opinion(f"item:{n}", negative, time_ms), 1.0)
    assert meter.negative_shares() == [("item:2", 1.0, 6), ("item:3", 1.0, 6), ("item:4", 1.0, 6)]


def test_an_alert_counts_once_whatever_becomes_of_it():
    meter = Meter()
    for status in ("opened", "worsening", "resolved"):
        alert = Alert(
            alert_id="a",
            rule="r",
            subject="item:1",
            level="item",
            status=status,
            severity="warning",
            opened_at_ms=0,
            window_start_ms=0,
            window_end_ms=0,
            process_time_ms=0,
            negative=1.0,
            total=1,
            negative_share=1.0,
            expected_share=0.1,
            score=5.0,
            model_version="m",
        )
        meter.received(ALERTS_OPINION, b"k", msgspec.json.encode(alert), 1.0)
    assert meter.opened == {"a"}
    assert meter.alerts["a"].status == "resolved"


def test_rates_are_of_the_last_whole_seconds(events):
    meter = Meter()
    for i, sent in enumerate(events[:100]):
        meter.sent(sent, 100 + i / 10)
    topics = {sent.topic for sent in events[:100]}
    assert sum(meter.rate(topic, 110.0) for topic in topics) == pytest.approx(10.0)
    assert sum(meter.rate(topic, 130.0) for topic in topics) == 0.0
