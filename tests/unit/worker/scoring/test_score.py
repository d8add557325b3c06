"""One result per unit, in order; each text is encoded once; one bad event costs its neighbours nothing."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from model.null import NullScorer
from model.scoring import Floats, Prepared
from schemas.events import Candidate, ClickEvent, ReviewEvent, ServiceEvent
from schemas.scores import StateSource
from schemas.states import State
from worker.config import Lane
from worker.errors import DeviceError
from worker.kafka.ledger import OffsetLedger
from worker.kafka.records import Record
from worker.scoring.batcher import Batch, Unit
from worker.scoring.cache import VectorCache
from worker.scoring.intake import Intake
from worker.scoring.results import ClickResult, Failure, ReviewResult, Scored, ServiceResult
from worker.scoring.score import BatchScorer, NoStates

SCALES_S = (3600.0, 86400.0)
LANES: dict[str, Lane] = {"events.click": "click", "events.review": "review", "events.service": "service"}
NOW_MS = 1_700_000_000_000


class CountingScorer(NullScorer):
    """Counts encoded texts; raises on, or gives NaN for, texts of a chosen number of tokens; has room for so many."""

    def __init__(self, raise_on: int = -1, nan_on: int = -1, room: int = 10**9, says: Exception | None = None) -> None:
        super().__init__()
        self.encoded = 0
        self.raise_on, self.nan_on, self.room = raise_on, nan_on, room
        self.says = says or MemoryError()

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        if sum(text.tokens for text in prepared) > self.room:
            raise self.says
        if any(text.tokens == self.raise_on for text in prepared):
            raise ValueError("poison")
        self.encoded += len(prepared)
        rows = super().encode(prepared)
        rows[[text.tokens == self.nan_on for text in prepared]] = np.nan
        return rows


class LinearHead:
    """Click probability is the first feature, purchase a half."""

    def click(self, features: Floats) -> Floats:
        return features[:, 0]

    def purchase(self, features: Floats) -> Floats:
        return np.full(len(features), 0.5, np.float32)


class Recorder:
    """Features that show what they were made of: the first one is a candidate's price / 100."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, users: Any, items: Any, vectors: Floats, times: Any, contexts: Any) -> Floats:
        self.calls.append((users, items, vectors, times, contexts))
        return np.array([[float(c.get("price", 50)) / 100] for c in contexts], np.float32)


class Known:
    """A reader that knows some users and items."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def read(
        self, user_ids: Sequence[str], item_ids: Sequence[str]
    ) -> tuple[list[State | None], list[State | None], StateSource]:
        return [self.state(u) for u in user_ids], [self.state(i) for i in item_ids], "known"

    def state(self, key: str) -> State | None:
        if key not in self.names:
            return None
        two, three = np.ones((2, 2), np.float32), np.ones((2, 3), np.float32)
        return State(
            kind="user",
            key=key,
            incarnation=1,
            fold_offset=0,
            time_ms=123,
            sums=np.ones((2, 2, 64), np.float32),
            weights=two,
            counts=three,
        )


def units_of(scorer: NullScorer, *events: Any, cache: VectorCache | None = None) -> list[Unit]:
    ledger: OffsetLedger[Any] = OffsetLedger()
    ledger.assign((topic, 0) for topic in LANES)
    names = {ClickEvent: "events.click", ReviewEvent: "events.review", ServiceEvent: "events.service"}
    records = [Record(names[type(e)], 0, n, 0, None, msgspec.json.encode(e)) for n, e in enumerate(events)]
    intake = Intake(LANES, scorer, VectorCache(1 << 20) if cache is None else cache)
    units, letters = intake.admit(records, ledger, 0.0, NOW_MS)
    assert letters == []
    return units


def score(scorer: NullScorer, units: list[Unit], reader: Any = None, features: Any = None) -> Scored:
    worker = BatchScorer(scorer, LinearHead(), features or Recorder(), reader or NoStates(), SCALES_S, ["intent.shop"])
    return worker.compute(worker.fetch(Batch(units, sum(u.tokens for u in units), "idle")))


def click(**fields: Any) -> ClickEvent:
    return ClickEvent(event_id="e", event_time_ms=NOW_MS, **fields)


def review(text: str, **fields: Any) -> ReviewEvent:
    return ReviewEvent(event_id="e", event_time_ms=NOW_MS, text=text, **fields)


def service(text: str) -> ServiceEvent:
    return ServiceEvent(event_id="e", event_time_ms=NOW_MS, text=text)


def test_results_stand_in_the_order_of_the_units() -> None:
    scorer = NullScorer()
    units = units_of(scorer, service("where is it"), click(item_id="i", title="lamp"), review("good"), service("hello"))
    results = score(scorer, units).results
    assert [type(r) for r in results] == [ServiceResult, ClickResult, ReviewResult, ServiceResult]


def test_a_texts_score_does_not_depend_on_its_neighbours() -> None:
    scorer = NullScorer()
    alone = score(scorer, units_of(scorer, review("the same text"))).results[0]
    among = score(scorer, units_of(scorer, review("another one, longer"), review("the same text"))).results[1]
    assert isinstance(alone, ReviewResult)
    assert isinstance(among, ReviewResult)
    assert alone.sentiment == among.sentiment
    assert (alone.vector == among.vector).all()


class OrderedScorer(NullScorer):
    """Says of every text with what probability each sentiment holds, in an order of its own."""

    def __init__(self, **sentiments: float) -> None:
        super().__init__()
        self.sentiments = sentiments
        self.labels = {**NullScorer.labels, "sentiment": tuple(sentiments)}

    def classify(self, head: str, encoded: Floats) -> Floats:
        if head != "sentiment":
            return super().classify(head, encoded)
        return np.array([[*self.sentiments.values()]] * len(encoded), np.float32)


@pytest.mark.parametrize("order", list(itertools.permutations(["negative", "neutral", "positive"])))
def test_sentiments_are_read_by_name(order: tuple[str, ...]) -> None:
    says = {"negative": 0.7, "neutral": 0.2, "positive": 0.1}
    scorer = OrderedScorer(**{label: says[label] for label in order})
    results = score(scorer, units_of(scorer, review("so so"), review("bad"))).results
    assert [result.sentiment for result in results if isinstance(result, ReviewResult)] == [[0.7, 0.2, 0.1]] * 2


class RareScorer(OrderedScorer):
    """Neutral and the second label of any other head count more than their probability."""

    def head(self, name: str) -> Mapping[str, Any]:
        second = [1.0, 1e9, *[1.0] * (len(self.labels[name]) - 2)]
        return {"decision_weights": [1.0, 1.0, 4.0] if name == "sentiment" else second}


def test_the_answer_is_the_heads_and_probabilities_are_as_they_were() -> None:
    says = {"positive": 0.7, "negative": 0.1, "neutral": 0.2}
    plain, rare = OrderedScorer(**says), RareScorer(**says)
    found = [score(scorer, units_of(scorer, review("so so"))).results[0] for scorer in (plain, rare)]
    assert [(r.label, r.sentiment) for r in found if isinstance(r, ReviewResult)] == [
        ("positive", [0.1, 0.2, 0.7]),
        ("neutral", [0.1, 0.2, 0.7]),
    ]
    (_, second) = found
    assert isinstance(second, ReviewResult)
    assert second.category == rare.labels["category"][1]
    assert 0.0 < second.category_confidence < 1.0


def test_the_answer_is_the_first_of_the_intents() -> None:
    rare = RareScorer(positive=0.7, negative=0.1, neutral=0.2)
    (result,) = score(rare, units_of(rare, service("where is it"))).results
    assert isinstance(result, ServiceResult)
    (answer, _), *others = result.intents
    assert answer == rare.labels["intent.shop"][1]
    assert answer not in dict(others)
    assert [p for _, p in others] == sorted((p for _, p in others), reverse=True)


def test_a_sentiment_head_without_neutral_never_says_it() -> None:
    scorer = OrderedScorer(positive=0.4, negative=0.6)
    (result,) = score(scorer, units_of(scorer, review("bad"))).results
    assert isinstance(result, ReviewResult)
    assert result.sentiment == [0.6, 0.0, 0.4]


def test_every_candidate_meets_the_states_of_its_own_event() -> None:
    recorder, known = Recorder(), Known("u1", "i1", "i3")
    ranked = [Candidate(item_id=f"i{n % 3}") for n in range(6)]
    events = [click(user_id=user, candidates=ranked) for user in ("u0", "u1", None)] + [click(item_id="i3")]
    score(NullScorer(), units_of(NullScorer(), *events), known, recorder)
    ((users, items, *_),) = recorder.calls
    assert users.present.tolist() == [False] * 6 + [True] * 6 + [False] * 7
    assert items.present.tolist() == [False, True, False] * 6 + [True]
    assert users.sums[:, 0, 0, 0].tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 7


def test_each_text_is_encoded_once() -> None:
    scorer, cache = CountingScorer(), VectorCache(1 << 20)
    events = [click(item_id="i", title="lamp"), click(item_id="i", title="lamp"), review("lamp"), review("good")]
    done = score(scorer, units_of(scorer, *events, cache=cache))
    assert scorer.encoded == 2
    cache.fill(done.encoded)
    again = units_of(scorer, *events, cache=cache)
    assert [unit.tokens for unit in again] == [0, 0, 0, 0]
    score(scorer, again)
    assert scorer.encoded == 2


def test_a_text_in_flight_in_another_batch_is_not_encoded_again() -> None:
    scorer, cache = CountingScorer(), VectorCache(1 << 20)
    first = units_of(scorer, review("good"), cache=cache)
    second = units_of(scorer, review("good"), cache=cache)
    score(scorer, first)
    score(scorer, second)
    assert scorer.encoded == 1


def test_a_reviews_title_is_read_before_its_text_as_in_training() -> None:
    scorer = NullScorer()
    (unit,) = units_of(scorer, review("text", title="title"))
    assert unit.texts[0] is not None
    assert unit.texts[0].text == "title text"


def test_a_click_without_title_has_no_vector_and_one_without_item_no_probability() -> None:
    scorer, features = NullScorer(), Recorder()
    units = units_of(scorer, click(item_id="i"), click(action="search", query="lamp"))
    bare, search = score(scorer, units, features=features).results
    assert isinstance(bare, ClickResult)
    assert isinstance(search, ClickResult)
    assert (bare.vector, bare.p_click) == (None, 0.5)
    assert (features.calls[0][2] == 0).all()
    assert search.p_click is None
    assert search.vector is not None


def test_a_search_folds_the_querys_vector_any_other_the_titles() -> None:
    scorer = NullScorer()
    search, seen, query = score(
        scorer,
        units_of(
            scorer,
            click(action="search", item_id="i", title="lamp", query="kettle"),
            click(item_id="i", title="lamp", query="kettle"),
            review("kettle"),
        ),
    ).results
    assert isinstance(search, ClickResult)
    assert isinstance(seen, ClickResult)
    assert isinstance(query, ReviewResult)
    assert (search.vector == query.vector).all()
    assert (seen.vector != query.vector).any()


def test_candidates_are_ranked_best_first_with_the_events_user() -> None:
    scorer, features = NullScorer(), Recorder()
    prices = {"a": 10, "b": 90, "c": 40}
    candidates = [Candidate(item_id=k, title=f"thing {k}", context={"price": v}) for k, v in prices.items()]
    event = click(user_id="u", item_id="x", title="t", candidates=candidates, context={"device": "app", "price": 20})
    (result,) = score(scorer, units_of(scorer, event), Known("u", "b"), features).results
    assert isinstance(result, ClickResult)
    assert [(c.item_id, round(c.p_click, 3), round(c.p_purchase, 3)) for c in result.candidates] == [
        ("b", 0.9, 0.45),
        ("c", 0.4, 0.2),
        ("a", 0.1, 0.05),
    ]
    assert (result.p_click, result.state, result.state_time_ms) == (pytest.approx(0.2), "known", 123)
    ((users, items, vectors, times, contexts),) = features.calls
    assert users.time_ms.tolist() == [123] * 4
    assert items.time_ms.tolist() == [-1, -1, 123, -1]
    assert (np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-5).all()
    assert times.tolist() == [NOW_MS] * 4
    assert [c["device"] for c in contexts] == ["app"] * 4


@pytest.mark.parametrize(
    ("reader", "user", "source"),
    [(Known("u"), "u", "known"), (Known(), "u", "cold"), (NoStates(), "u", "unavailable"), (Known("u"), None, "none")],
)
def test_the_output_tells_where_the_state_came_from(reader: Any, user: str | None, source: str) -> None:
    scorer = NullScorer()
    (result,) = score(scorer, units_of(scorer, click(user_id=user, item_id="i")), reader).results
    assert isinstance(result, ClickResult)
    assert result.state == source


def test_one_poisoned_event_costs_its_neighbours_nothing() -> None:
    scorer = CountingScorer(raise_on=7)
    texts = ["abcd" * n for n in (1, 2, 3, 7, 4, 5, 6, 8, 9)]
    done = score(scorer, units_of(scorer, *map(review, texts)))
    assert [type(r) is Failure for r in done.results] == [n == 3 for n in range(9)]
    assert len(done.encoded) == 8


def test_not_a_number_is_a_failure_not_a_score_and_is_not_cached() -> None:
    scorer = CountingScorer(nan_on=7)
    bad = "abcd" * 7
    events = [review("fine"), review(bad), service(bad + "\u200b"), service("fine too"), click(item_id="i", title=bad)]
    done = score(scorer, units_of(scorer, *events))
    assert [type(r) is Failure for r in done.results] == [False, True, True, False, True]
    assert all(slot.row is not None and np.isfinite(slot.row).all() for slot in done.encoded)


def test_a_click_head_that_gives_infinity_fails_that_event_alone() -> None:
    def features(users: Any, items: Any, vectors: Floats, times: Any, contexts: Any) -> Floats:
        return np.array([[c["p"]] for c in contexts], np.float32)

    scorer = NullScorer()
    events = [click(item_id="i", context={"p": 0.5}), click(item_id="j", context={"p": 1e39})]
    results = score(scorer, units_of(scorer, *events), features=features).results
    assert [type(r) is Failure for r in results] == [False, True]


class Unsure(NullScorer):
    """Every head's threshold is set from outside."""

    def __init__(self, **thresholds: float) -> None:
        super().__init__()
        self.thresholds = thresholds

    def threshold(self, head: str) -> float | None:
        return self.thresholds.get(head.replace(".", "_"), 0.0)


def intents(scorer: NullScorer, heads: list[str]) -> ServiceResult:
    worker = BatchScorer(scorer, LinearHead(), Recorder(), NoStates(), SCALES_S, heads)
    units = units_of(scorer, service("hello there"))
    (result,) = worker.compute(worker.fetch(Batch(units, 1, "idle"))).results
    assert isinstance(result, ServiceResult)
    return result


def test_below_the_threshold_is_out_of_scope() -> None:
    assert not intents(Unsure(), ["intent.shop"]).out_of_scope
    assert intents(Unsure(intent_shop=1.1), ["intent.shop"]).out_of_scope


def test_the_first_head_that_is_sure_decides() -> None:
    result = intents(Unsure(intent_shop=1.1), ["intent.shop", "intent.banking"])
    assert not result.out_of_scope
    assert result.intents[0][0].startswith("banking_")
    both = intents(Unsure(intent_shop=1.1, intent_banking=1.1), ["intent.shop", "intent.banking"])
    assert both.out_of_scope
    assert both.intents[0][0] in NullScorer.labels["intent.shop"]


FULL = {
    "python": MemoryError(),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
}


@pytest.mark.parametrize("says", FULL.values(), ids=FULL)
def test_a_batch_that_does_not_fit_is_encoded_in_parts_and_says_so(says: Exception) -> None:
    events = [review("abcd" * n) for n in range(1, 12)]
    scorer = CountingScorer(room=20, says=says)
    done = score(scorer, units_of(scorer, *events))
    assert done.out_of_memory
    assert (scorer.encoded, len(done.encoded)) == (11, 11)
    roomy = CountingScorer()
    whole = score(roomy, units_of(roomy, *events))
    assert not whole.out_of_memory
    assert msgspec.json.encode(list(map(astuple, done.results))) == msgspec.json.encode(
        list(map(astuple, whole.results))
    )


def test_one_event_with_many_texts_is_encoded_in_parts_too() -> None:
    scorer = CountingScorer(room=20)
    candidates = [Candidate(item_id=f"i{n}", title="abcd" * n) for n in range(1, 12)]
    done = score(scorer, units_of(scorer, click(user_id="u", candidates=candidates)))
    assert done.out_of_memory
    assert len(done.encoded) == 11


def test_a_device_without_room_for_one_text_is_given_up_and_no_event_is_blamed() -> None:
    scorer = CountingScorer(room=3)
    with pytest.raises(DeviceError, match="one text of 7 tokens"):
        score(scorer, units_of(scorer, review("fine"), review("abcd" * 7)))


def test_heads_without_room_are_asked_in_parts_and_for_one_event_the_device_is_given_up() -> None:
    def crowded(limit: int) -> Any:
        def features(users: Any, items: Any, vectors: Floats, times: Any, contexts: Any) -> Floats:
            if len(contexts) > limit:
                raise MemoryError
            return np.full((len(contexts), 1), 0.5, np.float32)

        return features

    scorer = NullScorer()
    events = [click(item_id=f"i{n}") for n in range(8)]
    done = score(scorer, units_of(scorer, *events), features=crowded(2))
    assert done.out_of_memory
    assert [type(r) for r in done.results] == [ClickResult] * 8
    with pytest.raises(DeviceError, match="one event"):
        score(scorer, units_of(scorer, *events), features=crowded(0))


DEAD = {
    "sticky": torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors ..."),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
}


@pytest.mark.parametrize("says", DEAD.values(), ids=DEAD)
def test_a_device_that_says_it_has_failed_is_given_up_at_once(says: Exception) -> None:
    scorer = CountingScorer(room=20, says=says)
    with pytest.raises(
        DeviceError, match=r"fails on every text: (CUDA|cuDNN) error.*nothing of the batch is committed"
    ):
        score(scorer, units_of(scorer, review("fine"), review("abcd" * 30)))


CROWDED = {
    "cuda": torch.AcceleratorError("CUDA error: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


@pytest.mark.parametrize("says", CROWDED.values(), ids=CROWDED)
def test_a_device_that_says_so_of_its_memory_has_not_failed(says: Exception) -> None:
    scorer = CountingScorer(room=20, says=says)
    done = score(scorer, units_of(scorer, *(review("abcd" * n) for n in range(1, 12))))
    assert done.out_of_memory
    assert not any(isinstance(result, Failure) for result in done.results)


class Dead(NullScorer):
    """Fails on every text, or gives numbers that are none, in the encoder or in one head."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        if self.way == "raises":
            raise RuntimeError("the stream is gone")
        return super().encode(prepared) * (np.nan if self.way == "encoder" else 1)

    def classify(self, head: str, encoded: Floats) -> Floats:
        return super().classify(head, encoded) * (np.nan if self.way == head else 1)


@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("way", ["raises", "encoder", "category"])
def test_a_model_that_fails_on_every_text_is_given_up_and_no_event_is_blamed(way: str, count: int) -> None:
    scorer = Dead(way)
    with pytest.raises(DeviceError, match="the model fails on every text"):
        score(scorer, units_of(scorer, *(review(f"text {n}") for n in range(count))))


def test_events_that_need_no_text_do_not_hide_that_every_text_fails() -> None:
    scorer = Dead("encoder")
    with pytest.raises(DeviceError):
        score(scorer, units_of(scorer, click(item_id="i"), review("text")))


def test_a_device_that_dies_in_the_middle_of_a_batch_blames_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, encode, calls = NullScorer(), NullScorer().encode, [0]

    def dying(prepared: Sequence[Prepared]) -> Floats:
        calls[0] += 1
        if calls[0] != 2:
            raise RuntimeError("the stream is gone")
        return encode(prepared)

    units = units_of(scorer, *(review(f"text {n}") for n in range(9)))
    monkeypatch.setattr(scorer, "encode", dying)
    with pytest.raises(DeviceError, match="the stream is gone"):
        score(scorer, units)


def test_a_batch_of_nothing_but_poison_blames_its_events() -> None:
    scorer = CountingScorer(raise_on=7)
    done = score(scorer, units_of(scorer, *(review("abcd" * 7 + "\u200b" * n) for n in range(3))))
    assert [type(result) for result in done.results] == [Failure] * 3


def test_a_text_that_became_no_number_waits_for_nothing_even_where_its_event_is_scored() -> None:
    scorer, cache = CountingScorer(nan_on=7), VectorCache(1 << 20)
    done = score(scorer, units_of(scorer, click(item_id="i", title="lamp", query="abcd" * 7), cache=cache))
    assert isinstance(done.results[0], ClickResult)
    Intake(LANES, scorer, cache).keep(done.encoded, done.spoilt)
    assert (len(cache), cache.pending) == (1, 0)


def astuple(result: Any) -> Any:
    return result.sentiment, result.category, result.category_confidence, result.vector.tobytes().hex()
