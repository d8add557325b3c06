"""What a subject's blocks and hours make one expect of the minutes after them. Pure.

Expected is the higher of lately (three hours of blocks) and the long run (days): neither the end of a promotion nor the
return from an outage looks like a surge, and a burst that goes on does not become its own measure within the day.
"""

from __future__ import annotations

from statistics import median
from typing import Final

import msgspec

from worker.alerts.baseline import Expected, expected_share
from worker.alerts.season import Season
from worker.alerts.subject_state import BLOCK_MINUTES, BLOCKS, MILLIONTHS, SubjectState

COARSE_BLOCKS: Final = 24
"""More blocks than these are joined by threes: enough of them are left to vote."""
LEVEL_BLOCKS: Final = 12
"""The blocks whose median is the level of lately."""
BASELINE_VOLUME_MIN: Final = 20
"""Opinions without which nothing is expected, so that nothing alarms."""
PAST_WEIGHT_MAX: Final = 200.0
"""Opinions that the long-run share counts for at most beside the blocks: it must not outvote lately."""
LONG_RUN_WEIGHT_MAX: Final = 2000.0
LONG_RUN_WEIGHT_MIN: Final = 100.0
"""Opinions from which on the long-run share stands for itself."""
TREND_MAX: Final = 3.0
_NOTHING: Final = (0, 0, 0)


class Lately(msgspec.Struct, frozen=True):
    """What the blocks say: the share to expect, and the negative mass of a minute now and by season."""

    expected: Expected
    negative: float
    trend: float


def estimate(state: SubjectState, season: Season, newest: int) -> Lately | None:
    """What blocks up to ``newest`` and the hours closed make one expect; None where they hold too little."""
    blocks = state.blocks
    counts: list[tuple[float, int]] = []
    level: list[tuple[float, int]] = []
    for number in range(newest, newest - BLOCKS, -1):
        mass, total, alarmed = blocks.get(number, _NOTHING)
        if not alarmed:
            if total:
                counts.append((mass / MILLIONTHS, total))
            if newest - number < LEVEL_BLOCKS:
                level.append((mass / MILLIONTHS, total))
    if len(counts) > COARSE_BLOCKS:
        counts = [
            (sum(each[0] for each in counts[i : i + 3]), sum(each[1] for each in counts[i : i + 3]))
            for i in range(0, len(counts), 3)
        ]
    expected = _expected(counts, season, state.next_hour)
    if expected is None:
        return None
    negative = median(each[0] for each in level) / BLOCK_MINUTES if level else 0.0
    usual = season.forecast((newest + 1) * BLOCK_MINUTES - LEVEL_BLOCKS * BLOCK_MINUTES // 2)
    trend = 1.0
    if level and usual is not None and usual.total > 0:
        came = sum(each[1] for each in level) / (len(level) * BLOCK_MINUTES)
        trend = min(max(came / usual.total, 1.0), TREND_MAX)
    return Lately(expected, negative, trend)


def long_run(season: Season, next_hour: int) -> Expected | None:
    """The long run's share, up to a day before what is judged, where it is long enough to stand for itself."""
    found = season.share(_yesterday(next_hour))
    return found if found is not None and found.weight >= LONG_RUN_WEIGHT_MIN else None


def _yesterday(next_hour: int) -> int:
    # Whole days, so that the estimate stands for a day.
    return 24 * ((next_hour - 24) // 24)


def _expected(counts: list[tuple[float, int]], season: Season, next_hour: int) -> Expected | None:
    """The higher of lately's share and the long run's, where the long run is long enough to stand for itself."""
    past = (0.0, 0.0)
    usual = season.share(_yesterday(next_hour))
    if usual is None and season.last_hour >= 0:
        usual = season.share(season.last_hour + 1)
    if usual is not None:
        weight = min(usual.weight, PAST_WEIGHT_MAX)
        past = (usual.share * weight, weight)
    expected = expected_share(counts, past, BASELINE_VOLUME_MIN)
    if expected is None or usual is None:
        return expected
    if usual.weight >= LONG_RUN_WEIGHT_MIN and usual.share > expected.share:
        weight = min(usual.weight, LONG_RUN_WEIGHT_MAX)
        return Expected(usual.share, weight, expected.dispersion)
    return expected
