"""Precision, recall, delay and false alarms, on cases small enough to count by hand."""

from __future__ import annotations

from worker.alerts.verdict import DAY_MS, GRACE_MS, Opened, Truth, verdict

BURST = Truth(subject="item:a", start_ms=1_000_000, end_ms=2_000_000)
OUTAGE = Truth(subject="item:b", start_ms=0, end_ms=9_000_000, kind="outage")


def surge(subject: str, at_ms: int) -> Opened:
    return Opened(subject, at_ms, "negative_share")


def test_right_wrong_and_missed_are_counted() -> None:
    missed = Truth(subject="item:c", start_ms=0, end_ms=10)
    found = verdict([surge("item:a", 1_060_000), surge("item:z", 5)], [BURST, missed], 500.0)
    assert (found.precision, found.recall, found.median_delay_s) == (0.5, 0.5, 60.0)
    assert (found.false_alarms, found.false_alarms_per_1000_subject_days) == (1, 2.0)


def test_an_alert_answers_within_the_grace_and_not_before_the_start() -> None:
    for at_ms, right in [(999_999, 0), (1_000_000, 1), (2_000_000 + GRACE_MS, 1), (2_000_001 + GRACE_MS, 0)]:
        assert verdict([surge("item:a", at_ms)], [BURST], 1.0).found == right


def test_drop_outs_answer_outages_and_nothing_else() -> None:
    silence = Opened("item:b", 60_000, "dropout")
    assert verdict([silence], [OUTAGE], 1.0).false_alarms == 0
    assert verdict([surge("item:b", 60_000)], [OUTAGE], 1.0).false_alarms == 1
    wrong = verdict([Opened("item:a", 1_000_001, "dropout")], [BURST], 1.0)
    assert (wrong.false_alarms, wrong.alerts, wrong.precision) == (1, 0, None)


def test_two_alerts_on_one_burst_are_both_right_and_the_first_gives_the_delay() -> None:
    found = verdict([surge("item:a", 1_500_000), surge("item:a", 1_030_000)], [BURST], DAY_MS)
    assert (found.alerts, found.false_alarms, found.found, found.median_delay_s) == (2, 0, 1, 30.0)


def test_only_the_judged_count_for_recall_but_all_truths_excuse_an_alert() -> None:
    small = Truth(subject="item:d", start_ms=0, end_ms=10)
    found = verdict([surge("item:d", 5)], [BURST, small], 1.0, judged=[BURST])
    assert (found.precision, found.recall, found.truths) == (1.0, 0.0, 1)


def test_where_nothing_happened_there_is_nothing_to_divide() -> None:
    found = verdict([], [], 0.0)
    assert (found.precision, found.recall, found.median_delay_s) == (None, None, None)
