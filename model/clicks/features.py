"""What the click head sees of a user, an item and a moment: one function for training and serving.

Features, all as of the event's time:

    globals        user known, item known, has text, log seconds since the user's and the item's last event
    for each scale dot and cosine of the item's vector with the user's surprise, its length; the decayed counts shown,
                   clicked, purchased and expected of the user and of the item; and the user's shown, clicked and
                   expected as they stood at the user's own last event (the last visit, however long ago)
    vector         the item's, 64 numbers
    context        see `model.clicks.context`

An impression adds to *shown* with the weight p that the head gave it, a click to *liked* with weight one. So the sum of
weights of shown is the number of clicks expected, and liked - shown, the surprise, is sum (clicked - p) v: the gradient
of the log-likelihood, taken one step along, which is a user's own logistic regression learned online. A user of many
clicks on items that everybody clicks is no surprise; the plain rate of clicks, which is kept too, cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from model.clicks.context import Context, ContextSpec, context_columns
from model.scoring import Floats
from model.state import I64, States
from schemas.folds import VECTOR_SIZE

Array = npt.NDArray[np.float64]

GLOBALS: Final = ("user_known", "item_known", "has_text", "user_age", "item_age")
BLOCK: Final = (
    *("dot_surprise", "cos_surprise", "norm_surprise"),
    *("user_shown", "user_clicked", "user_purchased", "user_expected"),
    *("item_shown", "item_clicked", "item_purchased", "item_expected"),
    *("last_shown", "last_clicked", "last_expected"),
)
STRENGTHS: Final = (1.0, 3.0, 8.0, 20.0)
"""Pseudo-counts of the smoothed rates: how much must be seen before a rate is believed."""
_AT: Final = {name: i for i, name in enumerate(BLOCK)}


def features(
    users: States,
    items: States,
    item_vectors: Floats,
    event_time_ms: I64,
    contexts: Sequence[Context] | None = None,
    spec: ContextSpec = (),
    *,
    fitting: bool = False,
) -> Floats:
    """Features of ``n`` pairs of user and item, float32 [n, len(GLOBALS) + S * len(BLOCK) + 64 + context].

    users, items    their states, absent ones cold; item_vectors [n, 64]; event_time_ms [n].
    contexts        what each event says besides, [n]; spec names what of it is read.
    fitting         whether features with a neutral value keep their own: only while a head is fitted.
    """
    vectors = np.asarray(item_vectors, np.float64)
    times = np.asarray(event_time_ms, np.int64)
    n, s = len(times), len(users.scales_s)
    context = context_columns(spec, contexts, n, fitting=fitting)
    cut = len(GLOBALS) + s * len(BLOCK)
    out = np.empty((n, cut + VECTOR_SIZE + context.shape[1]), np.float32)
    out[:, 0], out[:, 1] = users.present, items.present
    out[:, 2] = vectors.any(axis=1)
    user_age, item_age = _age_s(users, times), _age_s(items, times)
    out[:, 3], out[:, 4] = np.log1p(user_age), np.log1p(item_age)
    out[:, cut : cut + VECTOR_SIZE], out[:, cut + VECTOR_SIZE :] = vectors, context

    user_decay = np.exp(-user_age[:, None] / users.scales_s)  # [n, S]
    item_decay = np.exp(-item_age[:, None] / items.scales_s)
    surprise = users.sums[:, 1] - users.sums[:, 0]  # [n, S, 64]
    dot = np.matmul(surprise, vectors[:, :, None])[:, :, 0] * user_decay
    norm = np.sqrt(np.einsum("nsd,nsd->ns", surprise, surprise)) * user_decay
    # Reviews weigh without a count, answers may come without their impression: never more expected than was shown.
    shown, last_expected = users.counts[:, :, 0], np.minimum(users.weights[:, 0], users.counts[:, :, 0])
    expected = last_expected * user_decay
    # Fisher information of what was shown, p (1 - p) summed, by its mean: the step that so many events deserve.
    information = expected * (1 - last_expected / np.maximum(shown, 1e-9)) + 1

    block = out[:, len(GLOBALS) : cut].reshape(n, s, len(BLOCK))
    block[:, :, 0] = dot / information
    block[:, :, 1] = dot / np.maximum(norm, 1e-9)
    block[:, :, 2] = norm / information
    block[:, :, 3:6], block[:, :, 6] = users.counts * user_decay[:, :, None], expected
    block[:, :, 7:10] = items.counts * item_decay[:, :, None]
    block[:, :, 10] = np.minimum(items.weights[:, 0], items.counts[:, :, 0]) * item_decay
    block[:, :, 11:13], block[:, :, 13] = users.counts[:, :, :2], last_expected
    return out


class Parts(NamedTuple):
    """Features by kind: globals [n, G], blocks [n, S, B], vectors [n, 64], context [n, C]; float64."""

    heads: Array
    blocks: Array
    vectors: Array
    context: Array

    def of(self, name: str) -> Array:
        """A column of the blocks, [n, S]."""
        return self.blocks[:, :, _AT[name]]


def split(rows: Floats, scales: int) -> Parts:
    """Parts of features [n, F] for ``scales`` time scales."""
    wide = np.asarray(rows, np.float64)
    cut = len(GLOBALS) + scales * len(BLOCK)
    return Parts(
        wide[:, : len(GLOBALS)],
        wide[:, len(GLOBALS) : cut].reshape(len(wide), scales, len(BLOCK)),
        wide[:, cut : cut + VECTOR_SIZE],
        wide[:, cut + VECTOR_SIZE :],
    )


def click_inputs(parts: Parts, base_rate: float, text_logit: Array) -> Array:
    """What the click perceptrons see: rates become log-odds relative to ``base_rate``, and to what was expected.

    text_logit [n]: what the text alone says. Items count at the longest scale alone: an hour of one item is noise.
    """
    columns = [parts.heads, parts.of("dot_surprise"), parts.of("cos_surprise"), parts.of("norm_surprise")]
    for who, scales in (("user", slice(None)), ("last", slice(None, -1)), ("item", slice(-1, None))):
        shown, clicked, expected = (parts.of(f"{who}_{what}")[:, scales] for what in ("shown", "clicked", "expected"))
        columns.append(np.log1p(shown))
        for strength in STRENGTHS:
            rate = relative_odds(clicked, shown, base_rate, strength)
            columns += [rate, rate - relative_odds(expected, shown, base_rate, strength)]
    return np.concatenate([*columns, text_logit[:, None], parts.context], axis=1)


def purchase_inputs(parts: Parts, base_rate: float) -> Array:
    """What the purchase perceptrons see: counts alone, no text; purchases over clicks relative to ``base_rate``."""
    columns = [parts.heads[:, [0, 1, 3, 4]]]
    for who in ("user", "item"):
        clicked, purchased = parts.of(f"{who}_clicked"), parts.of(f"{who}_purchased")
        columns += [np.log1p(clicked), np.log1p(purchased)]
        columns += [relative_odds(purchased, clicked, base_rate, strength) for strength in STRENGTHS]
    return np.concatenate(columns, axis=1)


def relative_odds(hits: Array, trials: Array, base_rate: float, strength: float) -> Array:
    """Log-odds of a rate smoothed by ``strength`` pseudo-trials at the base rate, less the base rate's: 0 = average."""
    hits = np.minimum(hits, trials)  # decay and reviews may leave a hit without its trial
    return np.log(hits + strength * base_rate) - np.log(trials - hits + strength * (1 - base_rate)) - odds(base_rate)


def odds(rate: float) -> float:
    """log(rate / (1 - rate))."""
    return float(np.log(rate) - np.log1p(-rate))


def _age_s(states: States, times: I64) -> Array:
    return np.where(states.present, np.maximum(times - states.time_ms, 0) / 1000.0, 0.0)
