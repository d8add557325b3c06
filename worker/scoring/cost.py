"""How long a batch will take: a line fitted online. Pure."""

from __future__ import annotations

from typing import Final

OUTLIER: Final = 4.0
"""One batch alone counts as at most so many times what was expected, so that a stall does not rule; two in a row, or
the very first, are believed as they are."""
PRIOR_TOKENS: Final = (64, 1024)


class CostModel:
    """Seconds of a batch, t = a + b * tokens, fitted by least squares with exponential forgetting; a, b >= 0."""

    def __init__(self, a_s: float = 0.005, b_s: float = 5e-5, forget: float = 0.98) -> None:
        self._forget = forget
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        self.a_s, self.b_s = a_s, b_s
        self._surprised = True
        # The first guess weighs as much as two batches, and not large ones: they would rule the slope for long.
        for tokens in PRIOR_TOKENS:
            self._add(tokens, a_s + b_s * tokens)

    def observe(self, tokens: int, seconds: float) -> None:
        """One batch took this long."""
        most = OUTLIER * self.seconds(tokens)
        believed, self._surprised = self._surprised, seconds > most
        self._add(tokens, seconds if believed or most == 0 else min(seconds, most))
        spread = self._n * self._xx - self._x * self._x
        slope = (self._n * self._xy - self._x * self._y) / spread if spread > 1e-9 * self._n * self._xx else self.b_s
        self.b_s = max(slope, 0.0)
        self.a_s = max((self._y - self.b_s * self._x) / self._n, 0.0)
        if self.a_s == 0.0 and self._x > 0:
            self.b_s = self._y / self._x

    def seconds(self, tokens: int) -> float:
        """Expected time of a batch."""
        return self.a_s + self.b_s * tokens

    def tokens_within(self, seconds: float) -> float:
        """How many tokens fit into a time; infinite where tokens cost nothing."""
        return (seconds - self.a_s) / self.b_s if self.b_s > 0 else float("inf")

    @property
    def tokens_worth(self) -> float:
        """Tokens that cost as much as the batch itself: in a smaller batch most of the time is overhead."""
        return self.a_s / self.b_s if self.b_s > 0 else 0.0

    def _add(self, tokens: int, seconds: float) -> None:
        f = self._forget
        self._n = f * self._n + 1.0
        self._x = f * self._x + tokens
        self._y = f * self._y + seconds
        self._xx = f * self._xx + float(tokens) * tokens
        self._xy = f * self._xy + tokens * seconds
