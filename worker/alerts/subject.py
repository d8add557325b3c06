"""One subject of opinion: the life of its alerts, judged on what `worker.alerts.tally` has counted. Pure.

The event time reached (the watermark) and the wall time are arguments: the same counts give, at the same watermark, the
same judgement and the same alert id. A surge is looked for in the last 1, 2, 3, 5, 8 ... minutes up to the rule's
window.

Expected is the higher of lately and season, so that neither the morning nor the end of a promotion nor the return from
an outage looks like a surge. A subject without history knows its share from its first blocks on; its volume is not
judged before it has `DAYS_MIN` days.

When an hour closes the slow burn's CUSUM takes its step, capped, so that one bad hour does not make a burn. Blocks and
hours that an alert stood in are left out of what is expected.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from schemas.scores import Alert, AlertStatus, Opinion
from worker.alerts import subject_state
from worker.alerts.baseline import ErrorRates, Expected, surge_score, volume_score
from worker.alerts.expectation import long_run
from worker.alerts.rules import WINDOW_MINUTES_MAX, Kind, Matched, Rule
from worker.alerts.season import Season
from worker.alerts.subject_state import BLOCK_MINUTES, BLOCKS, MILLIONTHS, MINUTE_MS, OpenAlert, Severity, SubjectState
from worker.alerts.tally import Counted, Tally, less_leaked

NEGATIVE_MIN_MILLIONTHS: Final = 5 * MILLIONTHS
SPREAD: Final = 3.0
"""Squared deviations of the long run's share below which no stretch is looked at: less than `SHARE_SIGMA` squared."""
SHARE_SIGMA: Final = 2.0
"""A surge of volume must be one of share too, if less sure: more of everything is a promotion."""
NORMAL_MINUTES: Final = BLOCKS * BLOCK_MINUTES
"""An alert that has stood so long is the new normal; burns and drop-outs end by themselves."""
SILENCE_MINUTES_MAX: Final = 24 * 60
"""A drop-out that has stood so long is an end, and so is a burn whose subject has been silent so long."""
WORSENING_FACTOR: Final = 1.5
IMPROVING_FACTOR: Final = 0.6


class Subject:
    """One subject. Bounds: those of its tally, and an alert a kind."""

    __slots__ = ("_rates", "_state", "_tally", "name", "rules")

    def __init__(
        self,
        name: str,
        rules: Matched,
        rates: ErrorRates,
        state: SubjectState | None = None,
        season: Season | None = None,
        *,
        season_due: bool = False,
    ) -> None:
        """``season_due``: the season is not kept anywhere yet, see `take_season`."""
        self.name = name
        self.rules = rules
        self._rates = rates
        self._state = state or SubjectState()
        self._tally = Tally(self._state, season or Season(), season_due=season_due)

    @classmethod
    def from_bytes(
        cls, name: str, rules: Matched, rates: ErrorRates, data: bytes, season: bytes | None = None
    ) -> Subject:
        """Subject of the bytes of `to_bytes`, and its season's. Raises `FormatError` when they cannot be read."""
        state, known = subject_state.from_bytes(data)
        if season is not None:
            return cls(name, rules, rates, state, Season.from_bytes(season))
        return cls(name, rules, rates, state, known, season_due=known is not None)

    def to_bytes(self) -> bytes:
        """Format version, then msgpack. The season is apart: it changes once an hour, this with every opinion."""
        return subject_state.to_bytes(self._state)

    def take_season(self) -> bytes | None:
        """The season's bytes, where it has changed since the last call."""
        return self._tally.take_season()

    @property
    def touched_minute(self) -> int:
        """Watermark minute at which the last opinion came."""
        return self._state.touched_minute

    @property
    def alert_open(self) -> bool:
        """Whether an alert stands open."""
        return bool(self._state.alerts)

    def add(self, opinion: Opinion, now_minute: int) -> Counted:
        """Count an opinion, see `Tally.add`. ``now_minute`` is the watermark's, at or after the opinion's."""
        return self._tally.add(opinion, now_minute, self._burn_rule)

    def count(self, minute: int, negative_millionths: int, total: int, now_minute: int) -> Counted:
        """Count ``total`` opinions of a minute at once: what `add` does when it has looked at the opinion itself."""
        return self._tally.count(minute, negative_millionths, total, now_minute, self._burn_rule)

    def judge(self, watermark_ms: int, process_time_ms: int) -> list[Alert]:
        """What to publish now that event time has reached ``watermark_ms``. Moves the alerts' lives on.

        opened     volume, lift and significance are all there, and the last alert's cooldown is over
        worsening  severity rises, or the score is half as much again as last told
        improving  the score has fallen to 0.6 of what was last told
        resolved   the score is below the rule's ``resolve``; the rule is gone; a surge has stood for three hours and
                   is the new normal; or the subject of a burn has been silent for a day
        After the opening at most one of a kind in every event minute, but a rise in severity is told at once.
        """
        clock = (watermark_ms, process_time_ms)
        alerts = self._state.alerts
        if not alerts:
            told = self._open_surge(*clock)
            return [told] if told is not None else self._open_burn(clock)
        told_all = [self._move(kind, alerts[kind], *clock) for kind in sorted(alerts)]
        if "surge" not in alerts:
            told_all.append(self._open_surge(*clock))
        found = [each for each in told_all if each is not None]
        return found + ([] if "burn" in alerts else self._open_burn(clock))

    def judge_silence(self, watermark_ms: int, process_time_ms: int, since_minute: int) -> list[Alert]:
        """A drop-out to publish, if as much is missing as a rule says. The next opinion resolves it, in `judge`."""
        now, state = watermark_ms // MINUTE_MS, self._state
        for rule in self.rules.dropout if "dropout" not in state.alerts else ():
            first = max(state.touched_minute + 1, since_minute)
            told = state.resolved.get("dropout", -1) >= state.touched_minute
            if told or now - first + 1 < rule.window_minutes or self._cooling("dropout", rule, now):
                continue
            if 0.5 * self._tally.season.peak / 60 * (now - first + 1) < rule.threshold:
                continue
            score = self._tally.missed(now, since_minute)
            if score >= rule.threshold:
                return [self._opened(rule, first, Expected(0.0, 0.0, 1.0), score, watermark_ms, process_time_ms)]
        return []

    @property
    def _burn_rule(self) -> Rule | None:
        return self.rules.burn[0] if self.rules.burn else None

    def _open_surge(self, watermark_ms: int, process_time_ms: int) -> Alert | None:
        now, minutes = watermark_ms // MINUTE_MS, self._state.minutes
        elapsed = (watermark_ms % MINUTE_MS + 1) / MINUTE_MS - 1
        mass = total = apart = 0
        minute = now + 1
        usual = long_run(self._tally.season, self._state.next_hour)
        floor, spread = (usual.share, SPREAD * usual.share * (1 - usual.share)) if usual is not None else (0.0, 0.0)
        for rules in self.rules.scales:
            minute, elapsed = minute - 1, elapsed + 1
            cells = minutes.get(minute)
            if cells is not None:
                mass += cells[0]
                total += cells[1]
                apart += cells[2]
            # The cheap tests come first: almost every opinion ends here.
            if mass < NEGATIVE_MIN_MILLIONTHS or not rules:
                continue
            negative, counted = less_leaked(mass, total, apart)
            excess = negative - floor * counted
            # What is expected is never below the long run: no rule fires on less than two deviations from it.
            if excess <= 0 or excess * excess <= spread * counted:
                continue
            lately = self._tally.lately(now)
            if lately is None:
                return None
            for rule in rules:
                score = self._score(rule, negative, counted, elapsed, now, lately.expected)
                if score >= rule.threshold and not self._cooling("surge", rule, now):
                    return self._opened(rule, minute, lately.expected, score, watermark_ms, process_time_ms)
        return None

    def _score(self, rule: Rule, negative: float, total: int, minutes: float, now: int, expected: Expected) -> float:
        """The rule's statistic over the last ``minutes``; 0 where the share has not risen by the rule's lift."""
        lift = rule.min_lift * self._rates.gain
        if total < rule.min_volume or negative <= (expected.share + lift) * total:
            return 0.0
        if rule.metric == "negative_share":
            return surge_score(negative, total, expected)
        mean, error = self._tally.forecast(now)
        if mean < 0 or negative <= 1.2 * mean * minutes:
            return 0.0
        score = volume_score(negative, mean * minutes, error)
        if score >= rule.resolve and surge_score(negative, total, expected) < SHARE_SIGMA:
            return 0.0
        return score

    def _open_burn(self, clock: tuple[int, int]) -> list[Alert]:
        state = self._state
        if not state.burn:
            return []
        for rule in self.rules.burn:
            if state.burn >= rule.threshold and not self._cooling("burn", rule, clock[0] // MINUTE_MS):
                expected = self._tally.season.share(24 * ((state.next_hour - 25) // 24))
                negative, total = self._tally.mass(clock[0] // MINUTE_MS, _window(rule))
                if expected is not None and self._lift(negative, total, expected) >= rule.min_lift:
                    return [self._opened(rule, 60 * state.burn_hour, expected, state.burn, *clock)]
        return []

    def _move(self, kind: Kind, alert: OpenAlert, watermark_ms: int, process_time_ms: int) -> Alert | None:
        now, rule = watermark_ms // MINUTE_MS, self.rules.named(kind, alert.rule)
        score, severity = self._standing(kind, alert, rule, watermark_ms)
        status = self._next_status(alert, rule, score, severity, now)
        if status is None:
            return None
        if severity == "critical":
            alert.severity = severity
        alert.status, alert.reported_score, alert.reported_minute = status, score, now
        message = self._message(alert, rule, score, (watermark_ms, process_time_ms), _window(rule))
        if status == "resolved":
            self._close(kind, alert, now)
        return message

    def _standing(self, kind: Kind, alert: OpenAlert, rule: Rule | None, watermark_ms: int) -> tuple[float, Severity]:
        now = watermark_ms // MINUTE_MS
        if rule is None:
            return 0.0, alert.severity
        if kind == "dropout":
            # Over with the next opinion; or nobody expects one any more.
            over = self._state.touched_minute >= alert.first_minute or now - alert.first_minute >= SILENCE_MINUTES_MAX
            return (0.0 if over else alert.reported_score), alert.severity
        if kind == "burn":
            # Hours without opinions say nothing for or against it, so the CUSUM keeps its height in silence.
            over = now - self._state.touched_minute >= SILENCE_MINUTES_MAX
            return (0.0 if over else self._state.burn), alert.severity
        # Of the window only what has come since the alert's first minute: the calm before would end it at once.
        window = min(rule.window_minutes, now - alert.first_minute + 1)
        negative, total = self._tally.mass(now, window)
        minutes = window - 1 + (watermark_ms % MINUTE_MS + 1) / MINUTE_MS
        score = self._score(rule, negative, total, minutes, now, alert.expected)
        return score, self._severity(rule, score, negative, total, alert.expected)

    def _next_status(
        self, alert: OpenAlert, rule: Rule | None, score: float, severity: Severity, now: int
    ) -> AlertStatus | None:
        if rule is not None and severity == "critical" and alert.severity == "warning":
            return "worsening"
        if now == alert.reported_minute:
            return None
        if rule is None or score < rule.resolve:
            return "resolved"
        if rule.kind == "surge" and now - alert.first_minute >= NORMAL_MINUTES:
            return "resolved"
        if score >= WORSENING_FACTOR * alert.reported_score:
            return "worsening"
        if score <= IMPROVING_FACTOR * alert.reported_score and alert.status != "improving":
            return "improving"
        return None

    def _severity(self, rule: Rule, score: float, negative: float, total: int, expected: Expected) -> Severity:
        if rule.severity == "critical":
            return "critical"
        lift = self._lift(negative, total, expected)
        return "critical" if score >= 2 * rule.threshold and lift >= max(2 * rule.min_lift, 0.2) else "warning"

    def _lift(self, negative: float, total: int, expected: Expected) -> float:
        return (negative / total - expected.share) / self._rates.gain if total else 0.0

    def _cooling(self, kind: Kind, rule: Rule, now: int) -> bool:
        ended = self._state.resolved.get(kind)
        return ended is not None and now < ended + rule.cooldown_minutes

    def _opened(
        self, rule: Rule, first: int, expected: Expected, score: float, watermark_ms: int, process_time_ms: int
    ) -> Alert:
        """Opens with the stretch that the rule fired on; what is told later is the rule's whole window."""
        now, window, severity = watermark_ms // MINUTE_MS, _window(rule), rule.severity
        if rule.kind == "surge":
            window = now - first + 1
            severity = self._severity(rule, score, *self._tally.mass(now, window), expected)
        alert = self._state.alerts[rule.kind] = OpenAlert(
            alert_id=alert_id(rule.name, self.name, first),
            rule=rule.name,
            opened_at_ms=watermark_ms,
            first_minute=first,
            expected=expected,
            status="opened",
            severity=severity,
            reported_score=score,
            reported_minute=now,
        )
        return self._message(alert, rule, score, (watermark_ms, process_time_ms), window)

    def _close(self, kind: Kind, alert: OpenAlert, now: int) -> None:
        # The burst must not become the baseline; unless it has lasted so long that it is the baseline.
        state = self._state
        del state.alerts[kind]
        state.resolved[kind] = now
        if kind == "burn":
            state.burn = 0.0
        if kind == "surge" and now - alert.first_minute < NORMAL_MINUTES:
            self._tally.leave_out(alert.first_minute, now)

    def _message(self, alert: OpenAlert, rule: Rule | None, score: float, clock: tuple[int, int], window: int) -> Alert:
        now = clock[0] // MINUTE_MS
        negative, total = self._tally.mass(now, window)
        metric = rule.metric if rule else "negative_share"
        volume = self._tally.forecast(now)[0] if metric == "negative_volume" else -1.0
        return Alert(
            alert_id=alert.alert_id,
            rule=alert.rule,
            subject=self.name,
            level=self._state.level,
            status=alert.status,
            severity=alert.severity,
            opened_at_ms=alert.opened_at_ms,
            window_start_ms=(now - window + 1) * MINUTE_MS,
            window_end_ms=(now + 1) * MINUTE_MS,
            process_time_ms=clock[1],
            negative=negative,
            total=total,
            negative_share=self._rates.corrected(negative / total) if total else 0.0,
            expected_share=self._rates.corrected(alert.expected.share),
            score=score,
            model_version=self._state.model_version,
            metric=metric,
            expected_negative=round(volume * window, 3) if volume >= 0 else None,
            set_apart=self._tally.apart(now, window),
            sinks=list(rule.sinks) if rule else [],
        )


def _window(rule: Rule | None) -> int:
    """Minutes that an alert of the rule tells about."""
    return WINDOW_MINUTES_MAX if rule is None or rule.metric == "slow_burn" else rule.window_minutes


def alert_id(rule: str, subject: str, first_minute: int) -> str:
    """Id of the alert of a rule on a subject that opened with the window beginning at ``first_minute``."""
    return blake2b(f"{rule}\n{subject}\n{first_minute * MINUTE_MS}".encode(), digest_size=12).hexdigest()
