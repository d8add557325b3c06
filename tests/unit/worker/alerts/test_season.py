"""Two weeks of hours: what they forecast, and what does not move the forecast."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.folds import FormatError
from worker.alerts.season import DAYS, ERROR_MIN, HOURS, MISSING, Season

FIRST = 24 * 20_454


def usual(hour: int) -> float:
    """Forty an hour by night, 240 by day."""
    return 240.0 if 8 <= hour % 24 < 20 else 40.0


def filled(days: int, share: float = 0.2, weekday: float = 1.0) -> Season:
    season = Season()
    for hour in range(FIRST, FIRST + 24 * days):
        total = usual(hour) * (weekday if hour // 24 % 7 == 3 else 1.0)
        season.put(hour, share * total, total)
    return season


def test_nothing_is_forecast_before_three_days() -> None:
    assert filled(2).forecast((FIRST + 50) * 60) is None
    assert filled(3).forecast((FIRST + 73) * 60) is not None


def test_night_and_day_are_told_apart_and_joined_by_a_straight_line() -> None:
    season, day = filled(7), FIRST + 24 * 7
    by_night, by_day = season.forecast((day + 3) * 60 + 30), season.forecast((day + 14) * 60 + 30)
    morning = season.forecast((day + 8) * 60)
    assert by_night is not None
    assert by_day is not None
    assert morning is not None
    assert by_night.total == pytest.approx(40 / 60)
    assert by_day.total == pytest.approx(4.0)
    assert by_day.negative == pytest.approx(0.8)
    assert by_day.relative_error == ERROR_MIN
    assert morning.total == pytest.approx(140 / 60)


def test_one_day_of_burst_promotion_or_outage_moves_nothing() -> None:
    season, plain = filled(7), filled(7)
    for hour in range(FIRST + 24 * 5, FIRST + 24 * 6):
        season.put(hour, 0.0, 0.0 if hour % 2 else 100_000.0)
    at = (FIRST + 24 * 7 + 14) * 60 + 30
    assert season.forecast(at) == plain.forecast(at)


def test_a_missing_hour_is_no_zero() -> None:
    season = filled(3)
    season.put(FIRST + 24 * 2 + 14, MISSING, MISSING)
    season.put(FIRST + 24 + 14, MISSING, MISSING)
    forecast = season.forecast((FIRST + 72 + 14) * 60 + 30)
    assert forecast is not None
    assert forecast.total == pytest.approx(4.0)


def test_a_busy_weekday_is_known_after_a_week() -> None:
    season = filled(14, weekday=2.0)
    days = {day % 7: FIRST + 24 * (14 + day - (FIRST // 24 + 14) % 7) for day in range(7)}
    at = {weekday: season.forecast((day + 14) * 60 + 30) for weekday, day in days.items()}
    busy = at[3]
    other = at[5]
    assert busy is not None
    assert other is not None
    assert busy.total > 1.5 * other.total


def test_the_long_run_share_forgets_the_odd_day() -> None:
    season = filled(10)
    for hour in range(FIRST + 24 * 6, FIRST + 24 * 7):
        season.put(hour, usual(hour), usual(hour))
    share = season.share(FIRST + 24 * 10)
    assert share is not None
    assert share.share == pytest.approx(0.2, abs=0.01)
    assert Season().share(FIRST) is None


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), days=st.integers(1, 20))
def test_bytes_give_the_same_season_back(seed: int, days: int) -> None:
    rng, season = random.Random(seed), Season()
    hour = FIRST
    while hour < FIRST + 24 * days:
        season.put(hour, rng.random() * 9, rng.randrange(100))
        hour += rng.choice([1, 1, 1, 2, 30])
    again = Season.from_bytes(season.to_bytes())
    assert again.to_bytes() == season.to_bytes()
    assert len(season.to_bytes()) < 8 * HOURS + 100
    assert again.known_days <= DAYS
    for minute in range(60 * hour, 60 * hour + 1440, 97):
        assert again.forecast(minute) == season.forecast(minute)
    assert again.share(hour) == season.share(hour)


def test_hours_closed_twice_are_put_once() -> None:
    season, again = filled(4), filled(4)
    for hour in range(FIRST + 80, FIRST + 96):
        again.put(hour, 0.2 * usual(hour), usual(hour))
    assert again.to_bytes() == season.to_bytes()


def test_after_a_long_absence_the_old_hours_are_gone() -> None:
    season = filled(5)
    season.put(FIRST + 10 * HOURS, 1.0, 5.0)
    assert season.peak == 5.0
    assert season.share(FIRST + 10 * HOURS + 1) is not None


@pytest.mark.parametrize("data", [b"", b"\x09", b"\x01\x90", filled(1).to_bytes()[:-5]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="alert season"):
        Season.from_bytes(data)
