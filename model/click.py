"""The click head: p(click | impression) and p(purchase | click) of a user and an item, from their states.

Features (`features`, one function for training and serving), all as of the event's time:

    globals        user known, item known, has text, log seconds since the user's and the item's last event
    for each scale dot and cosine of the item's vector with what the user liked and with what they passed over
                   (shown - liked), contrast (liked - rate * shown), length of liked, and the decayed counts
                   (shown, clicked, purchased) of the user and of the item

The head turns counts into smoothed log-odds relative to the base rate, so that a user of average liking reads as 0 in
every shop, standardises, and asks a few small perceptrons. Without an artifact (`ClickHead.counts_only`) the relative
log-odds of user and item are simply added. A shop's own base rate b replaces the training data's b0 in both places:
in the smoothing, and as a shift of the logit by log(b / (1 - b)) - log(b0 / (1 - b0)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.errors import ArtifactError
from model.scoring import Floats, Scorer
from model.state import I64, States

Array = npt.NDArray[np.float64]
Row = dict[str, Any]

SCALES_S: Final = (600.0, 86400.0, 3 * 365 * 86400.0)
"""Time scales of a head fitted without saying otherwise; as ``profiles.scales_s``."""
GLOBALS: Final = ("user_known", "item_known", "has_text", "user_age", "item_age")
BLOCK: Final = (
    *("dot_liked", "cos_liked", "dot_passed", "cos_passed", "contrast", "norm_liked"),
    *("user_shown", "user_clicked", "user_purchased"),
    *("item_shown", "item_clicked", "item_purchased"),
)
STRENGTHS: Final = (1.0, 3.0, 8.0, 20.0)
"""Pseudo-counts of the smoothed rates: how much must be seen before a rate is believed."""
INPUT_LIMIT: Final = 5.0
"""Standardised inputs are cut here: a count far beyond training must not swing the score."""


def features(
    users: States,
    items: States,
    item_vectors: Floats,
    event_time_ms: I64,
    contexts: Sequence[Mapping[str, float | str]] | None = None,
) -> Floats:
    """Features of ``n`` pairs of user and item, float32 [n, len(GLOBALS) + S * len(BLOCK)].

    users, items    their states, absent ones cold; item_vectors [n, 64]; event_time_ms [n].
    contexts        what the event says besides (price, device, ...): no shipped head was trained with any, so none is
                    read; the argument stands for heads that are.
    """
    vectors = np.asarray(item_vectors, np.float64)
    times = np.asarray(event_time_ms, np.int64)
    n, s = len(times), len(users.scales_s)
    out = np.empty((n, len(GLOBALS) + s * len(BLOCK)), np.float32)
    out[:, 0], out[:, 1] = users.present, items.present
    out[:, 2] = vectors.any(axis=1)
    out[:, 3], out[:, 4] = np.log1p(_age_s(users, times)), np.log1p(_age_s(items, times))

    user_decay, item_decay = _decay(users, times), _decay(items, times)  # [n, S]
    shown, liked = users.sums[:, 0], users.sums[:, 1]  # [n, S, 64]
    passed = shown - liked
    dot_shown, dot_liked = (np.einsum("nsd,nd->ns", sums, vectors) * user_decay for sums in (shown, liked))
    norm_liked, norm_passed = (np.linalg.norm(sums, axis=2) * user_decay for sums in (liked, passed))
    dot_passed = dot_shown - dot_liked
    w_shown, w_liked = users.weights[:, 0] * user_decay, users.weights[:, 1] * user_decay
    user_counts, item_counts = users.counts * user_decay[:, :, None], items.counts * item_decay[:, :, None]
    rate = users.counts[:, :, 1] / np.maximum(users.counts[:, :, 0], 1e-9)

    block = out[:, len(GLOBALS) :].reshape(n, s, len(BLOCK))
    block[:, :, 0] = dot_liked / (w_liked + 1)
    block[:, :, 1] = dot_liked / np.maximum(norm_liked, 1e-9)
    block[:, :, 2] = dot_passed / (np.maximum(w_shown - w_liked, 0) + 1)
    block[:, :, 3] = dot_passed / np.maximum(norm_passed, 1e-9)
    block[:, :, 4] = (dot_liked - np.minimum(rate, 1) * dot_shown) / (w_shown + 1)
    block[:, :, 5] = norm_liked / (w_liked + 1)
    block[:, :, 6:9], block[:, :, 9:12] = user_counts, item_counts
    return out


def click_inputs(rows: Floats, base_rate: float) -> Array:
    """What the click perceptrons see of features [n, F]: rates become log-odds relative to ``base_rate``."""
    heads, blocks = _split(rows)
    columns = [heads, *np.moveaxis(blocks[:, :, :6], 2, 0)]
    for shown, clicked in ((6, 7), (9, 10)):
        columns.append(np.log1p(blocks[:, :, shown]))
        columns += [relative_odds(blocks[:, :, clicked], blocks[:, :, shown], base_rate, k) for k in STRENGTHS]
    return np.concatenate(columns, axis=1)


def purchase_inputs(rows: Floats, base_rate: float) -> Array:
    """What the purchase perceptrons see: counts alone, no text; purchases over clicks relative to ``base_rate``."""
    heads, blocks = _split(rows)
    columns = [heads[:, [0, 1, 3, 4]]]
    for clicked, purchased in ((7, 8), (10, 11)):
        columns += [np.log1p(blocks[:, :, clicked]), np.log1p(blocks[:, :, purchased])]
        columns += [relative_odds(blocks[:, :, purchased], blocks[:, :, clicked], base_rate, k) for k in STRENGTHS]
    return np.concatenate(columns, axis=1)


def relative_odds(hits: Array, trials: Array, base_rate: float, strength: float) -> Array:
    """Log-odds of a rate smoothed by ``strength`` pseudo-trials at the base rate, less the base rate's: 0 = average."""
    hits = np.minimum(hits, trials)  # decay and reviews may leave a hit without its trial
    return np.log(hits + strength * base_rate) - np.log(trials - hits + strength * (1 - base_rate)) - odds(base_rate)


def odds(rate: float) -> float:
    """log(rate / (1 - rate))."""
    return float(np.log(rate) - np.log1p(-rate))


@dataclass(frozen=True, slots=True)
class Perceptrons:
    """A few small perceptrons on the same standardised inputs; their logits are averaged.

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
        hidden = np.maximum(np.einsum("nd,kdh->nkh", x, self.weight1, optimize=True) + self.bias1, 0)
        return np.asarray((np.einsum("nkh,kh->nk", hidden, self.weight2) + self.bias2).mean(axis=1))

    def tensors(self, prefix: str) -> dict[str, Floats]:
        """Float32 tensors for an artifact, named ``prefix.mean`` and so on."""
        return {f"{prefix}.{name}": getattr(self, name).astype(np.float32) for name in self.__slots__}

    @classmethod
    def of(cls, scorer: Scorer, prefix: str) -> Perceptrons:
        """From a scorer's tensors. Raises KeyError when it has none."""
        return cls(*(scorer.tensor(f"{prefix}.{name}").astype(np.float64) for name in cls.__slots__))


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
    ) -> None:
        """``base_rate`` is the shop's own share of clicked impressions; None keeps the training data's."""
        self._click, self._purchase = click, purchase
        self._purchase_rate = fitted_purchase_rate
        self._click_rate = base_rate if base_rate is not None else fitted_click_rate
        # Inputs are relative to the shop's rate, so the perceptrons answer as if at the fitted one.
        self._shift = odds(self._click_rate) - odds(fitted_click_rate)
        self.scales_s = tuple(float(scale) for scale in scales_s)

    @classmethod
    def from_scorer(
        cls, scorer: Scorer, base_rate: float | None = None, scales_s: Sequence[float] | None = None
    ) -> ClickHead:
        """The artifact's head; counts alone where it has none.

        Raises ArtifactError when the head was fitted for other time scales than ``scales_s`` (None: not checked).
        """
        try:
            rates = scorer.tensor("click.rates").astype(np.float64)
            fitted_scales = scorer.tensor("click.scales_s").astype(np.float64)
            click, purchase = Perceptrons.of(scorer, "click.click"), Perceptrons.of(scorer, "click.purchase")
        except KeyError:
            return cls.counts_only(base_rate, scales_s or SCALES_S)
        if scales_s is not None and not np.array_equal(np.asarray(scales_s, np.float32), fitted_scales):
            raise ArtifactError(
                f"the click head was fitted for time scales {fitted_scales.tolist()} s, profiles.scales_s is"
                f" {list(scales_s)}; use the same, or fit it again (python -m model.click --artifact DIR --data DIR)"
            )
        return cls(
            click,
            purchase,
            fitted_click_rate=float(rates[0]),
            fitted_purchase_rate=float(rates[1]),
            scales_s=fitted_scales.tolist(),
            base_rate=base_rate,
        )

    @classmethod
    def counts_only(cls, base_rate: float | None = None, scales_s: Sequence[float] = SCALES_S) -> ClickHead:
        """Nothing learned: the relative log-odds of user and item at the longest scale, added to the base rate's.

        The rates it begins from are a common shop's: 2 % of impressions clicked, 3 % of clicks bought.
        """
        return cls(
            None, None, fitted_click_rate=0.02, fitted_purchase_rate=0.03, scales_s=scales_s, base_rate=base_rate
        )

    def click(self, rows: Floats) -> Floats:
        """p(click | impression) of features [n, F], float32 [n]."""
        if self._click is None:
            logits = odds(self._click_rate) + _added(rows, ((7, 6), (10, 9)), self._click_rate)
        else:
            logits = self._click.logits(click_inputs(rows, self._click_rate)) + self._shift
        return _sigmoid(logits)

    def purchase(self, rows: Floats) -> Floats:
        """p(purchase | click) of features [n, F], float32 [n]."""
        if self._purchase is None:
            logits = odds(self._purchase_rate) + _added(rows, ((8, 7), (11, 10)), self._purchase_rate)
        else:
            logits = self._purchase.logits(purchase_inputs(rows, self._purchase_rate))
        return _sigmoid(logits)


def evaluate(scorer: Scorer, data_rows: Sequence[Row], history_rows: Sequence[Row] = ()) -> dict[str, Any]:
    """Progressive figures over rows of the data sets' form: no label delay, events of one time never see each other.

    Rows with ``clicked`` (user_id, item_id, title, ts) give task ``click``; rows with ``action`` and ``day`` give
    ``purchase``, judged on the clicks whose seven days are over. Raises DataError.
    """
    from model.clicklog import evaluate_log  # lazy: serving needs none of it

    return evaluate_log(scorer, data_rows, history_rows)


def _split(rows: Floats) -> tuple[Array, Array]:
    """Globals [n, G] and blocks [n, S, B]."""
    wide = np.asarray(rows, np.float64)
    return wide[:, : len(GLOBALS)], wide[:, len(GLOBALS) :].reshape(len(wide), -1, len(BLOCK))


def _added(rows: Floats, pairs: Sequence[tuple[int, int]], base_rate: float) -> Array:
    longest = _split(rows)[1][:, -1]
    return np.asarray(
        sum(relative_odds(longest[:, hits], longest[:, trials], base_rate, STRENGTHS[2]) for hits, trials in pairs)
    )


def _age_s(states: States, times: I64) -> Array:
    return np.where(states.present, np.maximum(times - states.time_ms, 0) / 1000.0, 0.0)


def _decay(states: States, times: I64) -> Array:
    return np.exp(-_age_s(states, times)[:, None] / states.scales_s)


def _sigmoid(logits: Array) -> Floats:
    return (1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30)))).astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m model.click --artifact DIR --data DIR``: fit the head and add it to the artifact."""
    import argparse

    from model.clickfit import fit_into

    parser = argparse.ArgumentParser(prog="python -m model.click", description="Fit the click head of an artifact.")
    parser.add_argument("--artifact", type=Path, required=True, help="folder of the artifact; its head is replaced")
    parser.add_argument("--data", type=Path, required=True, help="folder with clicks_ml1m and tmall_actions")
    parser.add_argument("--scales-s", type=float, nargs="+", default=SCALES_S, help="as profiles.scales_s")
    chosen = parser.parse_args(arguments)
    fit_into(chosen.artifact, chosen.data, tuple(chosen.scales_s))


if __name__ == "__main__":
    main()
