"""The recipe's ``click:`` section, with the checks that need nothing but the section itself."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from model.clicks.context import ContextFeature
from model.clicks.delay import Delay
from model.clicks.head import SCALES_S
from model.clicks.rows import PURCHASE_WINDOW_S
from model.errors import DataError

_OPTIONAL: Final = ("window_s", "purchase_delay_s")
_POSITIVE: Final = ("window_s", "purchase_window_s", "negative_rate")


@dataclass(frozen=True)
class ClickSettings:
    """What the click and purchase heads are fitted on, and how.

    file               impressions: user_id, item_id, ts in seconds, clicked; title, context, purchased where there are
    actions            shop actions (user_id, item_id, ts or day, action) that purchases are learned from; without,
                       the impressions' own ``purchased`` is, and where they tell none, counts alone answer
    valid              all impressions of a time after that of ``file``, for the figures; passed over when not there
    headlines          train and valid file of A/B tests (test_id, headline, impressions, clicks): measured only, and
                       passed over when not there
    source             where the logs are from and under what licence, for the model card
    scales_s           time scales of the states, rising; as profiles.scales_s
    context            features to read of the context
    window_s           attribution window of clicks that are not told; None: every impression tells
    purchase_window_s  attribution window of purchases
    negative_rate      share of the unclicked impressions that ``file`` kept
    delay_s            how long after an impression its click is known in service
    purchase_delay_s   the same of its purchase; None: known with the click
    """

    file: str
    actions: str = ""
    valid: str = ""
    headlines: list[str] = field(default_factory=list)
    source: str = ""
    scales_s: list[float] = field(default_factory=lambda: list(SCALES_S))
    context: list[ContextFeature] = field(default_factory=list)
    window_s: float | None = None
    purchase_window_s: float = PURCHASE_WINDOW_S
    negative_rate: float = 1.0
    delay_s: float = 0.0
    purchase_delay_s: float | None = None

    def __post_init__(self) -> None:
        """Raises DataError naming the key whose value cannot be."""
        if not isinstance(self.file, str) or not self.file:
            raise DataError("click.file: name the file of impressions that the head is fitted on")
        for key in ("actions", "valid", "source"):
            if not isinstance(getattr(self, key), str):
                raise DataError(f"click.{key}: {getattr(self, key)!r} is no text")
        files = self.headlines if isinstance(self.headlines, list | tuple) else [None]
        if len(files) not in (0, 2) or not all(isinstance(file, str) for file in files):
            raise DataError(f"click.headlines: {self.headlines!r} are not two files, of train and valid rows, or none")
        _check_scales(self.scales_s)
        for key in ("window_s", "purchase_window_s", "negative_rate", "delay_s", "purchase_delay_s"):
            if getattr(self, key) is not None or key not in _OPTIONAL:
                _check_number(getattr(self, key), key, positive=key in _POSITIVE)
        if self.negative_rate > 1:
            raise DataError(f"click.negative_rate: {self.negative_rate} is no share; 1 keeps every impression")
        twice = [name for name, count in Counter(feature.name for feature in self.context).items() if count > 1]
        if twice:
            raise DataError(f"click.context: {twice[0]!r} is named twice")

    @property
    def delay(self) -> Delay:
        """How late outcomes are known, the impression itself being folded at once."""
        later = self.purchase_delay_s
        return Delay(int(1000 * self.delay_s), purchase_ms=None if later is None else int(1000 * later))


def _check_number(value: Any, key: str, *, positive: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"click.{key}: {value!r} is no number")
    if not 0 <= value < math.inf or (positive and not value):
        raise DataError(f"click.{key}: {value} must be {'above' if positive else 'at least'} 0")


def _check_scales(scales_s: Any) -> None:
    if not isinstance(scales_s, list | tuple) or not scales_s:
        raise DataError(f"click.scales_s: {scales_s!r} are no seconds; give those of profiles.scales_s")
    for scale in scales_s:
        _check_number(scale, "scales_s", positive=True)
    if any(a >= b for a, b in itertools.pairwise(scales_s)):
        raise DataError(f"click.scales_s: {list(scales_s)} do not rise")
