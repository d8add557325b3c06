"""A batch of events to results: states fetched, texts encoded once, every head answered for all its events together.

An exception of the model, or a score that is not a number, costs one event and not its neighbours: the failing
batch is halved until the culprit is alone. Memory that is full is no event's fault: the batch is encoded in halves
and says so, and where not even one text or event fits, the device is given up. So it is where it has failed for good,
which is no event's fault either.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from model.scoring import Floats, Prepared, Scorer, decide
from model.state import States
from schemas.events import ClickEvent
from schemas.folds import F16, VECTOR_SIZE
from schemas.scores import RankedCandidate, StateSource
from schemas.states import State
from worker.errors import DeviceError
from worker.scoring.batcher import Batch, Unit
from worker.scoring.cache import Slot
from worker.scoring.canary import Canary, device_error, device_failed
from worker.scoring.click_rows import ClickRows
from worker.scoring.memory import free_memory, out_of_memory
from worker.scoring.results import ClickResult, Failure, Fetched, Result, ReviewResult, Scored, ServiceResult
from worker.scoring.sentiment import SENTIMENTS, sentiment_places

TOP_INTENTS: Final = 4
DECIMALS: Final = 6
"""Probabilities are written with this many: more says nothing and doubles the bytes."""

_log = logging.getLogger(__name__)


class Reader(Protocol):
    """Reads states, best-effort: see `worker.redis.state_reader.StateReader`."""

    def read(
        self, user_ids: Sequence[str], item_ids: Sequence[str]
    ) -> tuple[list[State | None], list[State | None], StateSource]: ...


class ClickModel(Protocol):
    """Click and purchase probabilities: see `model.clicks.head.ClickHead`."""

    def click(self, features: Floats) -> Floats: ...

    def purchase(self, features: Floats) -> Floats: ...


class NoStates:
    """A reader where no Redis is: what it gives is said to be unavailable."""

    def read(
        self, user_ids: Sequence[str], item_ids: Sequence[str]
    ) -> tuple[list[State | None], list[State | None], StateSource]:
        return [None] * len(user_ids), [None] * len(item_ids), "unavailable"


class _Progress:
    """What comes of a batch while it is worked on."""

    __slots__ = ("encode_s", "encoded", "out_of_memory", "spoilt")

    def __init__(self) -> None:
        self.encoded: list[Slot] = []
        self.spoilt: list[Slot] = []
        self.encode_s = 0.0
        self.out_of_memory = False


class BatchScorer:
    """The two stages of the device: `fetch` (waits for Redis) and `compute` (uses the model). No state of its own."""

    def __init__(
        self,
        scorer: Scorer,
        click_head: ClickModel,
        click_features: Callable[..., Floats],
        reader: Reader,
        scales_s: Sequence[float],
        intent_heads: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `ModelLoadError` for a sentiment head that does not answer what the contract asks."""
        self._scorer = scorer
        self._click_head = click_head
        self._features = click_features
        self._reader = reader
        self._scales_s = scales_s
        self._intent_heads = tuple(intent_heads)
        self._clock = clock
        self._categories = list(scorer.labels["category"])
        self._canary = Canary(scorer, ("sentiment", "category", *self._intent_heads))
        self._sentiments = sentiment_places(scorer.labels["sentiment"])

    def fetch(self, batch: Batch) -> Fetched:
        """Read the states of all users and items that the batch's click events name."""
        users: dict[str, State | None] = {}
        items: dict[str, State | None] = {}
        for unit in batch.units:
            if unit.lane == "click":
                event = cast("ClickEvent", unit.event)
                if event.user_id is not None:
                    users[event.user_id] = None
                if event.item_id is not None:
                    items[event.item_id] = None
                for candidate in event.candidates:
                    items[candidate.item_id] = None
        source: StateSource = "known"
        start = self._clock()
        if users or items:
            user_states, item_states, source = self._reader.read(list(users), list(items))
            users = dict(zip(users, user_states, strict=True))
            items = dict(zip(items, item_states, strict=True))
        return Fetched(batch, users, items, source, self._clock() - start)

    def compute(self, fetched: Fetched) -> Scored:
        """Encode what is not encoded yet, ask the heads.

        Raises `DeviceError` when nothing fits into the device's memory, and when it has failed for good.
        """
        start = self._clock()
        progress = _Progress()
        results = self._bisect(fetched, fetched.batch.units, progress)
        total_s = self._clock() - start
        if any(type(result) is Failure for result in results):
            self._canary.check()  # whatever failed, before its events are blamed: the device may have died on the way
        return Scored(
            fetched.batch,
            results,
            progress.encoded,
            progress.encode_s,
            total_s,
            fetched.fetch_s,
            progress.out_of_memory,
            progress.spoilt,
        )

    def _bisect(self, fetched: Fetched, units: list[Unit], progress: _Progress) -> list[Result]:
        try:
            return self._score(fetched, units, progress)
        except DeviceError:
            raise
        except Exception as error:
            full = out_of_memory(error)
            if not full and device_failed(error):
                raise device_error(error) from error
            if len(units) == 1:
                if full:
                    raise _does_not_fit("one event") from error
                _log.warning("the model failed on one event: %s", type(error).__name__)
                return [Failure(f"the model raised {type(error).__name__}")]
        if full:
            progress.out_of_memory = True
            free_memory()
        half = len(units) // 2
        return self._bisect(fetched, units[:half], progress) + self._bisect(fetched, units[half:], progress)

    def _score(self, fetched: Fetched, units: list[Unit], progress: _Progress) -> list[Result]:
        self._encode(units, progress)
        results: dict[int, Result] = {}
        for lane, score in (("service", self._services), ("review", self._reviews)):
            chosen = [i for i, unit in enumerate(units) if unit.lane == lane]
            if chosen:
                results.update(zip(chosen, score([cast("Slot", units[i].texts[0]) for i in chosen]), strict=True))
        chosen = [i for i, unit in enumerate(units) if unit.lane == "click"]
        if chosen:
            results.update(zip(chosen, self._clicks(fetched, [units[i] for i in chosen]), strict=True))
        return [results[i] for i in range(len(units))]

    def _encode(self, units: list[Unit], progress: _Progress) -> None:
        todo = list({id(s): s for unit in units for s in unit.texts if s is not None and s.row is None}.values())
        if not todo:
            return
        start = self._clock()
        rows = self._rows([cast("Prepared", slot.prepared) for slot in todo], progress)
        progress.encode_s += self._clock() - start
        vectors = self._scorer.vectors(rows)
        # Rows that are no numbers fill their slots too: who needs them fails below, but they are not kept for others.
        good = _finite(rows, vectors)
        for slot, row, vector, fine in zip(todo, rows, vectors, good, strict=True):
            # Copies: a view would keep the whole batch's matrix alive as long as one text of it is cached.
            slot.row, slot.vector = row.copy(), vector.copy()
            (progress.encoded if fine else progress.spoilt).append(slot)

    def _rows(self, prepared: list[Prepared], progress: _Progress) -> Floats:
        """Encoded rows, in as many passes as the memory of the device asks for."""
        try:
            return self._scorer.encode(prepared)
        except Exception as error:
            if not out_of_memory(error):
                raise
            if len(prepared) == 1:
                raise _does_not_fit(f"one text of {prepared[0].tokens} tokens") from error
        progress.out_of_memory = True
        free_memory()
        half = len(prepared) // 2
        return np.concatenate([self._rows(prepared[:half], progress), self._rows(prepared[half:], progress)])

    def _reviews(self, slots: list[Slot]) -> list[Result]:
        rows = np.stack([cast("Floats", slot.row) for slot in slots])
        sentiment = np.zeros((len(slots), len(SENTIMENTS)), np.float32)
        answered = self._scorer.classify("sentiment", rows)
        sentiment[:, self._sentiments] = answered
        labels = [SENTIMENTS[self._sentiments[i]] for i in decide(self._scorer, "sentiment", answered)]
        category = self._scorer.classify("category", rows)
        vectors = np.stack([cast("Floats", slot.vector) for slot in slots]).astype(np.float16)
        best = decide(self._scorer, "category", category)
        confidence = _numbers(category[np.arange(len(best)), best])
        good = _finite(sentiment, category, vectors)
        return [
            ReviewResult(s, p, self._categories[b], c, v) if fine else Failure(_NOT_A_NUMBER)
            for s, p, b, c, v, fine in zip(
                labels, _numbers(sentiment), best.tolist(), confidence, vectors, good, strict=True
            )
        ]

    def _services(self, slots: list[Slot]) -> list[Result]:
        rows = np.stack([cast("Floats", slot.row) for slot in slots])
        results: list[Result | None] = [None] * len(slots)
        fallback: list[Result] = []
        for head in self._intent_heads:
            labels, threshold = self._scorer.labels[head], self._scorer.threshold(head) or 0.0
            probabilities = self._scorer.classify(head, rows)
            ranks = -probabilities
            ranks[np.arange(len(ranks)), decide(self._scorer, head, probabilities)] = -np.inf  # the answer comes first
            top = np.argsort(ranks, axis=1)[:, :TOP_INTENTS]
            values = _numbers(np.take_along_axis(probabilities, top, axis=1))
            good = _finite(probabilities)
            found: list[Result] = []
            for i, (order, value) in enumerate(zip(top.tolist(), values, strict=True)):
                intents = [(labels[k], p) for k, p in zip(order, value, strict=True)]
                outside = value[0] < threshold or intents[0][0] == "oos"
                found.append(ServiceResult(intents, outside) if good[i] else Failure(_NOT_A_NUMBER))
                if results[i] is None and not (good[i] and outside):
                    results[i] = found[i]
            fallback = fallback or found
        return [first or other for first, other in zip(results, fallback, strict=True)]

    def _clicks(self, fetched: Fetched, units: list[Unit]) -> list[Result]:
        rows = ClickRows()
        for n, unit in enumerate(units):
            rows.add(n, unit)
        p_click, p_purchase = self._probabilities(fetched, rows)
        texts = [unit.texts[1 if cast("ClickEvent", unit.event).action == "search" else 0] for unit in units]
        vectors = np.stack([_ZERO if s is None else cast("Floats", s.vector) for s in texts]).astype(np.float16)
        results = [
            _click_result(fetched, cast("ClickEvent", unit.event), None if text is None else vector)
            for unit, text, vector in zip(units, texts, vectors, strict=True)
        ]
        bad = {n for n, fine in enumerate(_finite(vectors)) if not fine}
        for n, item, click, purchase in zip(
            rows.owner, rows.candidate, _numbers(p_click), _numbers(p_purchase), strict=True
        ):
            if not (math.isfinite(click) and math.isfinite(purchase)):
                bad.add(n)
            elif item is None:
                results[n].p_click, results[n].p_purchase = click, purchase
            else:
                results[n].candidates.append(RankedCandidate(item_id=item, p_click=click, p_purchase=purchase))
        for result in results:
            if len(result.candidates) > 1:
                result.candidates.sort(key=lambda candidate: -candidate.p_click)
        return [Failure(_NOT_A_NUMBER) if n in bad else result for n, result in enumerate(results)]

    def _probabilities(self, fetched: Fetched, rows: ClickRows) -> tuple[Floats, Floats]:
        if not rows.owner:
            return _NO_FLOATS, _NO_FLOATS
        users = self._states(fetched.users, rows.users)
        items = self._states(fetched.items, rows.items)
        vectors = np.stack([_ZERO if s is None else cast("Floats", s.vector) for s in rows.slots])
        features = self._features(users, items, vectors, np.array(rows.times_ms, np.int64), rows.contexts)
        click = self._click_head.click(features)
        return click, click * self._click_head.purchase(features)

    def _states(self, known: dict[str, State | None], ids: Sequence[str | None]) -> States:
        """The state of each id, of n ids [n, ...]. Each is read out once: a list of candidates names its user often."""
        place = {key: n for n, key in enumerate(dict.fromkeys(ids))}
        states = States.from_records([known.get(key) if key else None for key in place], self._scales_s)
        return states if len(place) == len(ids) else states.take([place[key] for key in ids])


_NOT_A_NUMBER: Final = "a score is not a number"
_ZERO: Final = np.zeros(VECTOR_SIZE, np.float32)
_NO_FLOATS: Final = np.zeros(0, np.float32)


def _does_not_fit(what: str) -> DeviceError:
    return DeviceError(
        f"the device has no memory left for {what}: see what else uses it (nvidia-smi, free) or take a smaller model"
    )


def _click_result(fetched: Fetched, event: ClickEvent, vector: F16 | None) -> ClickResult:
    """Where the user's state came from; the probabilities are filled in by the caller."""
    if event.user_id is None:
        return ClickResult(None, None, "none", None, [], vector)
    state = fetched.users.get(event.user_id)
    if state is not None:
        return ClickResult(None, None, "known", state.time_ms, [], vector)
    return ClickResult(None, None, "unavailable" if fetched.source == "unavailable" else "cold", None, [], vector)


def _finite(*columns: npt.NDArray[Any]) -> list[bool]:
    """Of each row, whether all its numbers are numbers."""
    good = np.isfinite(columns[0]).all(axis=1)
    for column in columns[1:]:
        good &= np.isfinite(column).all(axis=1)
    return cast("list[bool]", good.tolist())


def _numbers(values: Floats) -> Any:
    """As Python floats with few digits (float32 would print with seventeen)."""
    return values.astype(np.float64).round(DECIMALS).tolist()
