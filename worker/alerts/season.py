"""A subject's hours of the last two weeks, and what they make one expect at an hour of the week. Pure.

Forecast of an hour: the median over the days of the same hour of day, each divided by its weekday's factor, times the
factor of the day asked for. Its relative error comes from the same hours' MAD, less what chance alone explains.
Between the middles of two hours it runs straight. An hour that an alert stood in is missing, not a value; an hour that
nothing came in is a zero. All of it is a median over days, so one day's burst, promotion or outage does not move it.
"""

from __future__ import annotations

import sys
from array import array
from math import sqrt
from statistics import median
from typing import Final

import msgspec

from schemas.folds import FormatError
from worker.alerts.baseline import Expected, expected_share

FORMAT_VERSION: Final = 1
DAYS: Final = 14
HOURS: Final = 24 * DAYS
DAYS_MIN: Final = 3
"""Days of history from which on hours are forecast."""
WEEKDAY_DAYS_MIN: Final = 8
MISSING: Final = -1.0
ERROR_MIN: Final = 0.2
"""The least relative error a forecast is given credit for."""
ERROR_MAX: Final = 1.0
MAD_SIGMA: Final = 1.4826
SHARES_KEPT: Final = 4


class Forecast(msgspec.Struct, frozen=True):
    """Negative mass and opinions to expect in a minute, and the standard deviation as a share of either."""

    negative: float
    total: float
    relative_error: float


class _Stored(msgspec.Struct, array_like=True):
    first_hour: int
    last_hour: int
    negative: bytes
    total: bytes


class Season:
    """Two weeks of hours in a ring of float32: 2.7 kB. Hours are counted from the epoch; `put` takes them in order."""

    __slots__ = ("_factors", "_hours", "_negative", "_peak", "_shares", "_total", "first_hour", "last_hour")

    def __init__(self) -> None:
        self._negative = array("f", bytes(4 * HOURS))
        self._total = array("f", bytes(4 * HOURS))
        self.first_hour = self.last_hour = -1
        self._shares: dict[int, Expected | None] = {}
        self._forget_derived()

    def _forget_derived(self) -> None:
        self._hours: dict[int, Forecast] = {}
        self._factors: tuple[int, list[float]] | None = None
        self._peak: float | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> Season:
        """Season of the bytes of `to_bytes`. Raises `FormatError` when this release cannot read them."""
        if not data or data[0] != FORMAT_VERSION:
            found = data[0] if data else "nothing"
            raise FormatError(f"alert season: format version {found}, this release reads {FORMAT_VERSION}")
        season = cls()
        try:
            stored = msgspec.msgpack.decode(memoryview(data)[1:], type=_Stored)
        except msgspec.MsgspecError as error:
            raise FormatError(f"alert season: {error}") from error
        if len(stored.negative) != 4 * HOURS or len(stored.total) != 4 * HOURS:
            raise FormatError(f"alert season: {len(stored.total)} bytes of hours, expected {4 * HOURS}")
        season.first_hour, season.last_hour = stored.first_hour, stored.last_hour
        season._negative, season._total = _floats(stored.negative), _floats(stored.total)
        return season

    def to_bytes(self) -> bytes:
        """Format version, then msgpack; hours as little-endian float32."""
        stored = _Stored(self.first_hour, self.last_hour, _bytes(self._negative), _bytes(self._total))
        return bytes([FORMAT_VERSION]) + msgspec.msgpack.encode(stored)

    @property
    def known_days(self) -> float:
        """Days since the first hour, at most `DAYS`."""
        return min((self.last_hour - self.first_hour + 1) / 24, DAYS) if self.last_hour >= 0 else 0.0

    @property
    def peak(self) -> float:
        """Opinions in the busiest hour known."""
        if self._peak is None:
            self._peak = max(self._total)
        return self._peak

    def put(self, hour: int, negative: float, total: float) -> None:
        """What an hour held, or `MISSING` for both. The same hour again replaces it; hours left out held nothing."""
        if self.last_hour < 0:
            self.first_hour = hour
        elif hour > self.last_hour + HOURS:
            self._negative, self._total = array("f", bytes(4 * HOURS)), array("f", bytes(4 * HOURS))
        else:
            for empty in range(self.last_hour + 1, hour):
                self._negative[empty % HOURS] = self._total[empty % HOURS] = 0.0
        self._negative[hour % HOURS], self._total[hour % HOURS] = negative, total
        if any(hour < before for before in self._shares):
            self._shares.clear()
        self.last_hour = max(hour, self.last_hour)
        self.first_hour = max(self.first_hour, self.last_hour - HOURS + 1)
        self._forget_derived()

    def forecast(self, minute: float) -> Forecast | None:
        """What to expect in that minute; None before there are `DAYS_MIN` days of history."""
        if self.last_hour - self.first_hour + 1 < 24 * DAYS_MIN:
            return None
        place = minute / 60 - 0.5
        before = int(place // 1)
        part = place - before
        one, other = self._hour(before), self._hour(before + 1)
        return Forecast(
            (one.negative + (other.negative - one.negative) * part) / 60,
            (one.total + (other.total - one.total) * part) / 60,
            max(one.relative_error, other.relative_error),
        )

    def share(self, before_hour: int) -> Expected | None:
        """Long-run share of negatives, from whole days before ``before_hour``; None before there are any opinions.

        The days' median leaves out those three standard deviations off; the scatter between days widens it.
        """
        if before_hour not in self._shares:
            if len(self._shares) >= SHARES_KEPT:
                self._shares.clear()
            self._shares[before_hour] = self._share(before_hour)
        return self._shares[before_hour]

    def _share(self, before_hour: int) -> Expected | None:
        days: list[tuple[float, int]] = []
        if self.last_hour < 0:
            return None
        end = min(before_hour, self.last_hour + 1)
        # Two days short of the ring, so that no hour is overwritten while an estimate from it stands.
        first = max(self.first_hour, self.last_hour - HOURS + 1, end - 24 * (DAYS - 2))
        while end > first:
            negative = total = 0.0
            for hour in range(max(end - 24, first), end):
                held = self._total[hour % HOURS]
                if held > 0:
                    negative += self._negative[hour % HOURS]
                    total += held
            if total > 0:
                days.append((negative, round(total)))
            end -= 24
        return expected_share(days, (0.0, 0.0), 1)

    def _hour(self, hour: int) -> Forecast:
        found = self._hours.get(hour)
        if found is not None:
            return found
        factors = self._weekdays()
        negatives, totals = [], []
        # The newest hour of the same hour of day that is known, and the days before it.
        newest = self.last_hour - (self.last_hour - hour) % 24
        for known in range(newest, max(self.first_hour, self.last_hour - HOURS + 1) - 1, -24):
            total = self._total[known % HOURS]
            if total >= 0:
                factor = factors[known // 24 % 7]
                negatives.append(self._negative[known % HOURS] / factor)
                totals.append(total / factor)
        if not totals:
            found = Forecast(0.0, 0.0, ERROR_MAX)
        else:
            factor, centre = factors[hour // 24 % 7], median(totals)
            found = Forecast(median(negatives) * factor, centre * factor, _relative_error(totals, centre))
        self._hours[hour] = found
        return found

    def _weekdays(self) -> list[float]:
        """By day number modulo 7: how much more comes on that weekday, drawn towards 1 where few days say so."""
        today = (self.last_hour + 1) // 24
        if self._factors is not None and self._factors[0] == today:
            return self._factors[1]
        factors = [1.0] * 7
        first = -(-max(self.first_hour, self.last_hour - HOURS + 1) // 24)
        if today - first >= WEEKDAY_DAYS_MIN:
            days: dict[int, list[float]] = {}
            for day in range(first, today):
                hours = [self._total[hour % HOURS] for hour in range(24 * day, 24 * day + 24)]
                present = [total for total in hours if total >= 0]
                if len(present) >= 12:
                    days.setdefault(day % 7, []).append(24 * sum(present) / len(present))
            centre = median([total for totals in days.values() for total in totals] or [0.0])
            if centre > 0:
                for weekday, totals in days.items():
                    ratio = min(max(median(totals) / centre, 0.5), 2.0)
                    factors[weekday] = 1 + (ratio - 1) * len(totals) / (len(totals) + 1)
        self._factors = (today, factors)
        return factors


def _relative_error(totals: list[float], centre: float) -> float:
    if centre <= 0:
        return ERROR_MAX
    scatter = MAD_SIGMA * median(abs(total - centre) for total in totals) / centre
    return min(max(sqrt(max(scatter * scatter - 1 / centre, 0.0)), ERROR_MIN), ERROR_MAX)


def _floats(data: bytes) -> array[float]:
    values = array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _bytes(values: array[float]) -> bytes:
    if sys.byteorder == "big":
        values = array("f", values)
        values.byteswap()
    return values.tobytes()
