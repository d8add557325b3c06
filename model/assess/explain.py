"""Which parts of a text moved a score: each word's or character's weight on one label, with its place in the text.

Weights are in log-odds of the label, log p/(1-p), the same unit for both methods; above zero the part raised the label.

- ``occlusion`` takes each part out and scores what is left: an exact difference, for any scorer (Zeiler and Fergus
  2014; Li, Monroe and Jurafsky 2016). Parts that say the same thing twice hide each other.
- ``gradients`` are integrated gradients (Sundararajan, Taly and Yan 2017), for torch artifacts: see gradients.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.assess import spans
from model.data import check_label, own_label
from model.errors import DataError
from model.scoring import Scorer, check_head, decide, load_scorer

METHODS = ("occlusion", "gradients")
PARTS_MAX = 128  # more words or characters than this are taken in runs of neighbours
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the text and what it did. start, end: characters of the original text. logit: its weight in log-odds;
    probability: by how much the label's probability falls without it (occlusion only)."""

    start: int
    end: int
    text: str
    logit: float
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Weights of a text's parts on one label of one head.

    probability, logit: of the label on the whole text. base_logit: the log-odds with nothing read, from which the
    gradients' weights add up to ``logit``; error: by how much they fail to, as a share of the way (both None for
    occlusion, whose weights need not add up). parts: in the order of the text, not overlapping.
    """

    head: str
    label: str
    method: str
    text: str
    probability: float
    logit: float
    parts: tuple[Part, ...]
    base_logit: float | None = None
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"parts": [asdict(part) for part in self.parts]}


def explain(
    model: Scorer | Path | str, head: str, text: str, label: str | None = None, method: str = "occlusion"
) -> Explanation:
    """Weigh the parts of ``text`` for ``label`` of ``head``; without a label, for the head's answer.

    ``model``: a scorer or an artifact folder. At most PARTS_MAX + 1 texts are scored. Raises DataError for an empty
    text, an unknown head, label or method, or gradients of a scorer that has none; ArtifactError for the folder.
    """
    scorer = load_scorer(Path(model)) if isinstance(model, str | Path) else model
    if method not in METHODS:
        raise DataError(f"method {method!r} is unknown; use {' or '.join(METHODS)}")
    labels = check_head(scorer, head)
    places = spans.units(text)
    if not places:
        raise DataError("the text is empty; there is nothing to explain")
    if label is not None:
        check_label(label := own_label(label, labels), head, labels, "--label")
    whole = _probabilities(scorer, head, [text])
    column = int(decide(scorer, head, whole)[0]) if label is None else labels.index(label)
    logit = float(log_odds(whole, column)[0])
    base, error = None, None
    if method == "occlusion":
        parts = _occluded(scorer, head, text, column, whole, spans.grouped(places, PARTS_MAX))
    else:
        from model.assess.gradients import integrated_gradients  # lazy: occlusion needs no torch
        from model.torch_scorer import TorchScorer

        if not isinstance(scorer, TorchScorer):
            raise DataError("gradients need a torch artifact; use the method occlusion")
        path = integrated_gradients(scorer, head, text, column)
        base, error = path.base_logit, path.error
        joined = spans.merged([*places, *path.weights])  # a word piece of several characters makes them one part
        parts = _gathered(text, path.weights, spans.grouped(joined, PARTS_MAX))
    return Explanation(
        head, labels[column], method, text, float(whole[0, column]), logit, tuple(parts), base_logit=base, error=error
    )


def log_odds(probabilities: npt.NDArray[Any], column: int) -> npt.NDArray[np.float64]:
    """log p/(1-p) of one class, float64 [n], of probabilities [n, C]; 1-p is summed from the others, which keeps its
    digits where p is close to one."""
    values = np.asarray(probabilities, np.float64)
    others = np.delete(values, column, axis=1).sum(1)
    return np.asarray(np.log(np.maximum(values[:, column], 1e-30)) - np.log(np.maximum(others, 1e-30)))


def _occluded(
    scorer: Scorer, head: str, text: str, column: int, whole: npt.NDArray[Any], places: Sequence[spans.Span]
) -> list[Part]:
    left = _probabilities(scorer, head, [spans.without(text, place) for place in places])
    logits = log_odds(whole, column) - log_odds(left, column)
    falls = whole[0, column].astype(np.float64) - left[:, column]
    return [
        Part(start, end, text[start:end], float(logit), float(fall))
        for (start, end), logit, fall in zip(places, logits, falls, strict=True)
    ]


def _gathered(text: str, weights: Mapping[spans.Span, float], places: Sequence[spans.Span]) -> list[Part]:
    """The weights summed by the place that holds them. Places are disjoint and cover every weighted span."""
    starts = [start for start, _ in places]
    sums: list[list[float]] = [[] for _ in places]
    for (start, _), weight in weights.items():
        sums[int(np.searchsorted(starts, start, "right")) - 1].append(weight)
    return [Part(start, end, text[start:end], math.fsum(own)) for (start, end), own in zip(places, sums, strict=True)]


def _probabilities(scorer: Scorer, head: str, texts: Sequence[str]) -> npt.NDArray[Any]:
    batches = (texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH))
    return np.concatenate([scorer.classify(head, scorer.encode(scorer.prepare(batch))) for batch in batches])
