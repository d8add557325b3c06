"""The click head: p(click | impression) and p(purchase | click) of a user and an item, from their states.

The head takes `model.clicks.features.features`, turns counts into smoothed log-odds relative to the base rate, so that
a user of average liking reads as 0 in every shop, standardises, and asks a few small perceptrons. Without an artifact
(`ClickHead.counts_only`) the relative log-odds of user and item are simply added. A shop's own base rate b replaces the
training data's b0 in both places: in the smoothing, and as a shift of the logit by odds(b) - odds(b0), where odds(b) =
log(b / (1 - b)).
Where a share r of the unclicked impressions was kept for training, the data's odds are 1 / r too high, and the head's
own base rate is corrected by log r.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog

from model.clicks.context import Context, ContextSpec, read_spec
from model.clicks.features import BLOCK as BLOCK
from model.clicks.features import GLOBALS as GLOBALS
from model.clicks.features import STRENGTHS, Parts, click_inputs, odds, purchase_inputs, relative_odds, split
from model.clicks.features import features as features
from model.errors import ArtifactError
from model.scoring import Floats, Scorer
from model.state import I64, States
from schemas.folds import VECTOR_SIZE

Array = npt.NDArray[np.float64]
Tensors = Callable[[str], npt.NDArray[Any]]
"""A tensor of an artifact by its name; KeyError where there is none."""

SCALES_S: Final = (60.0, 86400.0, 3 * 365 * 86400.0)
"""Time scales of a head fitted without saying otherwise; as ``profiles.scales_s``."""
VERSION: Final = 2
"""Of the head's tensors. Version 1, without this number, took sums in which every impression weighed one."""
PURCHASE_RATE: Final = 0.03
"""Share of clicks that are bought in a common shop: where no log says more."""
INPUT_LIMIT: Final = 5.0
"""Standardised inputs are cut here: a count far beyond training must not swing the score."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Perceptrons:
    """A few small perceptrons on the same standardised inputs; their logits are averaged.

    One of them may be a straight line: two hidden units, of z and of -z, add up to z.

    mean, scale [D]; weight1 [K, D, H], bias1 [K, H], weight2 [K, H], bias2 [K].
    """

    mean: Array
    scale: Array
    weight1: Array
    bias1: Array
    weight2: Array
    bias2: Array

    def logits(self, inputs: Array) -> Array:
        """Mean logit of inputs [n, D], [n]."""
        x = np.clip((inputs - self.mean) / self.scale, -INPUT_LIMIT, INPUT_LIMIT)
        side_by_side = np.moveaxis(self.weight1, 1, 0).reshape(len(self.mean), -1)  # [D, K * H]: one product for all
        hidden = np.maximum(x @ side_by_side + self.bias1.ravel(), 0)
        return np.asarray(hidden @ (self.weight2.ravel() / len(self.bias2)) + self.bias2.mean())

    def tensors(self, prefix: str) -> dict[str, Floats]:
        """Float32 tensors for an artifact, named ``prefix.mean`` and so on."""
        return {f"{prefix}.{name}": getattr(self, name).astype(np.float32) for name in self.__slots__}

    @classmethod
    def of(cls, tensor: Tensors, prefix: str) -> Perceptrons | None:
        """From an artifact's tensors; None where it has none of that prefix."""
        try:
            return cls(*(tensor(f"{prefix}.{name}").astype(np.float64) for name in cls.__slots__))
        except KeyError:
            return None


class ClickHead:
    """Click and purchase probabilities from features; see the module for what is computed."""

    def __init__(
        self,
        click: Perceptrons | None,
        purchase: Perceptrons | None,
        *,
        fitted_click_rate: float,
        fitted_purchase_rate: float,
        scales_s: Sequence[float],
        base_rate: float | None = None,
        negative_rate: float = 1.0,
        text: Array | None = None,
        context: ContextSpec = (),
    ) -> None:
        """Prefer `from_scorer` and `counts_only`.

        base_rate       the shop's own share of clicked impressions; None keeps the training data's
        negative_rate   share of the unclicked impressions that training kept
        text            [64] what an item's vector alone adds to the logit, an input of the click perceptrons
        """
        self._click, self._purchase = click, purchase
        self._purchase_rate = fitted_purchase_rate
        self._click_rate = base_rate if base_rate is not None else unsampled(fitted_click_rate, negative_rate)
        # Inputs are relative to the shop's rate, so the perceptrons answer as if at the fitted one.
        self._shift = odds(self._click_rate) - odds(fitted_click_rate)
        self._text = np.zeros(VECTOR_SIZE) if text is None else text
        self.scales_s = tuple(float(scale) for scale in scales_s)
        self.context = context

    @classmethod
    def from_scorer(
        cls, scorer: Scorer, base_rate: float | None = None, scales_s: Sequence[float] | None = None
    ) -> ClickHead:
        """The artifact's head, see `from_tensors`. Raises ArtifactError."""
        return cls.from_tensors(scorer.tensor, base_rate, scales_s)

    @classmethod
    def from_tensors(
        cls, tensor: Tensors, base_rate: float | None = None, scales_s: Sequence[float] | None = None
    ) -> ClickHead:
        """The head of these tensors; counts alone where there is none, or one of an older release, and for purchases
        where nothing was there to learn them from.

        Raises ArtifactError when the head was fitted for other time scales than ``scales_s`` (None: not checked).
        """
        try:
            rates = tensor("click.rates").astype(np.float64)
        except KeyError:
            return cls.counts_only(base_rate, scales_s or SCALES_S)
        try:
            version = int(tensor("click.version")[0])
        except KeyError:
            version = 1
        if version != VERSION:
            _log.warning("click head of another release is not used, counts alone are; fit it again", version=version)
            return cls.counts_only(base_rate, scales_s or SCALES_S)
        fitted_scales = tensor("click.scales_s").astype(np.float64)
        if scales_s is not None and not np.array_equal(np.asarray(scales_s, np.float32), fitted_scales):
            raise ArtifactError(
                f"the click head was fitted for time scales {fitted_scales.tolist()} s, profiles.scales_s is"
                f" {list(scales_s)}; use the same, or fit it again with click.scales_s in a recipe:"
                " millrace train --recipe RECIPE --data DIR --onto ARTIFACT --out DIR"
            )
        return cls(
            Perceptrons.of(tensor, "click.click"),
            Perceptrons.of(tensor, "click.purchase"),
            fitted_click_rate=float(rates[0]),
            fitted_purchase_rate=float(rates[1]),
            negative_rate=float(rates[2]),
            scales_s=fitted_scales.tolist(),
            base_rate=base_rate,
            text=tensor("click.text").astype(np.float64),
            context=read_spec(tensor("click.context")),
        )

    @classmethod
    def counts_only(cls, base_rate: float | None = None, scales_s: Sequence[float] = SCALES_S) -> ClickHead:
        """Nothing learned: the relative log-odds of user and item at the longest scale, added to the base rate's.

        The rates it begins from are a common shop's: 2 % of impressions clicked, `PURCHASE_RATE` of clicks bought.
        """
        return cls(
            None,
            None,
            fitted_click_rate=0.02,
            fitted_purchase_rate=PURCHASE_RATE,
            scales_s=scales_s,
            base_rate=base_rate,
        )

    def features(
        self,
        users: States,
        items: States,
        item_vectors: Floats,
        event_time_ms: I64,
        contexts: Sequence[Context] | None = None,
    ) -> Floats:
        """`model.clicks.features.features` with this head's context features, for scoring."""
        return features(users, items, item_vectors, event_time_ms, contexts, self.context)

    def click(self, rows: Floats) -> Floats:
        """p(click | impression) of features [n, F], float32 [n]."""
        parts = split(rows, len(self.scales_s))
        if self._click is None:
            logits = odds(self._click_rate) + _added(parts, "clicked", "shown", self._click_rate)
        else:
            inputs = click_inputs(parts, self._click_rate, parts.vectors @ self._text)
            logits = self._click.logits(inputs) + self._shift
        return _sigmoid(logits)

    def purchase(self, rows: Floats) -> Floats:
        """p(purchase | click) of features [n, F], float32 [n]."""
        parts = split(rows, len(self.scales_s))
        if self._purchase is None:
            logits = odds(self._purchase_rate) + _added(parts, "purchased", "clicked", self._purchase_rate)
        else:
            logits = self._purchase.logits(purchase_inputs(parts, self._purchase_rate))
        return _sigmoid(logits)


def unsampled(rate: float, negative_rate: float) -> float:
    """Base rate of the whole log, of whose unclicked impressions the share ``negative_rate`` was kept."""
    return rate * negative_rate / (rate * negative_rate + 1 - rate)


def _added(parts: Parts, hits: str, trials: str, base_rate: float) -> Array:
    return np.asarray(
        sum(
            relative_odds(parts.of(f"{who}_{hits}")[:, -1], parts.of(f"{who}_{trials}")[:, -1], base_rate, STRENGTHS[2])
            for who in ("user", "item")
        )
    )


def _sigmoid(logits: Array) -> Floats:
    return (1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30)))).astype(np.float32)
