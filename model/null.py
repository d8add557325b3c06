"""A model without an encoder: the face of a scorer, numpy only, for measuring and testing everything else.

Deterministic: the same text gives the same scores in every batch and every process. The scores mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.scoring import Floats, Prepared

HIDDEN: Final = 64
CHARACTERS_PER_TOKEN: Final = 4
MAX_TOKENS: Final = 64

_SHOP: Final = (
    "cancel_order change_order change_shipping_address check_cancellation_fee check_invoice check_payment_methods "
    "check_refund_policy complaint contact_customer_service contact_human_agent create_account delete_account "
    "delivery_options delivery_period edit_account get_invoice get_refund newsletter_subscription payment_issue "
    "place_order recover_password registration_problems review set_up_shipping_address switch_account track_order "
    "track_refund"
)
LABELS: Final[dict[str, tuple[str, ...]]] = {
    "sentiment": ("negative", "neutral", "positive"),
    "sentiment.finance": ("negative", "neutral", "positive"),
    "category": tuple(f"category_{i}" for i in range(10)),
    "topic": tuple(f"topic_{i}" for i in range(15)),
    "stars": ("1", "2", "3", "4", "5"),
    "emotion": ("angry", "fear", "happy", "neutral", "sad", "surprise"),
    "intent.shop": tuple(_SHOP.split()),
    "intent.banking": tuple(f"banking_{i}" for i in range(77)),
    "intent.general": (*(f"general_{i}" for i in range(150)), "oos"),
}


class NullScorer:
    """See ``model.scoring.Scorer`` for the meaning of each method."""

    version = "null-1"
    space = "null"
    hidden = HIDDEN
    labels: Mapping[str, Sequence[str]] = LABELS

    def __init__(self) -> None:
        random = np.random.default_rng(20240101)
        self._mix = random.normal(size=HIDDEN).astype(np.float32)
        self._weights = {
            head: random.normal(scale=0.3, size=(HIDDEN, len(labels))).astype(np.float32)
            for head, labels in LABELS.items()
        }

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        return [_prepared(text) for text in texts]

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        if not prepared:
            return np.zeros((0, HIDDEN), np.float32)
        # The sum over a text's codes, each mixed with its place, seeds a row that looks random and is not.
        lengths = np.array([text.tokens for text in prepared])
        codes = np.concatenate([text.ids for text in prepared]).astype(np.uint64)
        ends = np.cumsum(lengths)
        place = np.arange(len(codes), dtype=np.uint64) - np.repeat((ends - lengths).astype(np.uint64), lengths)
        mixed = (codes + place * np.uint64(0x9E3779B1)) * np.uint64(0x9E3779B97F4A7C15)
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed >> np.uint64(40), dtype=np.uint64)])
        seeds = ((total[ends] - total[ends - lengths]) % np.uint64(10_007)).astype(np.float32)
        return np.sin(seeds[:, None] * self._mix)  # type: ignore[no-any-return]

    def classify(self, head: str, encoded: Floats) -> Floats:
        logits = encoded @ self._weights[head]
        exp = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return exp / exp.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    def vectors(self, encoded: Floats) -> Floats:
        norm = np.sqrt(np.einsum("ij,ij->i", encoded, encoded))[:, None]
        return encoded / np.maximum(norm, np.float32(1e-12))  # type: ignore[no-any-return]

    def threshold(self, head: str) -> float | None:
        return 0.05 if head.startswith("intent.") else None

    def head(self, name: str) -> Mapping[str, Any]:
        return {}

    def tensor(self, name: str) -> npt.NDArray[Any]:
        raise KeyError(name)


def _prepared(text: str) -> Prepared:
    """Every fourth character's code point; nothing for a text that shows nothing."""
    text = text[: MAX_TOKENS * CHARACTERS_PER_TOKEN]
    if not text.isprintable():
        text = "".join(c for c in text if c.isprintable() or c.isspace())
    ids = np.frombuffer(text.strip().encode("utf-32-le", "replace"), np.int32)[::CHARACTERS_PER_TOKEN]
    return Prepared(ids, _NO_GRAMS)


_NO_GRAMS: Final = np.zeros(0, np.int32)
