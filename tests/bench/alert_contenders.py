"""What the benchmark compares: ours, the very code of the live role, and three textbook detectors. Pure.

The baselines see every opinion at its own minute (no lateness), judge at each minute's end over a five-minute window
with at least ten opinions, and hold an alert open until ten minutes have been below their threshold:

    fixed_threshold  the window's share of negatives is at or above a fixed share
    mean_3_sigma     the window's negatives exceed the mean of the last day's windows by three standard deviations
    ewma_z           the window's negatives exceed their exponentially weighted mean by so many exponentially weighted
                     standard deviations (half-life of an hour)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from schemas.scores import Alert, Opinion, SourcePosition
from tests.bench.alert_stream import MINUTE_MS, START_MINUTE, Stream, Texts
from worker.alerts.baseline import ErrorRates
from worker.alerts.rules import RuleBook
from worker.alerts.subject import Subject
from worker.alerts.subject_state import BLOCK_MINUTES
from worker.alerts.verdict import Opened

WINDOW, MIN_VOLUME, HOLD = 5, 10, 10
DAY, HALF_LIFE = 1440, 60
Floats = npt.NDArray[np.float64]


def millrace(stream: Stream, rules: RuleBook, rates: ErrorRates) -> list[Alert]:
    """All alerts of one subject. Minute counts are judged at each minute's end, texts one by one as they arrive."""
    return _Replay(stream, rules, rates).run()


class _Replay:
    def __init__(self, stream: Stream, rules: RuleBook, rates: ErrorRates) -> None:
        self._stream = stream
        self._subject = Subject(stream.name, rules.match(stream.name), rates)
        self._alerts: list[Alert] = []
        self._last = START_MINUTE
        self._offset = 0

    def run(self) -> list[Alert]:
        stream, subject = self._stream, self._subject
        windows = iter([*stream.texts, None])
        window = next(windows)
        cells = stream.cells.tolist()
        at, count = 0, len(cells)
        while at < count or window is not None:
            arrival = cells[at][0] if at < count else 1 << 62
            if window is not None and window.first_minute <= arrival:
                at = self._one_by_one(window, cells, at)
                window = next(windows)
                continue
            self._pass_to(arrival)
            while at < count and cells[at][0] == arrival:
                _, minute, mass, total = cells[at]
                subject.count(minute, mass, total, arrival)
                at += 1
            self._alerts += subject.judge((arrival + 1) * MINUTE_MS - 1, 0)
            self._last = arrival
        self._pass_to(START_MINUTE + stream.minutes)
        return self._alerts

    def _pass_to(self, minute: int) -> None:
        """Minutes in which nothing came: open alerts move on, silence is listened to at the end of each block."""
        subject, quiet = self._subject, self._last + 1
        while quiet < minute:
            watermark_ms = (quiet + 1) * MINUTE_MS - 1
            if subject.alert_open:
                self._alerts += subject.judge(watermark_ms, 0)
            if quiet % BLOCK_MINUTES == 0 and quiet - self._last > BLOCK_MINUTES:
                self._alerts += subject.judge_silence(watermark_ms, 0, 0)
            quiet += 1 if subject.alert_open else BLOCK_MINUTES - quiet % BLOCK_MINUTES

    def _one_by_one(self, texts: Texts, cells: list[list[int]], at: int) -> int:
        subject = self._subject
        self._pass_to(texts.first_minute)
        while at < len(cells) and cells[at][0] <= texts.last_minute:
            # Late ones from before, and none else.
            subject.count(cells[at][1], cells[at][2], cells[at][3], max(cells[at][0], texts.first_minute))
            at += 1
        watermark_ms = max(texts.first_minute * MINUTE_MS, 0)
        times = zip(texts.arrival_ms.tolist(), texts.event_ms.tolist(), strict=True)
        said = zip(texts.p.tolist(), texts.prints, texts.authors, strict=True)
        for (arrival_ms, event_ms), (p, text_print, author) in zip(times, said, strict=True):
            minute = arrival_ms // MINUTE_MS
            if minute > watermark_ms // MINUTE_MS:
                self._last = watermark_ms // MINUTE_MS
                self._pass_to(minute)
            watermark_ms = max(watermark_ms, arrival_ms)
            subject.add(self._opinion(event_ms, p, text_print, author), watermark_ms // MINUTE_MS)
            self._alerts += subject.judge(watermark_ms, 0)
        self._last = max(texts.last_minute, watermark_ms // MINUTE_MS)
        return at

    def _opinion(self, event_ms: int, p: float, text_print: str, author: str) -> Opinion:
        self._offset += 1
        return Opinion(
            output_id="",
            event_id="",
            source=SourcePosition("events.review", 0, self._offset),
            model_version="starter",
            event_time_ms=event_ms,
            process_time_ms=event_ms,
            subject=self._stream.name,
            level="item",
            p_negative=p,
            p_neutral=0.0,
            p_positive=1 - p,
            text_print=text_print,
            author=author,
        )


def _rolled(values: Floats, width: int) -> Floats:
    summed = np.cumsum(np.concatenate([np.zeros(1), values]))
    rolled = summed[width:] - summed[:-width]
    return np.concatenate([summed[1:width], rolled])


def fixed_threshold(stream: Stream) -> Floats:
    """The window's share of negatives."""
    return _rolled(stream.negative, WINDOW) / np.maximum(_rolled(stream.total.astype(float), WINDOW), 1)


def mean_sigma(stream: Stream) -> Floats:
    """Standard deviations of the last day's windows by which this one exceeds their mean."""
    window = _rolled(stream.negative, WINDOW)
    before = np.concatenate([np.zeros(WINDOW), window[:-WINDOW]])
    count = np.minimum(np.arange(1, len(window) + 1), DAY)
    mean = _rolled(before, DAY) / count
    variance = np.maximum(_rolled(before**2, DAY) / count - mean**2, 0.0)
    score = (window - mean) / np.sqrt(np.maximum(variance, 0.25))
    score[: 2 * HALF_LIFE] = 0.0
    return score


def ewma_z(stream: Stream) -> Floats:
    """Exponentially weighted standard deviations by which the window exceeds its exponentially weighted mean."""
    window = _rolled(stream.negative, WINDOW)
    before = np.concatenate([np.zeros(WINDOW), window[:-WINDOW]])
    keep = 0.5 ** (1 / HALF_LIFE)
    mean = lfilter([1 - keep], [1, -keep], before)
    square = lfilter([1 - keep], [1, -keep], before**2)
    score = (window - mean) / np.sqrt(np.maximum(square - mean**2, 0.25))
    score[: 2 * HALF_LIFE] = 0.0
    return score


BASELINES: Final[dict[str, tuple[Callable[[Stream], Floats], float]]] = {
    "fixed_threshold": (fixed_threshold, 0.5),
    "mean_3_sigma": (mean_sigma, 3.0),
    "ewma_z": (ewma_z, 3.0),
}


def openings(stream: Stream, score: Floats, thresholds: list[float]) -> list[list[Opened]]:
    """When alerts open at each threshold: at the end of the minute, and not again before `HOLD` calm minutes."""
    enough = _rolled(stream.total.astype(float), WINDOW) >= MIN_VOLUME
    found = []
    for threshold in thresholds:
        over = np.flatnonzero(enough & (score >= threshold))
        opens = over[np.diff(over, prepend=-HOLD - 2) > HOLD] if len(over) else over
        found.append([Opened(stream.name, (START_MINUTE + int(at) + 1) * MINUTE_MS, "negative_share") for at in opens])
    return found
