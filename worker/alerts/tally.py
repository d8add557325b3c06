"""What has been counted of one subject, and what that makes one expect. Pure.

Negative mass is kept in whole millionths, so sums do not depend on order: any order of the same opinions within the
minutes kept gives the same counts.

Three scales of time, each cheaper than the last: minutes (half an hour of them), blocks of five minutes (three hours:
the level and share of lately), hours (two weeks, `worker.alerts.season`: what this hour of the week is like). Hours
close `CLOSE_AFTER_MINUTES` after their end.
"""

from __future__ import annotations

from typing import Final, Literal

from schemas.scores import Opinion
from worker.alerts.expectation import Lately, estimate
from worker.alerts.hours import CLOSE_AFTER_MINUTES, close_hours
from worker.alerts.rules import WINDOW_MINUTES_MAX, Rule
from worker.alerts.season import Season
from worker.alerts.subject_state import BLOCK_MINUTES, BLOCKS, MILLIONTHS, MINUTE_MS, SubjectState

LEAKED_ONE_IN: Final = 8
"""Of so many recognised copies, another one was edited beyond recognition (measured on edits of a word or two)."""
GAP_MINUTES: Final = 8
"""Minutes before now that say nothing of lately, so that a surge is not compared with its own beginning."""

Counted = Literal["counted", "apart", "repeat", "late"]


class Tally:
    """The counts of one subject. Bounds: minutes, blocks, hours, a mark a source partition, 64 texts, 64 authors."""

    __slots__ = ("_forecast_of", "_lately", "_season_due", "_state", "season")

    def __init__(self, state: SubjectState, season: Season, *, season_due: bool = False) -> None:
        """``season_due``: the season is not kept anywhere yet, see `take_season`."""
        self._state, self.season, self._season_due = state, season, season_due
        self._lately: tuple[int, Lately | None] | None = None
        self._forecast_of: tuple[int, Lately | None, tuple[float, float]] = (-1, None, (-1.0, 1.0))

    def take_season(self) -> bytes | None:
        """The season's bytes, where it has changed since the last call."""
        due, self._season_due = self._season_due, False
        return self.season.to_bytes() if due else None

    def add(self, opinion: Opinion, now_minute: int, burn: Rule | None) -> Counted:
        """Count an opinion in its own minute. ``now_minute`` is the watermark's, at or after the opinion's.

        One at or below the mark of its source partition is a repeat; one older than the blocks is late; a copy, or one
        of many by one author, is set apart. Neither of them counts. ``burn`` is the rule that closed hours are held to.
        """
        state = self._state
        # By the topic's id: made again under its name it begins with offsets that were counted of the old one. What an
        # earlier release counted is marked by the name, until the id has a mark.
        by_name = f"{opinion.source.topic}/{opinion.source.partition}"
        mark = f"{opinion.source_topic_id}/{opinion.source.partition}" if opinion.source_topic_id else by_name
        if opinion.source.offset <= state.marks.get(mark, state.marks.get(by_name, -1)):
            return "repeat"
        state.marks.pop(by_name, None)
        state.marks[mark] = opinion.source.offset
        state.level, state.model_version = opinion.level, opinion.model_version
        minute = opinion.event_time_ms // MINUTE_MS
        if not state.voices.counts(opinion.text_print, opinion.author, minute):
            self._touch(now_minute, burn)
            if minute > now_minute - WINDOW_MINUTES_MAX:
                self._minute(minute, now_minute)[2] += 1
            return "apart"
        return self.count(minute, round(opinion.p_negative * MILLIONTHS), 1, now_minute, burn)

    def count(
        self, minute: int, negative_millionths: int, total: int, now_minute: int, burn: Rule | None
    ) -> Literal["counted", "late"]:
        """Count ``total`` opinions of a minute at once: what `add` does when it has looked at the opinion itself."""
        self._touch(now_minute, burn)
        blocks, number = self._state.blocks, minute // BLOCK_MINUTES
        newest = now_minute // BLOCK_MINUTES
        if number < newest - BLOCKS:
            return "late"
        block = blocks.get(number)
        if block is None:
            block = blocks[number] = [0, 0, 0]
        block[0] += negative_millionths
        block[1] += total
        if self._lately is not None and number <= self._lately[0]:
            self._lately = None
        if minute > now_minute - WINDOW_MINUTES_MAX:
            cells = self._minute(minute, now_minute)
            cells[0] += negative_millionths
            cells[1] += total
        return "counted"

    def leave_out(self, first_minute: int, last_minute: int) -> None:
        """What came in these minutes is not to be expected again."""
        for number, block in self._state.blocks.items():
            if first_minute // BLOCK_MINUTES <= number <= last_minute // BLOCK_MINUTES:
                block[2] = 1
        self._lately = None

    def mass(self, now: int, window: int) -> tuple[float, int]:
        """Negative mass and opinions of the last ``window`` minutes."""
        mass = total = apart = 0
        minutes = self._state.minutes
        for minute in range(now - window + 1, now + 1):
            cells = minutes.get(minute)
            if cells is not None:
                mass += cells[0]
                total += cells[1]
                apart += cells[2]
        return less_leaked(mass, total, apart)

    def apart(self, now: int, window: int) -> int:
        """Opinions of the last ``window`` minutes that were set apart."""
        return sum(cells[2] for minute, cells in self._state.minutes.items() if now - window < minute <= now)

    def lately(self, now: int) -> Lately | None:
        """What is to be expected by the blocks; None where they hold too little."""
        # It changes when a block does, or when a late opinion enters one.
        newest = (now - GAP_MINUTES) // BLOCK_MINUTES - 1
        if self._lately is None or self._lately[0] != newest:
            self._lately = (newest, estimate(self._state, self.season, newest))
        return self._lately[1]

    def forecast(self, now: int) -> tuple[float, float]:
        """Negative mass to expect in a minute, -1 where nothing is known, and its relative error."""
        lately = self.lately(now)
        if self._forecast_of[0] != now or self._forecast_of[1] is not lately:
            season = self.season.forecast(now)
            found = -1.0, 1.0
            if season is not None and lately is not None:
                found = max(season.negative * lately.trend, lately.negative), season.relative_error
            self._forecast_of = (now, lately, found)
        return self._forecast_of[2]

    def missed(self, now_minute: int, since_minute: int) -> float:
        """Opinions that were to be expected since the last one, or since ``since_minute`` if that is later."""
        first = max(self._state.touched_minute + 1, since_minute)
        if now_minute < first or self.season.forecast(now_minute) is None:
            return 0.0
        step = max(1, (now_minute - first) // 12)
        # Half of what is usual: a quiet day is not a drop-out.
        return (
            0.5
            * step
            * sum(
                forecast.total
                for minute in range(first, now_minute + 1, step)
                if (forecast := self.season.forecast(minute)) is not None
            )
        )

    def _minute(self, minute: int, now_minute: int) -> list[int]:
        minutes = self._state.minutes
        cells = minutes.get(minute)
        if cells is None:
            if len(minutes) >= WINDOW_MINUTES_MAX:
                for old in [kept for kept in minutes if kept <= now_minute - WINDOW_MINUTES_MAX]:
                    del minutes[old]
            cells = minutes[minute] = [0, 0, 0]
        return cells

    def _touch(self, now_minute: int, burn: Rule | None) -> None:
        state = self._state
        if state.next_hour < 0:
            state.next_hour = now_minute // 60
        elif now_minute >= 60 * state.next_hour + 60 + CLOSE_AFTER_MINUTES:
            close_hours(state, self.season, now_minute, burn)
            self._season_due, self._lately = True, None
        state.touched_minute = now_minute


def less_leaked(mass: int, total: int, apart: int) -> tuple[float, int]:
    """Negative mass and opinions of a stretch, less the copies that went by unrecognised."""
    leaked = min(apart // LEAKED_ONE_IN, total)
    return max(mass / MILLIONTHS - leaked, 0.0), total - leaked
