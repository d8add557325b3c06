"""What the scorer is given and what it gives: data alone."""

from __future__ import annotations

import msgspec

from schemas.folds import F16
from schemas.scores import RankedCandidate, Sentiment, StateSource
from schemas.states import State
from worker.scoring.batcher import Batch
from worker.scoring.cache import Slot


class ClickResult(msgspec.Struct, gc=False):
    """``vector``: float16 [64] of the title (of the query for a search), None where there is no text."""

    p_click: float | None
    p_purchase: float | None
    state: StateSource
    state_time_ms: int | None
    candidates: list[RankedCandidate]
    vector: F16 | None


class ReviewResult(msgspec.Struct, gc=False):
    """The sentiment that is the answer, probabilities in the order of SENTIMENTS, the category, and the text's
    vector."""

    label: Sentiment
    sentiment: list[float]
    category: str
    category_confidence: float
    vector: F16


class ServiceResult(msgspec.Struct, gc=False):
    """The answer and then the likeliest intents, of the first head that knows the message; ``out_of_scope`` where none
    does."""

    intents: list[tuple[str, float]]
    out_of_scope: bool


class Failure(msgspec.Struct, gc=False):
    """The model could not score this event."""

    detail: str


Result = ClickResult | ReviewResult | ServiceResult | Failure


class Fetched(msgspec.Struct, eq=False):
    """A batch with the states it needs: users and items by id; None where Redis does not know them."""

    batch: Batch
    users: dict[str, State | None]
    items: dict[str, State | None]
    source: StateSource
    fetch_s: float = 0.0


class Scored(msgspec.Struct, eq=False):
    """Results in the order of the batch's units, and slots newly encoded; those ``spoilt`` are so to no numbers.

    Seconds: ``encode_s`` in the encoder, ``total_s`` with the heads, ``fetch_s`` for the states before.
    ``out_of_memory``: it did not fit in one pass.
    """

    batch: Batch
    results: list[Result]
    encoded: list[Slot]
    encode_s: float
    total_s: float
    fetch_s: float = 0.0
    out_of_memory: bool = False
    spoilt: list[Slot] = []
