"""A scorer whose answers are spelt in the texts, and after a bar where the text lies: '0.1 0.2 0.7 | 3 4'."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.scoring import Floats, Prepared

LABELS = {"sentiment": ["negative", "neutral", "positive"], "intent.shop": ["refund", "track", "oos"]}


RARE = {"sentiment": {"decision_weights": [1.0, 3.0, 1.0]}}  # neutral counts three times


class SpokenScorer:
    """Three labels a head; encoded rows [n, 5] are the probabilities and the place (0 0 where none is spelt).

    ``heads``: what its manifest says of them.
    """

    version, space, hidden, labels = "spoken", "spoken", 5, LABELS

    def __init__(self, threshold: float | None = None, heads: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._threshold, self._heads = threshold, heads or {}
        self.largest_batch = 0

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        self.largest_batch = max(self.largest_batch, len(texts))
        numbers = [[float(x) for x in text.replace("|", " ").split()] for text in texts]
        codes = [np.round(1e6 * np.array([*own, 0.0, 0.0][:5])).astype(np.int32) for own in numbers]
        return [Prepared(code, np.zeros(0, np.int32)) for code in codes]

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        return np.array([p.ids / 1e6 for p in prepared], np.float32)

    def classify(self, head: str, encoded: Floats) -> Floats:
        assert head in self.labels
        return encoded[:, :3]

    def vectors(self, encoded: Floats) -> Floats:
        return encoded[:, 3:]

    def threshold(self, head: str) -> float | None:
        return self._threshold if head.startswith("intent") else None

    def head(self, name: str) -> Mapping[str, Any]:
        return self._heads.get(name, {})

    def tensor(self, name: str) -> Floats:
        raise KeyError(name)
