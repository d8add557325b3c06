"""One subject of opinion: its counts by event minute, the share of negatives to expect, and the life of its alert.

Pure: the event time reached (the watermark) and the wall time are arguments. Negative mass is kept in whole
millionths, so sums do not depend on order: any order of the same opinions within the minutes of the ring gives
the same counts and, at the same watermark, the same judgement and the same alert id.

Expected share, an estimate that a burst does not move: the baseline is cut into blocks as long as the window, joined
where they hold fewer than ``min_volume`` opinions; around the blocks' median, those more than three standard
deviations off, up or down, are left out (a block has one vote whatever its volume, so neither a burst nor a promotion
outvotes the rest); what is left is averaged together with a prior of two opinions at `PRIOR_SHARE`. What its scatter
exceeds the binomial by (Pearson's X²/df) widens the test. Minutes of an alert's past burst do not count.

Statistic: signed root of the likelihood ratio of window against baseline (G² test of two proportions, Wilks 1938;
close to a standard normal even for small counts), half an opinion taken off for continuity. It takes into account
how little a short baseline says. A subject whose baseline holds fewer than ``min_volume`` opinions never alarms.
"""

from __future__ import annotations

from hashlib import blake2b
from math import exp, log, sqrt
from statistics import median
from typing import Final, Literal

import msgspec

from schemas.folds import FormatError
from schemas.scores import Alert, AlertStatus, Level, Opinion
from worker.config import AlertsConfig

FORMAT_VERSION: Final = 1
RULE: Final = "negative_share"
MINUTE_MS: Final = 60_000
MILLIONTHS: Final = 1_000_000
PRIOR_SHARE: Final = 0.2
PRIOR_WEIGHT: Final = 2.0
OUTLIER_SIGMA: Final = 3.0
MAX_DISPERSION: Final = 25.0
PAST_MINUTES: Final = 24 * 60.0
"""Minutes that leave the ring are remembered with a weight that falls by e a day, so that a subject with a review
an hour has a baseline too."""
PAST_WEIGHT_MAX: Final = 100.0
"""Opinions that the remembered past counts for at most: it must not outvote the ring."""
WORSENING_FACTOR: Final = 1.5
IMPROVING_FACTOR: Final = 0.6

Severity = Literal["warning", "critical"]
Counted = Literal["counted", "repeat", "late"]


class Expected(msgspec.Struct, array_like=True, frozen=True):
    """Share of negatives to expect, the opinions that say so, and their scatter over the binomial's (>= 1)."""

    share: float
    weight: float
    dispersion: float


class OpenAlert(msgspec.Struct, array_like=True):
    """An alert that is not resolved. The baseline stays as it was at the opening."""

    alert_id: str
    opened_at_ms: int
    first_minute: int
    expected: Expected
    status: AlertStatus
    severity: Severity
    reported_score: float
    reported_minute: int


class _State(msgspec.Struct, array_like=True):
    """What is kept of a subject. New fields go last, with a default: the previous release's bytes stay readable.

    ring   minute -> [negative mass in millionths, opinions, 1 where a past alert stood open]
    marks  source topic/partition -> highest source offset counted
    past   [negative, opinions, minute] decayed to that minute
    """

    level: Level
    model_version: str
    touched_minute: int
    ring: dict[int, list[int]]
    marks: dict[str, int]
    past: list[float]
    resolved_minute: int | None = None
    alert: OpenAlert | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_State).decode


class Subject:
    """One subject. Bounds: ``window_minutes + baseline_minutes`` minutes, one mark a source partition, one alert."""

    __slots__ = ("_baseline", "_config", "_state", "name")

    def __init__(self, name: str, config: AlertsConfig, state: _State | None = None) -> None:
        self.name = name
        self._config = config
        self._state = state or _State("item", "", 0, {}, {}, [0.0, 0.0, 0.0])
        self._baseline: tuple[int, Expected | None] | None = None

    @classmethod
    def from_bytes(cls, name: str, config: AlertsConfig, data: bytes) -> Subject:
        """Subject of the bytes of `to_bytes`. Raises `FormatError` when this release cannot read them."""
        if not data or data[0] != FORMAT_VERSION:
            found = data[0] if data else "nothing"
            raise FormatError(f"alert state: format version {found}, this release reads {FORMAT_VERSION}")
        try:
            return cls(name, config, _decode(memoryview(data)[1:]))
        except msgspec.MsgspecError as error:
            raise FormatError(f"alert state: {error}") from error

    def to_bytes(self) -> bytes:
        """Format version, then msgpack."""
        return bytes([FORMAT_VERSION]) + _encode(self._state)

    @property
    def touched_minute(self) -> int:
        """Watermark minute at which the last opinion came."""
        return self._state.touched_minute

    @property
    def alert_open(self) -> bool:
        """Whether an alert stands open."""
        return self._state.alert is not None

    def add(self, opinion: Opinion, now_minute: int) -> Counted:
        """Count an opinion in its own minute. ``now_minute`` is the watermark's, at or after the opinion's.

        One at or below the mark of its source partition is a repeat; one older than the ring is late. Neither counts.
        """
        state = self._state
        source = f"{opinion.source.topic}/{opinion.source.partition}"
        if opinion.source.offset <= state.marks.get(source, -1):
            return "repeat"
        state.marks[source] = opinion.source.offset
        state.level, state.model_version, state.touched_minute = opinion.level, opinion.model_version, now_minute
        minute = opinion.event_time_ms // MINUTE_MS
        oldest = now_minute - self._config.window_minutes - self._config.baseline_minutes + 1
        if minute < oldest:
            return "late"
        cells = state.ring.get(minute)
        if cells is None:
            self._forget_before(oldest)
            cells = state.ring[minute] = [0, 0, 0]
        cells[0] += round(opinion.p_negative * MILLIONTHS)
        cells[1] += 1
        if minute <= now_minute - self._config.window_minutes:
            self._baseline = None
        return "counted"

    def judge(self, watermark_ms: int, process_time_ms: int) -> Alert | None:
        """What to publish now that event time has reached ``watermark_ms``, if anything. Moves the alert's life on.

        opened     volume, lift and significance are all there, and the last alert's cooldown is over
        worsening  severity rises, or the score is half as much again as last told
        improving  the score has fallen to 0.6 of what was last told
        resolved   the score is below ``resolve_sigma``; or the alert has stood as long as the baseline is, and what
                   was a surge is the new normal
        After the opening at most one in every event minute, but a rise in severity is told at once.
        """
        now = watermark_ms // MINUTE_MS
        negative, total = self._window(now)
        alert = self._state.alert
        if alert is None:
            return self._maybe_open(watermark_ms, process_time_ms, negative, total)
        score = surge_score(negative, total, alert.expected)
        severity = self._severity(score, negative, total, alert.expected)
        status = self._next_status(alert, score, severity, now)
        if status is None:
            return None
        if severity == "critical":
            alert.severity = severity
        alert.status, alert.reported_score, alert.reported_minute = status, score, now
        message = self._message(alert, now, process_time_ms, negative, total, score)
        if status == "resolved":
            self._close(alert, now)
        return message

    def _maybe_open(self, watermark_ms: int, process_time_ms: int, negative: float, total: int) -> Alert | None:
        config, state, now = self._config, self._state, watermark_ms // MINUTE_MS
        # The cheap tests come first: almost every opinion ends here.
        if total < config.min_volume or negative < config.min_share_lift * total:
            return None
        if state.resolved_minute is not None and now < state.resolved_minute + config.cooldown_minutes:
            return None
        expected = self._expected(now)
        if expected is None or negative - expected.share * total < config.min_share_lift * total:
            return None
        score = surge_score(negative, total, expected)
        if score < config.threshold_sigma:
            return None
        first = now - config.window_minutes + 1
        state.alert = OpenAlert(
            alert_id=alert_id(RULE, self.name, first),
            opened_at_ms=watermark_ms,
            first_minute=first,
            expected=expected,
            status="opened",
            severity=self._severity(score, negative, total, expected),
            reported_score=score,
            reported_minute=now,
        )
        return self._message(state.alert, now, process_time_ms, negative, total, score)

    def _next_status(self, alert: OpenAlert, score: float, severity: Severity, now: int) -> AlertStatus | None:
        if severity == "critical" and alert.severity == "warning":
            return "worsening"
        if now == alert.reported_minute:
            return None
        if score < self._config.resolve_sigma:
            return "resolved"
        if now - alert.first_minute >= self._config.window_minutes + self._config.baseline_minutes:
            return "resolved"
        if score >= WORSENING_FACTOR * alert.reported_score:
            return "worsening"
        if score <= IMPROVING_FACTOR * alert.reported_score and alert.status != "improving":
            return "improving"
        return None

    def _severity(self, score: float, negative: float, total: int, expected: Expected) -> Severity:
        lift = negative / total - expected.share if total else 0.0
        critical = score >= 2 * self._config.threshold_sigma and lift >= 2 * self._config.min_share_lift
        return "critical" if critical else "warning"

    def _close(self, alert: OpenAlert, now: int) -> None:
        # The burst must not become the baseline; unless it has lasted so long that it is the baseline.
        state = self._state
        state.alert, state.resolved_minute, self._baseline = None, now, None
        if now - alert.first_minute < self._config.window_minutes + self._config.baseline_minutes:
            for minute, cells in state.ring.items():
                if alert.first_minute <= minute <= now - self._config.window_minutes:
                    cells[2] = 1

    def _message(
        self, alert: OpenAlert, now: int, process_time_ms: int, negative: float, total: int, score: float
    ) -> Alert:
        return Alert(
            alert_id=alert.alert_id,
            rule=RULE,
            subject=self.name,
            level=self._state.level,
            status=alert.status,
            severity=alert.severity,
            opened_at_ms=alert.opened_at_ms,
            window_start_ms=(now - self._config.window_minutes + 1) * MINUTE_MS,
            window_end_ms=(now + 1) * MINUTE_MS,
            process_time_ms=process_time_ms,
            negative=negative,
            total=total,
            negative_share=negative / total if total else 0.0,
            expected_share=alert.expected.share,
            score=score,
            model_version=self._state.model_version,
        )

    def _window(self, now: int) -> tuple[float, int]:
        negative = total = 0
        ring = self._state.ring
        for minute in range(now - self._config.window_minutes + 1, now + 1):
            cells = ring.get(minute)
            if cells is not None:
                negative += cells[0]
                total += cells[1]
        return negative / MILLIONTHS, total

    def _expected(self, now: int) -> Expected | None:
        # It only changes when the minute does or when a late opinion enters the baseline.
        if self._baseline is None or self._baseline[0] != now:
            self._baseline = (now, self._estimate(now - self._config.window_minutes))
        return self._baseline[1]

    def _estimate(self, newest: int) -> Expected | None:
        window, baseline = self._config.window_minutes, self._config.baseline_minutes
        # Whole millionths are added up and divided once: the ring holds minutes in the order they came.
        blocks = [(0, 0) for _ in range(-(-baseline // window))]
        for minute, (negative, total, burst) in self._state.ring.items():
            age = newest - minute
            if 0 <= age < baseline and not burst:
                before = blocks[age // window]
                blocks[age // window] = (before[0] + negative, before[1] + total)
        counts = [(negative / MILLIONTHS, total) for negative, total in blocks]
        return expected_share(counts, self._past(newest), self._config.min_volume)

    def _past(self, minute: int) -> tuple[float, float]:
        negative, total, at = self._state.past
        weight = min(exp((at - minute) / PAST_MINUTES) * total, PAST_WEIGHT_MAX)
        return (negative / total * weight, weight) if total else (0.0, 0.0)

    def _forget_before(self, oldest: int) -> None:
        ring, past = self._state.ring, self._state.past
        for minute in sorted(m for m in ring if m < oldest):
            negative, total, burst = ring.pop(minute)
            if not burst:
                kept = exp((past[2] - minute) / PAST_MINUTES) if past[1] else 0.0
                past[:] = [past[0] * kept + negative / MILLIONTHS, past[1] * kept + total, float(minute)]


def alert_id(rule: str, subject: str, first_minute: int) -> str:
    """Id of the alert of a rule on a subject that opened with the window beginning at ``first_minute``."""
    return blake2b(f"{rule}\n{subject}\n{first_minute * MINUTE_MS}".encode(), digest_size=12).hexdigest()


def expected_share(counts: list[tuple[float, int]], past: tuple[float, float], min_volume: int) -> Expected | None:
    """Share of negatives that blocks of (negative, total), newest first, and a decayed past make one expect.

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
