"""The face of a model: what the worker, profiles and evaluation see. Imports no torch.

A scorer prepares texts (any thread), encodes them in one packed pass, and answers every head from the encoded rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from model.errors import DataError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One normalised, tokenised text.

    ids: int32 [tokens], with the tokenizer's special tokens, at most the model's ``max_tokens``.
    grams: int32 [g], the sorted distinct n-gram buckets of the text (empty for a model without n-gram channel).
    """

    ids: Ints
    grams: Ints

    @property
    def tokens(self) -> int:
        return len(self.ids)


class Scorer(Protocol):
    """One loaded model. ``prepare`` may run in another thread than ``encode``; the rest is called from one thread."""

    version: str
    """Changes with any weight, label, threshold or calibration."""
    space: str
    """Identifies the vector space: changes only with encoder, tokenizer, mean or projection."""
    hidden: int
    """Width of one encoded row."""
    labels: Mapping[str, Sequence[str]]
    """Head name to labels, in the order of ``classify``'s columns."""

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        """Normalise and tokenise. Never raises on any string."""
        ...

    def encode(self, prepared: Sequence[Prepared]) -> Floats:
        """Encoded rows, float32 [n, hidden]."""
        ...

    def classify(self, head: str, encoded: Floats) -> Floats:
        """Calibrated probabilities, float32 [n, labels]. Raises KeyError for an unknown head."""
        ...

    def vectors(self, encoded: Floats) -> Floats:
        """Centred, projected, L2-normalised vectors, float32 [n, 64]."""
        ...

    def threshold(self, head: str) -> float | None:
        """An intent below this top probability is out of scope; None where the head has no such threshold."""
        ...

    def head(self, name: str) -> Mapping[str, Any]:
        """What the artifact's manifest says of a head, or of ``click``: ``kind``, the fields of its ``text`` and the
        ``field`` of its label in the rows that it was trained on, and more. Empty where nothing is said."""
        ...

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A float32 copy of a named tensor of the artifact. Raises KeyError when there is none."""
        ...


def check_head(scorer: Scorer, head: str) -> list[str]:
    """The labels of a head. Raises DataError when the model has no such head."""
    if head not in scorer.labels:
        raise DataError(f"the model has no head {head!r}; its heads: {', '.join(scorer.labels)}")
    return list(scorer.labels[head])


def decide(
    scorer: Scorer, head: str, probabilities: npt.NDArray[Any], among: Sequence[int] | None = None
) -> npt.NDArray[np.intp]:
    """The column that is the answer, [n], of a head's probabilities [n, labels], or of those of the labels ``among``:
    the likeliest one, or where the head has decision weights (`model.calibrate`) the one of the largest product."""
    weights = scorer.head(head).get("decision_weights")
    if weights is not None:
        own = np.asarray(weights, np.float64)
        probabilities = probabilities * (own if among is None else own[list(among)])
    return np.asarray(probabilities.argmax(1))


def load_scorer(folder: Path, *, device: str = "auto", precision: str = "auto") -> Scorer:
    """Load an artifact folder, checksums verified, for ``cpu``, ``cuda`` or ``auto`` (CUDA when there is one).

    precision  ``float32``, or ``auto``: what the device multiplies fastest, float16 or bfloat16 where it has them

    Raises ArtifactError, saying what is wrong and what to do.
    """
    from model.torch_scorer import TorchScorer  # lazy: processes on the null model never import torch

    return TorchScorer(folder, device=device, precision=precision)
