"""The arithmetic of alerts, pure: what is to be expected, how far counts are from it, and what a model's errors hide.

Expected share, an estimate that a burst does not move: five-minute blocks are joined where they hold fewer than
``min_volume`` opinions; around the blocks' median, those more than three standard deviations off, up or down, are left
out (a block has one vote whatever its volume, so neither a burst nor a promotion outvotes the rest); what is left is
averaged together with a prior of two opinions at `PRIOR_SHARE`. What its scatter exceeds the binomial by (Pearson's
X²/df) widens the test.

Share statistic: signed root of the likelihood ratio of window against baseline (G² test of two proportions, Wilks 1938;
close to a standard normal even for small counts), half an opinion taken off for continuity. It takes into account how
little a short baseline says. Volume statistic: the same for a Poisson count against its forecast, widened by the
forecast's own relative error.
"""

from __future__ import annotations

from math import log, sqrt
from statistics import median
from typing import Final

import msgspec

PRIOR_SHARE: Final = 0.2
PRIOR_WEIGHT: Final = 2.0
OUTLIER_SIGMA: Final = 3.0
MAX_DISPERSION: Final = 25.0


class Expected(msgspec.Struct, array_like=True, frozen=True):
    """Share of negatives to expect, the opinions that say so, and their scatter over the binomial's (>= 1)."""

    share: float
    weight: float
    dispersion: float


class ErrorRates(msgspec.Struct, frozen=True):
    """What the model says on average: mean p(negative) of truly negative texts, and of all others.

    ``corrected`` undoes it: with hard answers this is the estimator of Rogan and Gladen (1978), with probabilities the
    scaled probability average of Bella et al. (2010). A model that cannot tell the two apart is refused.
    """

    of_negatives: float = 1.0
    of_others: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.of_others < self.of_negatives <= 1:
            raise ValueError(f"mean p(negative) {self.of_negatives} of negatives and {self.of_others} of others")

    @property
    def gain(self) -> float:
        """How much the seen share rises when the true one rises by one."""
        return self.of_negatives - self.of_others

    def corrected(self, share: float) -> float:
        """The true share behind a seen one, within [0, 1]."""
        return min(max((share - self.of_others) / self.gain, 0.0), 1.0)


def expected_share(counts: list[tuple[float, int]], past: tuple[float, float], min_volume: int) -> Expected | None:
    """Share of negatives that blocks of (negative, total), newest first, and a longer past make one expect.

    None when they hold fewer than ``min_volume`` opinions. The method is at the module's head.
    """
    blocks = _joined(counts, min_volume)
    if past[1] >= 1:
        blocks.append(past)
    if sum(total for _, total in blocks) < min_volume:
        return None
    centre = median(negative / total for negative, total in blocks)
    kept = [block for block in blocks if _deviation(block, centre) <= OUTLIER_SIGMA] or blocks
    negative = sum(block[0] for block in kept) + PRIOR_SHARE * PRIOR_WEIGHT
    weight = sum(block[1] for block in kept) + PRIOR_WEIGHT
    share = min(max(negative / weight, 0.0), 1.0)
    dispersion = 1.0
    if len(kept) > 2:
        scatter = sum(_deviation(block, share) ** 2 for block in kept) / (len(kept) - 1)
        dispersion = min(max(scatter, 1.0), MAX_DISPERSION)
    return Expected(share, weight, dispersion)


def surge_score(negative: float, total: int, expected: Expected) -> float:
    """Standard deviations by which ``negative`` of ``total`` opinions exceed what was expected; below 0 when fewer."""
    if total == 0:
        return 0.0
    share, weight = max(negative - 0.5, 0.0) / total, expected.weight
    pooled = (share * total + expected.share * weight) / (total + weight)
    ratio = 2 * (total * _divergence(share, pooled) + weight * _divergence(expected.share, pooled))
    score = sqrt(max(ratio, 0.0) / expected.dispersion)
    return score if share > expected.share else -score


def volume_score(negative: float, forecast: float, relative_error: float) -> float:
    """Standard deviations by which a count of negatives exceeds its forecast; below 0 when it is less.

    ``relative_error``: standard deviation of the forecast as a share of itself.
    """
    count, forecast = max(negative - 0.5, 0.0), max(forecast, 1e-9)
    ratio = 2 * ((count * log(count / forecast) if count > 0 else 0.0) - (count - forecast))
    score = sqrt(max(ratio, 0.0) / (1 + relative_error * relative_error * forecast))
    return score if count > forecast else -score


def burn_step(negative: float, total: int, expected: Expected, factor: float) -> float:
    """What an hour adds to a CUSUM (Page 1954): the log-likelihood ratio of a share whose odds are ``factor`` times
    the expected ones against the expected share, over its dispersion."""
    before = min(max(expected.share, 0.005), 0.995)
    after = before * factor / (1 - before + before * factor)
    gain = negative * log(after / before) + (total - negative) * log((1 - after) / (1 - before))
    return gain / expected.dispersion


def _divergence(p: float, q: float) -> float:
    # Kullback-Leibler divergence of two coins. q is a mean of p and something else: it is 0 or 1 only where p is, or
    # so near that floats cannot tell.
    q = min(max(q, 1e-12), 1 - 1e-12)
    left = p * log(p / q) if p > 0 else 0.0
    right = (1 - p) * log((1 - p) / (1 - q)) if p < 1 else 0.0
    return left + right


def _deviation(block: tuple[float, float], share: float) -> float:
    # One opinion of either kind more keeps a share of 0 or 1 from being certain.
    negative, total = block
    smooth = (share * total + 1) / (total + 2)
    return abs(negative - share * total) / sqrt(total * smooth * (1 - smooth))


def _joined(counts: list[tuple[float, int]], min_volume: int) -> list[tuple[float, float]]:
    """Neighbours joined until each block holds ``min_volume`` opinions; a rest joins the last block."""
    blocks: list[tuple[float, float]] = []
    negative = total = 0.0
    for block in counts:
        negative, total = negative + block[0], total + block[1]
        if total >= min_volume:
            blocks.append((negative, total))
            negative = total = 0.0
    if total:
        last = blocks.pop() if blocks else (0.0, 0.0)
        blocks.append((last[0] + negative, last[1] + total))
    return blocks
