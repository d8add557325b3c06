"""Hours of a subject, as they close: into the season, and into the slow burn's CUSUM. Pure.

An hour that an alert of a surge stood in is missing from the season. The CUSUM's step is capped, so that one bad hour
does not make a burn, and so is its height, so that a burn that is over is soon told to be.
"""

from __future__ import annotations

from typing import Final

from worker.alerts.baseline import burn_step
from worker.alerts.expectation import long_run
from worker.alerts.rules import Rule
from worker.alerts.season import DAYS_MIN, MISSING, Season
from worker.alerts.subject_state import BLOCK_MINUTES, BLOCKS, MILLIONTHS, SubjectState

CLOSE_AFTER_MINUTES: Final = 30
BURN_FACTOR: Final = 1.8
"""Odds of a negative that a slow burn is looked for at, over the expected ones."""
BURN_STEPS_MIN: Final = 5
"""Hours that a burn takes to reach its threshold at least."""


def close_hours(state: SubjectState, season: Season, now_minute: int, burn: Rule | None) -> None:
    """Put the hours that ended `CLOSE_AFTER_MINUTES` ago or more into the season; forget blocks older than needed."""
    last = (now_minute - CLOSE_AFTER_MINUTES) // 60 - 1
    sums: dict[int, list[int]] = {}
    for number, (negative, total, alarmed) in state.blocks.items():
        held = sums.setdefault(number * BLOCK_MINUTES // 60, [0, 0, 0])
        held[0], held[1], held[2] = held[0] + negative, held[1] + total, held[2] + alarmed
    surge = state.alerts.get("surge")
    for hour in sorted(each for each in {*sums, last} if state.next_hour <= each <= last):
        negative, total, alarmed = sums.get(hour, [0, 0, 0])
        if burn is not None and total:
            _burn(state, season, hour, (negative / MILLIONTHS, total), burn)
        if alarmed or (surge is not None and surge.first_minute < 60 * hour + 60):
            season.put(hour, MISSING, MISSING)
        else:
            season.put(hour, negative / MILLIONTHS, total)
    state.next_hour = last + 1
    oldest = now_minute // BLOCK_MINUTES - BLOCKS
    for number in [number for number in state.blocks if number < oldest]:
        del state.blocks[number]


def _burn(state: SubjectState, season: Season, hour: int, counts: tuple[float, int], rule: Rule) -> None:
    if hour - season.first_hour < 24 * DAYS_MIN:
        return
    expected = long_run(season, hour)
    if expected is None:
        return
    cap = rule.threshold / BURN_STEPS_MIN
    step = min(max(burn_step(*counts, expected, BURN_FACTOR), -2 * cap), cap)
    before, state.burn = state.burn, min(max(0.0, state.burn + step), 2 * rule.threshold)
    if before == 0.0 and state.burn > 0.0:
        state.burn_hour = hour
