"""A simulated shop: users with tastes, a page of impressions and the clicks that answer it, reviews, messages.

Pure and replayable: the same seed, start and spacing give the same events, byte for byte. Nothing here knows of
clocks or Kafka; how fast the events are sent is the caller's choice.

Who clicks what: logit p = -3 + 2.2 [category is one of the user's two favourites] + appeal of the item
- 0.25 ln(position) - 0.5 |ln(price / what the user usually pays)|, appeal drawn once for every item from
N(0, 0.5). A click comes seconds to a minute after its impression and may lead on to cart, favourite, purchase.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator
from typing import Final, cast

import msgspec

from schemas.events import Action, Candidate, ClickEvent, Event, ReviewEvent, ServiceEvent
from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE
from worker.demo.catalogue import Catalogue, Item, Language, Mood

USERS: Final = 300
CHINESE_SHARE: Final = 0.6
PAGE_ITEMS: Final = (3, 4, 5, 6)
TASTE_LOGIT: Final = 2.2
BASE_LOGIT: Final = -3.0
CLICK_RATE: Final = 0.14
"""What comes of the above: share of impressions that are clicked, for ``model.click_base_rate``."""
OUTSIDE_SHARE: Final = 0.1
SURGE_REVIEW_SHARE: Final = 0.7
SURGE_NEGATIVE_SHARE: Final = 0.95
SURGE_SERVICE_SHARE: Final = 0.3

# A page brings about five events, so these give roughly 64 % clicks, 21 % reviews, 15 % messages.
_HAPPENINGS: Final = {"page": 1.0, "search": 0.2, "review": 1.75, "service": 1.25}
_NEXT: Final[tuple[tuple[Action, float, float], ...]] = (
    # (what follows a click, how often, within how many seconds)
    ("favourite", 0.12, 60.0),
    ("cart", 0.25, 120.0),
    ("share", 0.03, 90.0),
    ("purchase", 0.15, 400.0),
)


class Surge(msgspec.Struct, frozen=True, kw_only=True):
    """When the product draws complaints, in event time; again every ``every_ms`` where given."""

    begins_ms: int
    ends_ms: int
    every_ms: int | None = None

    def active(self, time_ms: int) -> bool:
        """Whether complaints come at this time."""
        since = time_ms - self.begins_ms
        if self.every_ms is not None and since >= 0:
            since %= self.every_ms
        return 0 <= since < self.ends_ms - self.begins_ms


class ShopEvent(msgspec.Struct, frozen=True):
    """One event and where it goes. ``meant`` is what the shop meant by it: a mood, an intent, or an action."""

    topic: str
    key: bytes
    event: Event
    meant: str


class User(msgspec.Struct, frozen=True):
    """A customer."""

    user_id: str
    language: Language
    favourites: tuple[str, str]
    budget: float
    device: str


class Shop:
    """The shop of one seed. `events` may be asked once; ids are unique within it."""

    def __init__(self, seed: int, catalogue: Catalogue, surge: Surge | None = None) -> None:
        self._rng = random.Random(seed)
        self._catalogue = catalogue
        self._surge = surge
        self._ids = itertools.count(1)
        self.users = [self._user(number) for number in range(USERS)]
        # Some customers come far more often than others.
        self._activity = [1 / (1 + number) ** 0.5 for number in range(USERS)]
        self._shares = [item.share for item in catalogue.items]
        self._appeal = {item.item_id: self._rng.gauss(0.0, 0.5) for item in catalogue.items}
        self._praise = {item.item_id: self._rng.uniform(0.74, 0.92) for item in catalogue.items}
        self._praise[catalogue.surge.item_id] = 0.88

    def events(self, start_ms: int, spacing_ms: float) -> Iterator[ShopEvent]:
        """Events without end: the i-th at ``start_ms + i * spacing_ms``, event time."""
        due: list[tuple[int, int, _Plan]] = []
        turns = itertools.count()
        for i in itertools.count():
            now_ms = start_ms + round(i * spacing_ms)
            if not due or due[0][0] > now_ms:
                for delay_ms, plan in self._happening():
                    heapq.heappush(due, (now_ms + delay_ms, next(turns), plan))
            plan = heapq.heappop(due)[2]
            event = self._carry_out(plan, now_ms)
            # What answers an impression names it and its time, so it is planned when the impression has happened.
            for delay_ms, later in self._answers(plan, event.event):
                heapq.heappush(due, (now_ms + delay_ms, next(turns), later))
            yield event

    def _happening(self) -> Iterator[tuple[int, _Plan]]:
        rng = self._rng
        what = rng.choices(list(_HAPPENINGS), list(_HAPPENINGS.values()))[0]
        user = rng.choices(self.users, self._activity)[0]
        if what not in ("page", "search"):
            yield 0, _Plan(what, user)
            return
        category = None
        if what == "search":
            category = rng.choice(user.favourites)
            yield 0, _Plan("search", user, query_category=category)
        for position, item in enumerate(self._page(user, category), 1):
            yield 200 * position, _Plan("impression", user, item, position)

    def _carry_out(self, plan: _Plan, now_ms: int) -> ShopEvent:
        if plan.what == "review":
            return self._review(plan.user, now_ms)
        if plan.what == "service":
            return self._message(plan.user, now_ms)
        if plan.what == "search":
            return self._search(plan, now_ms)
        return self._click(plan, now_ms)

    def _answers(self, plan: _Plan, event: Event) -> Iterator[tuple[int, _Plan]]:
        rng = self._rng
        if not isinstance(event, ClickEvent) or plan.item is None:
            return
        if plan.what == "impression" and rng.random() < self.click_probability(plan.user, plan.item, plan.position):
            answer = (event.event_id, event.event_time_ms)
            yield rng.randint(2_000, 60_000), _Plan("click", plan.user, plan.item, plan.position, answer)
        elif plan.what == "click":
            for action, share, seconds in _NEXT:
                if rng.random() < share:
                    delay_ms = rng.randint(3_000, int(seconds * 1000))
                    yield delay_ms, _Plan(action, plan.user, plan.item, plan.position, plan.answer)

    def click_probability(self, user: User, item: Item, position: int) -> float:
        """How likely the user clicks the item shown at a position, counted from 1."""
        logit = BASE_LOGIT + TASTE_LOGIT * (item.category in user.favourites) + self._appeal[item.item_id]
        logit -= 0.25 * math.log(position) + 0.5 * abs(math.log(item.price / _usual(item, user)))
        return 1 / (1 + math.exp(-logit))

    def _user(self, number: int) -> User:
        rng = self._rng
        first, second = rng.sample(self._catalogue.categories, 2)
        return User(
            user_id=f"u{number + 1:04d}",
            language="zh" if rng.random() < CHINESE_SHARE else "en",
            favourites=(first, second),
            budget=rng.lognormvariate(0.0, 0.4),
            device=rng.choice(("ios", "android", "android", "web")),
        )

    def _page(self, user: User, category: str | None) -> list[Item]:
        """Different items, some to the user's taste and some that sell well; all of one category after a search."""
        rng, size = self._rng, self._rng.choice(PAGE_ITEMS)
        if category is not None:
            return rng.sample(self._catalogue.by_category[category], min(size, 5))
        page: dict[str, Item] = {}
        while len(page) < size:
            item = self._item(rng.choice(user.favourites) if rng.random() < 0.35 else None)
            page[item.item_id] = item
        return list(page.values())

    def _item(self, category: str | None = None) -> Item:
        if category is not None:
            return self._rng.choice(self._catalogue.by_category[category])
        return self._rng.choices(self._catalogue.items, self._shares)[0]

    def _click(self, plan: _Plan, now_ms: int) -> ShopEvent:
        item, user = plan.item, plan.user
        assert item is not None  # noqa: S101 - every plan but reviews, messages and searches has one
        impression_id, impression_time_ms = plan.answer or (None, None)
        event = ClickEvent(
            event_id=self._id("c"),
            event_time_ms=now_ms,
            action=cast("Action", plan.what),
            user_id=user.user_id,
            item_id=item.item_id,
            title=item.titles[user.language],
            impression_id=impression_id,
            impression_time_ms=impression_time_ms,
            context=_context(item, user, plan.position),
        )
        return ShopEvent(EVENTS_CLICK, user.user_id.encode(), event, plan.what)

    def _search(self, plan: _Plan, now_ms: int) -> ShopEvent:
        user, category = plan.user, plan.query_category
        candidates = [
            Candidate(item_id=item.item_id, title=item.titles[user.language], context=_context(item, user, place))
            for place, item in enumerate(self._rng.sample(self._catalogue.by_category[category], 4), 1)
        ]
        event = ClickEvent(
            event_id=self._id("c"),
            event_time_ms=now_ms,
            action="search",
            user_id=user.user_id,
            query=self._catalogue.query(category, user.language, self._rng),
            candidates=candidates,
            context={"device": user.device},
        )
        return ShopEvent(EVENTS_CLICK, user.user_id.encode(), event, "search")

    def _review(self, user: User, now_ms: int) -> ShopEvent:
        rng = self._rng
        surging = self._surge is not None and self._surge.active(now_ms)
        item = self._catalogue.surge if surging and rng.random() < SURGE_REVIEW_SHARE else self._item()
        complaint = surging and item is self._catalogue.surge and rng.random() < SURGE_NEGATIVE_SHARE
        mood = "negative" if complaint else self._mood(item)
        event = ReviewEvent(
            event_id=self._id("r"),
            event_time_ms=now_ms,
            text=self._catalogue.review(item, user.language, mood, rng, surge=complaint),
            user_id=user.user_id,
            item_id=item.item_id,
            stars=float(rng.choice(_STARS[mood])) if rng.random() < 0.75 else None,
            # Some shops send no category; the model's own then counts where it is sure.
            category=item.category if rng.random() < 0.7 else None,
            brand=item.brand,
        )
        return ShopEvent(EVENTS_REVIEW, user.user_id.encode(), event, mood)

    def _mood(self, item: Item) -> Mood:
        drawn, praise = self._rng.random(), self._praise[item.item_id]
        if drawn < praise:
            return "positive"
        return "neutral" if drawn < praise + 0.4 * (1 - praise) else "negative"

    def _message(self, user: User, now_ms: int) -> ShopEvent:
        rng, catalogue = self._rng, self._catalogue
        item = self._item()
        if self._surge is not None and self._surge.active(now_ms) and rng.random() < SURGE_SERVICE_SHARE:
            intent, item = rng.choice(catalogue.surge_intents), catalogue.surge
        else:
            intent = "oos" if rng.random() < OUTSIDE_SHARE else rng.choice(catalogue.intents)
        event_id = self._id("s")
        event = ServiceEvent(
            event_id=event_id,
            event_time_ms=now_ms,
            text=catalogue.message(intent, item, user.language, rng),
            user_id=user.user_id,
            conversation_id=f"talk-{event_id}",
            channel=rng.choice(("app", "web", "phone")),
        )
        return ShopEvent(EVENTS_SERVICE, user.user_id.encode(), event, intent)

    def _id(self, letter: str) -> str:
        return f"{letter}{next(self._ids):08d}"


_STARS: Final[dict[Mood, tuple[int, ...]]] = {"positive": (5, 5, 5, 4), "neutral": (3,), "negative": (1, 1, 2)}


class _Plan(msgspec.Struct, frozen=True):
    """Something that will happen. ``answer`` is id and time of the impression that a click answers."""

    what: str
    user: User
    item: Item | None = None
    position: int = 0
    answer: tuple[str, int] | None = None
    query_category: str = ""


def _usual(item: Item, user: User) -> float:
    # A book and a laptop are dear in different ways: what counts is the price beside what such things cost.
    return _USUAL_PRICE.get(item.category, item.price) * user.budget


_USUAL_PRICE: Final = {
    "平板": 1500.0,
    "手机": 1200.0,
    "水果": 45.0,
    "衣服": 160.0,
    "书籍": 55.0,
    "洗发水": 55.0,
    "计算机": 1500.0,
    "牛奶": 50.0,
    "热水器": 1600.0,
    "酒店": 380.0,
}


def _context(item: Item, user: User, position: int) -> dict[str, float | str]:
    return {"position": float(position), "price": item.price, "brand": item.brand, "device": user.device}
