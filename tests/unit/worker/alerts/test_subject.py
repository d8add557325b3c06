"""A subject with a history: what its days make one expect, what then alarms, and what does not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from scipy.stats import norm, poisson

from schemas.scores import Alert
from tests.opinions import MINUTE_MS, START_MS, opinion
from worker.alerts.baseline import ErrorRates, volume_score
from worker.alerts.rules import RuleBook, shipped
from worker.alerts.subject import SILENCE_MINUTES_MAX, Subject
from worker.alerts.subject_state import MILLIONTHS
from worker.alerts.surge import DEAF_MINUTES, SurgeDetector

DAY = 1440
START = START_MS // MINUTE_MS // DAY * DAY
PERFECT = ErrorRates()
Rate = Callable[[int], tuple[float, float]]


def day_and_night(minute: int) -> tuple[float, float]:
    """Negatives and others a minute: 20 by day, 4 by night, one in ten negative."""
    rate = 20.0 if 8 * 60 <= minute % DAY < 20 * 60 else 4.0
    return 0.1 * rate, 0.9 * rate


class History:
    """A subject that is fed minute by minute; chance is seeded."""

    def __init__(self, rates: ErrorRates = PERFECT, rules: RuleBook | None = None, *, restarts: int = 0) -> None:
        self.rng = random.Random(3)
        self.rules, self.rates, self.restarts = (rules or shipped()).match("item:lamp"), rates, restarts
        self.subject = Subject("item:lamp", self.rules, rates)
        self.season: bytes | None = None
        self.alerts: list[Alert] = []

    def feed(self, first: int, last: int, rate: Rate) -> list[Alert]:
        """Minutes [first, last) of the history; the alerts that came of them."""
        before = len(self.alerts)
        for minute in range(first, last):
            negative, others = (self._draw(mean) for mean in rate(minute))
            if negative + others:
                self.subject.count(START + minute, negative * MILLIONTHS, negative + others, START + minute)
            self.alerts += self.subject.judge((START + minute + 1) * MINUTE_MS - 1, 0)
            if self.restarts and minute % self.restarts == 0:
                self._restart()
        return self.alerts[before:]

    def _restart(self) -> None:
        self.season = self.subject.take_season() or self.season
        data = self.subject.to_bytes()
        self.subject = Subject.from_bytes("item:lamp", self.rules, self.rates, data, self.season)

    def _draw(self, mean: float) -> int:
        # Knuth's Poisson would do; a sum of coins is enough and as quick.
        return sum(self.rng.random() < mean / 40 for _ in range(40))


def with_history(days: int = 4, **options: object) -> History:
    history = History(**options)  # type: ignore[arg-type]
    assert history.feed(0, days * DAY, day_and_night) == []
    return history


def times(negatives: float, others: float = 1.0) -> Rate:
    def rate(minute: int) -> tuple[float, float]:
        negative, other = day_and_night(minute)
        return negative * negatives, other * others

    return rate


NOON = 4 * DAY + 12 * 60


@pytest.fixture(scope="module")
def noon() -> tuple[bytes, bytes]:
    """Four days and a morning, as bytes: what most tests begin with."""
    history = with_history()
    assert history.feed(4 * DAY, NOON, day_and_night) == []
    season = history.subject.take_season()
    assert season is not None
    return history.subject.to_bytes(), season


def at_noon(noon: tuple[bytes, bytes], rates: ErrorRates = PERFECT) -> History:
    history = History(rates)
    history.subject = Subject.from_bytes("item:lamp", history.rules, rates, *noon)
    return history


def test_three_times_the_negatives_open_an_alert_of_volume_within_minutes(noon: tuple[bytes, bytes]) -> None:
    alerts = at_noon(noon).feed(NOON, NOON + 30, times(4))
    assert alerts[0].status == "opened"
    assert alerts[0].metric == "negative_volume"
    assert alerts[0].opened_at_ms < (START + NOON + 6) * MINUTE_MS
    assert alerts[0].expected_negative is not None
    assert alerts[0].negative > 2 * alerts[0].expected_negative


def test_an_alert_of_volume_resolves_when_the_burst_is_over(noon: tuple[bytes, bytes]) -> None:
    history = at_noon(noon)
    history.feed(NOON, NOON + 20, times(6))
    alerts = history.feed(NOON + 20, NOON + 60, day_and_night)
    assert alerts[-1].status == "resolved"
    assert alerts[-1].window_end_ms <= (START + NOON + 40) * MINUTE_MS
    assert len({alert.alert_id for alert in history.alerts}) == 1


def test_a_promotion_is_silent_and_so_is_its_end(noon: tuple[bytes, bytes]) -> None:
    history = at_noon(noon)
    assert history.feed(NOON, NOON + 120, times(1, 2)) == []
    assert history.feed(NOON + 120, NOON + 400, day_and_night) == []


def test_morning_and_the_return_from_an_outage_are_silent(noon: tuple[bytes, bytes]) -> None:
    history = at_noon(noon)
    assert history.feed(NOON, NOON + 180, lambda _m: (0.0, 0.0)) == []
    assert history.feed(NOON + 180, NOON + 1440, day_and_night) == []


def test_one_bad_hour_is_no_slow_burn_but_a_day_of_it_is(noon: tuple[bytes, bytes]) -> None:
    hour = at_noon(noon)
    hour.feed(NOON, NOON + 60, times(2.2))
    assert not [alert for alert in hour.feed(NOON + 60, NOON + 720, day_and_night) if alert.metric == "slow_burn"]
    day = at_noon(noon)
    burn = [alert for alert in day.feed(NOON, NOON + 1000, times(2.2)) if alert.metric == "slow_burn"]
    assert next(alert.status for alert in burn) == "opened"
    assert burn[0].opened_at_ms > (START + NOON + 180) * MINUTE_MS


def test_a_slow_burn_ends_with_a_day_of_its_subjects_silence(noon: tuple[bytes, bytes]) -> None:
    history = at_noon(noon)
    history.feed(NOON, NOON + 1000, times(2.2))
    assert history.subject.alert_open
    silent = history.feed(NOON + 1000, NOON + 1000 + 2 * SILENCE_MINUTES_MAX, lambda _m: (0.0, 0.0))
    (resolved,) = [alert for alert in silent if alert.metric == "slow_burn"]
    assert (resolved.status, resolved.score) == ("resolved", 0.0)
    last = START + NOON + 999
    assert resolved.window_end_ms == (last + SILENCE_MINUTES_MAX + 1) * MINUTE_MS
    assert not history.subject.alert_open
    # What it had climbed to is gone with it: the first calm hours are no burn again.
    again = NOON + 1000 + 2 * SILENCE_MINUTES_MAX
    assert not [alert for alert in history.feed(again, again + 300, day_and_night) if alert.metric == "slow_burn"]


def test_restarts_at_any_minute_change_nothing() -> None:
    whole, cut = with_history(), with_history(restarts=7)
    for history in (whole, cut):
        history.feed(4 * DAY, NOON, day_and_night)
        history.feed(NOON, NOON + 25, times(5))
        history.feed(NOON + 25, NOON + 400, times(2))
    assert whole.alerts
    assert cut.alerts == whole.alerts
    assert cut.subject.to_bytes() == whole.subject.to_bytes()


def test_silence_by_day_is_a_drop_out_and_by_night_it_is_not(noon: tuple[bytes, bytes]) -> None:
    subject = at_noon(noon).subject
    later = [(START + NOON + minutes) * MINUTE_MS - 1 for minutes in (5, 10, 40)]
    told = [subject.judge_silence(at, 0, 0) for at in later]
    assert [len(each) for each in told] == [0, 0, 1]
    (opened,) = told[2]
    assert (opened.metric, opened.status, opened.total) == ("dropout", "opened", 0)
    assert opened.score > 60
    assert subject.judge_silence(later[2] + MINUTE_MS, 0, 0) == []
    history = with_history(5)
    night = 5 * DAY + 10
    assert history.subject.judge_silence((START + night) * MINUTE_MS, 0, 0) == []


def test_the_next_opinion_ends_a_drop_out_and_a_day_of_silence_does(noon: tuple[bytes, bytes]) -> None:
    for wait, speaks in [(60, True), (SILENCE_MINUTES_MAX + 60, False)]:
        subject, now = at_noon(noon).subject, START + NOON + 60
        (opened,) = subject.judge_silence(now * MINUTE_MS, 0, 0)
        if speaks:
            subject.count(now + wait, 0, 1, now + wait)
        (resolved,) = subject.judge((now + wait) * MINUTE_MS, 0)
        assert (resolved.status, resolved.alert_id) == ("resolved", opened.alert_id)
        assert not subject.alert_open
        # It is not told a second time.
        assert subject.judge_silence((now + wait + 1) * MINUTE_MS, 0, 0) == []


def test_shares_are_told_with_the_models_errors_undone(noon: tuple[bytes, bytes]) -> None:
    rates = ErrorRates(0.9, 0.05)
    alert = at_noon(noon, rates).feed(NOON, NOON + 20, times(8))[-1]
    assert alert.negative_share == pytest.approx((alert.negative / alert.total - 0.05) / 0.85)
    assert alert.expected_share == pytest.approx(0.05 / 0.85, abs=0.02)


@pytest.mark.parametrize(("seen", "true"), [(0.0, 0.0), (0.05, 0.0), (0.475, 0.5), (0.9, 1.0), (1.0, 1.0)])
def test_rogan_and_gladen(seen: float, true: float) -> None:
    assert ErrorRates(0.9, 0.05).corrected(seen) == pytest.approx(true)


@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.2, 0.4), (1.1, 0.0), (0.5, -0.1)])
def test_a_model_that_cannot_tell_is_refused(rates: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="mean p"):
        ErrorRates(*rates)


@pytest.mark.parametrize("mean", [2.0, 8.0, 40.0])
def test_volume_score_is_the_normal_quantile_of_the_exact_poisson(mean: float) -> None:
    for count in range(int(mean) + 1, int(mean * 4) + 12):
        exact = norm.isf(poisson.sf(count - 1, mean))
        if 1 < exact < 7:
            assert volume_score(count, mean, 0.0) == pytest.approx(exact, abs=0.3)
            assert volume_score(count, mean, 0.3) < volume_score(count, mean, 0.0)
    assert volume_score(0.0, mean, 0.0) < 0


def detector_with_history(names: tuple[str, ...]) -> tuple[SurgeDetector, int]:
    """Four days of opinions, ten a minute by day, on each subject."""
    detector, offset = SurgeDetector(shipped()), 0
    for minute in range(0, 4 * DAY + 12 * 60, 2):
        for name in names:
            at_ms = (START + minute) * MINUTE_MS
            for n in range(4 if 8 * 60 <= minute % DAY < 20 * 60 else 1):
                detector.add(opinion(name, at_ms + n, 0.05, offset), 0)
                offset += 1
    return detector, offset


@pytest.mark.timeout(600)
def test_a_silent_subject_is_told_from_a_silent_partition() -> None:
    detector, offset = detector_with_history(("item:lamp", "item:tent"))
    told: list[Alert] = []
    # The whole partition is away for three hours: nobody's drop-out.
    for minute in range(NOON + 180, NOON + 200):
        for name in ("item:lamp", "item:tent"):
            offset += 1
            told += detector.add(opinion(name, (START + minute) * MINUTE_MS, 0.05, offset), 0)[1]
    assert told == []
    assert detector.heard_minute == START + NOON + 180
    # The tent goes on, the lamp does not.
    for minute in range(NOON + 200, NOON + 380, DEAF_MINUTES // 2):
        offset += 1
        told += detector.add(opinion("item:tent", (START + minute) * MINUTE_MS, 0.05, offset), 0)[1]
    assert {(alert.subject, alert.metric) for alert in told} == {("item:lamp", "dropout")}
    assert detector.open_alerts == 1
    offset += 1
    resolved = detector.add(opinion("item:lamp", (START + NOON + 381) * MINUTE_MS, 0.05, offset), 0)[1]
    assert [alert.status for alert in resolved] == ["resolved"]


def test_an_alert_whose_rule_is_gone_resolves(noon: tuple[bytes, bytes]) -> None:
    history = at_noon(noon)
    (opened,) = history.feed(NOON, NOON + 3, times(9))[:1]
    without = RuleBook(tuple(rule for rule in shipped().rules if rule.name != opened.rule), "fewer")
    history.subject.rules = without.match("item:lamp")
    told = history.feed(NOON + 3, NOON + 5, times(9))
    assert ("resolved", opened.alert_id) in [(alert.status, alert.alert_id) for alert in told]
