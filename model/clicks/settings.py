"""The recipe's ``click:`` section, and what its values may be."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.clicks.context import ContextFeature
from model.clicks.delay import Delay
from model.clicks.head import SCALES_S
from model.clicks.rows import PURCHASE_WINDOW_S
from model.errors import DataError


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

    @property
    def delay(self) -> Delay:
        """How late outcomes are known, the impression itself being folded at once."""
        later = self.purchase_delay_s
        return Delay(int(1000 * self.delay_s), purchase_ms=None if later is None else int(1000 * later))


def check_click(click: ClickSettings, where: str) -> None:
    """Raises DataError, naming ``where`` (file and section) and the key, for a value that cannot be."""
    if not click.file:
        raise DataError(f"{where}.file: name the file of impressions that the head is fitted on")
    if len(click.headlines) not in (0, 2):
        raise DataError(f"{where}.headlines: {click.headlines} are not two files, of train and valid rows, or none")
    if not click.scales_s:
        raise DataError(f"{where}.scales_s: {click.scales_s} are no seconds; give those of profiles.scales_s")
    _check_above([*click.scales_s], f"{where}.scales_s")
    if any(a >= b for a, b in itertools.pairwise(click.scales_s)):
        raise DataError(f"{where}.scales_s: {click.scales_s} do not rise")
    for key in ("window_s", "purchase_window_s", "negative_rate"):
        _check_above([getattr(click, key)], f"{where}.{key}")
    for key in ("delay_s", "purchase_delay_s"):
        if (value := getattr(click, key)) is not None and value < 0:
            raise DataError(f"{where}.{key}: {value} must be at least 0")
    if click.negative_rate > 1:
        raise DataError(f"{where}.negative_rate: {click.negative_rate} is no share; 1 keeps every impression")
    twice = [name for name, count in Counter(feature.name for feature in click.context).items() if count > 1]
    if twice:
        raise DataError(f"{where}.context: {twice[0]!r} is named twice")


def _check_above(values: Sequence[float | None], where: str) -> None:
    for value in values:
        if value is not None and value <= 0:
            raise DataError(f"{where}: {value} must be above 0")
