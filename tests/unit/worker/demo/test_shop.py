"""The simulated shop: replayable, as the contract wants its events, with tastes and complaints that one can see."""

from collections import Counter, defaultdict
from itertools import islice

import msgspec
import pytest

from schemas.events import FUTURE_LIMIT_MS, ClickEvent, ReviewEvent, ServiceEvent
from schemas.scores import Opinion, SourcePosition
from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE
from worker.alerts.rules import shipped
from worker.alerts.surge import SurgeDetector
from worker.demo.catalogue import Catalogue
from worker.demo.demo import RATE, plan
from worker.demo.shop import CLICK_RATE, Shop, Surge

START_MS = 1_767_225_600_000
SPACING_MS = 250.0
COUNT = 20_000
TYPES = {EVENTS_CLICK: ClickEvent, EVENTS_REVIEW: ReviewEvent, EVENTS_SERVICE: ServiceEvent}
SURGE = Surge(begins_ms=START_MS + 1_500_000, ends_ms=START_MS + 3_000_000)


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue.load()


@pytest.fixture(scope="module")
def shop(catalogue):
    return Shop(7, catalogue, SURGE)


@pytest.fixture(scope="module")
def events(shop):
    return list(islice(shop.events(START_MS, SPACING_MS), COUNT))


def test_a_seed_gives_the_same_events_byte_for_byte(catalogue, events):
    again = list(islice(Shop(7, catalogue, SURGE).events(START_MS, SPACING_MS), 2000))
    assert msgspec.json.encode(again) == msgspec.json.encode(events[:2000])


def test_another_seed_gives_others(catalogue, events):
    other = list(islice(Shop(8, catalogue, SURGE).events(START_MS, SPACING_MS), 100))
    assert msgspec.json.encode(other) != msgspec.json.encode(events[:100])


def test_every_event_is_of_its_topic_and_valid(events):
    for sent in events:
        data = msgspec.json.encode(sent.event)
        assert msgspec.json.decode(data, type=TYPES[sent.topic]) == sent.event
        assert sent.key == sent.event.user_id.encode()


def test_ids_are_unique(events):
    assert len({sent.event.event_id for sent in events}) == COUNT


def test_events_are_evenly_spaced_in_time(events):
    times = [sent.event.event_time_ms for sent in events]
    assert times == [START_MS + round(i * SPACING_MS) for i in range(COUNT)]


def test_the_mix_has_all_three_streams_and_all_actions(events):
    shares = {topic: n / COUNT for topic, n in Counter(sent.topic for sent in events).items()}
    assert 0.55 < shares[EVENTS_CLICK] < 0.75
    assert 0.15 < shares[EVENTS_REVIEW] < 0.3
    assert 0.1 < shares[EVENTS_SERVICE] < 0.2
    actions = {sent.event.action for sent in events if sent.topic == EVENTS_CLICK}
    assert actions == {"impression", "click", "cart", "favourite", "share", "purchase", "search"}


def test_both_languages_are_spoken(events):
    texts = [sent.event.text for sent in events if sent.topic != EVENTS_CLICK]
    assert 0.25 < sum(text.isascii() for text in texts) / len(texts) < 0.5


def test_texts_are_filled_in_bounded_and_mostly_different(events):
    texts = [sent.event.text for sent in events if sent.topic == EVENTS_REVIEW]
    assert all(0 < len(text) <= 500 and "{" not in text for text in texts)
    assert len(set(texts)) > 0.9 * len(texts)
    assert not any("{" in sent.event.text for sent in events if sent.topic == EVENTS_SERVICE)


def test_titles_repeat_with_the_best_sellers_first(events, catalogue):
    shown = Counter(sent.event.item_id for sent in events if sent.meant == "impression")
    assert set(shown) == {item.item_id for item in catalogue.items}
    best, last = catalogue.items[0].item_id, catalogue.items[-1].item_id
    assert shown[best] > 4 * shown[last]


def test_answers_name_an_earlier_impression_and_its_time(events):
    seen = {}
    answered = 0
    for sent in events:
        if sent.meant == "impression":
            seen[sent.event.event_id] = sent.event
        elif sent.topic == EVENTS_CLICK and sent.meant != "search":
            impression = seen[sent.event.impression_id]
            assert sent.event.impression_time_ms == impression.event_time_ms < sent.event.event_time_ms
            assert (sent.event.user_id, sent.event.item_id) == (impression.user_id, impression.item_id)
            answered += 1
    assert answered > 1000


def test_users_click_what_is_to_their_taste(events, shop, catalogue):
    clicked = {sent.event.impression_id for sent in events if sent.meant == "click"}
    users = {user.user_id: user for user in shop.users}
    category = {item.item_id: item.category for item in catalogue.items}
    rates = defaultdict(list)
    # The last impressions still wait for their answers.
    for sent in events[:-1000]:
        if sent.meant == "impression":
            liked = category[sent.event.item_id] in users[sent.event.user_id].favourites
            rates[liked].append(sent.event.event_id in clicked)
    liked, other = (sum(rates[key]) / len(rates[key]) for key in (True, False))
    assert liked > 4 * other
    overall = sum(map(sum, rates.values())) / sum(map(len, rates.values()))
    assert overall == pytest.approx(CLICK_RATE, abs=0.03)


def negative_share(events, item_id, begin_ms, end_ms):
    moods = [
        sent.meant
        for sent in events
        if sent.topic == EVENTS_REVIEW
        and sent.event.item_id == item_id
        and begin_ms <= sent.event.event_time_ms < end_ms
    ]
    return moods.count("negative") / len(moods), len(moods)


def test_one_product_draws_complaints_and_then_no_more(events, catalogue):
    item = catalogue.surge.item_id
    before, few = negative_share(events, item, 0, SURGE.begins_ms)
    during, many = negative_share(events, item, SURGE.begins_ms, SURGE.ends_ms)
    after, _ = negative_share(events, item, SURGE.ends_ms, START_MS + COUNT * SPACING_MS)
    assert before < 0.2
    assert during > 0.8
    assert after < 0.2
    assert many > 2 * few


def test_a_surge_comes_again_where_told_so():
    surge = Surge(begins_ms=100, ends_ms=110, every_ms=50)
    assert [t for t in range(90, 220) if surge.active(t)] == [*range(100, 110), *range(150, 160), *range(200, 210)]


def test_every_intent_and_every_category_occurs(events, catalogue):
    assert {sent.meant for sent in events if sent.topic == EVENTS_SERVICE} == {*catalogue.intents, "oos"}
    assert {sent.event.category for sent in events if sent.topic == EVENTS_REVIEW} == {*catalogue.categories, None}


@pytest.mark.parametrize("count", [2000, 5000, None])
def test_the_surge_opens_an_alert_and_nothing_else_does(catalogue, count):
    """With a model that is right nine times in ten; for an endless demo, within its first two minutes."""
    times = plan(count, RATE, START_MS)
    detector = SurgeDetector(shipped())
    alerts = []
    wrong = {"positive": 0.05, "neutral": 0.2, "negative": 0.9}
    shop = Shop(7, catalogue, times.surge)
    for offset, sent in enumerate(islice(shop.events(times.start_ms, times.spacing_ms), count or int(120 * RATE))):
        if sent.topic != EVENTS_REVIEW:
            continue
        review = sent.event
        p_negative = wrong[sent.meant] if offset % 10 else 1 - wrong[sent.meant]
        for subject in (f"item:{review.item_id}", f"brand:{review.brand}", f"category:{review.category}"):
            opinion = Opinion(
                output_id=f"{offset}#{subject}",
                event_id=review.event_id,
                source=SourcePosition("events.review", 0, offset),
                model_version="test",
                event_time_ms=review.event_time_ms,
                process_time_ms=review.event_time_ms,
                subject=subject,
                level=subject.partition(":")[0],
                p_negative=p_negative,
                p_neutral=0.0,
                p_positive=1 - p_negative,
            )
            alerts += detector.add(opinion, review.event_time_ms)[1]
    item = f"item:{catalogue.surge.item_id}"
    opened = [alert for alert in alerts if alert.status == "opened"]
    assert item in {alert.subject for alert in opened}
    assert {alert.subject for alert in opened} <= {
        item,
        f"brand:{catalogue.surge.brand}",
        f"category:{catalogue.surge.category}",
        "category:None",
    }
    assert all(times.surge.active(alert.opened_at_ms) for alert in opened)
    assert item in {alert.subject for alert in alerts if alert.status == "resolved"}


@pytest.mark.parametrize(("count", "rate"), [(1, 60.0), (300, 60.0), (2000, 5.0), (100_000, 10.0), (None, 60.0)])
def test_no_event_lies_ahead_of_the_clock(count, rate):
    times = plan(count, rate, START_MS)
    last = (count or int(3600 * rate)) - 1
    for i in {0, last // 2, last}:
        sent_ms = START_MS + i / rate * 1000
        assert times.start_ms + i * times.spacing_ms <= sent_ms + FUTURE_LIMIT_MS / 100
