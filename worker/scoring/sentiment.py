"""The contract's sentiments, found by name in a head whose labels stand in an order of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from schemas.scores import Sentiment
from worker.errors import ModelLoadError

SENTIMENTS: Final[tuple[Sentiment, ...]] = ("negative", "neutral", "positive")


def sentiment_places(labels: Sequence[str]) -> list[int]:
    """Of each label of a sentiment head, its place in SENTIMENTS. Without ``neutral`` that one is never likely.

    Raises `ModelLoadError` where ``negative`` or ``positive`` is missing, alerts being made of them, and for any other
    label: its probability would be nobody's.
    """
    if not {"negative", "positive"} <= set(labels) <= set(SENTIMENTS):
        raise ModelLoadError(
            f"the head sentiment has the labels {', '.join(labels)}; it needs negative and positive, may have neutral"
            " and no other: rename them under `heads:` of the recipe and train again"
        )
    return [SENTIMENTS.index(label) for label in labels]
