"""What waits for a sink: order, back-off, rate, giving up. Time is a number here."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.alerts_made import made, notice
from worker.notify.outbox import RATE_WINDOW_S, Entry, Limits, Outbox
from worker.notify.webhook import Verdict

DELIVERED, RETRY, REFUSED = Verdict("delivered"), Verdict("retry", "HTTP 500"), Verdict("refused", "HTTP 404")


def outbox(**changes: float | bool) -> Outbox:
    limits: dict[str, float | bool] = {
        "queue_max": 5,
        "max_per_minute": 600,
        "retry_min_s": 1.0,
        "retry_max_s": 60.0,
        "give_up_s": 900.0,
        "latest_only": False,
    }
    return Outbox(Limits(**{**limits, **changes}), random.Random(1))  # type: ignore[arg-type]


def test_messages_go_one_by_one_in_order() -> None:
    box = outbox()
    for number in range(3):
        box.put(notice(made(f"item:{number}")), number, 0.0)
    for number in range(3):
        entry = box.take(0.0)
        assert entry is not None
        assert entry.handles == [number]
        assert box.take(0.0) is None, "one is under way"
        (settled,) = box.answer(DELIVERED, 0.0)
        assert (settled.entry, settled.failure) == (entry, None)
    assert box.take(0.0) is None
    assert box.wait_s(0.0) is None
    with pytest.raises(ValueError, match="under way"):
        box.answer(DELIVERED, 0.0)


def test_waits_double_up_to_the_bound_with_jitter_of_half() -> None:
    box = outbox(give_up_s=1e9)
    box.put(notice(), "a", 0.0)
    now, waits = 0.0, []
    for _ in range(12):
        assert box.take(now) is not None
        assert box.answer(RETRY, now) == []
        wait_s = box.wait_s(now)
        assert wait_s is not None
        assert box.take(now + wait_s * 0.99) is None
        waits.append(wait_s)
        now += wait_s
    for number, wait_s in enumerate(waits):
        full = min(60.0, 2.0**number)
        assert full / 2 <= wait_s <= full
    assert len(set(waits)) == len(waits)
    assert box.take(now) is not None
    box.answer(DELIVERED, now)
    box.put(notice(), "b", now)
    assert box.take(now) is not None, "after a delivery nothing is held against the sink"


def test_a_receiver_that_says_when_is_heeded_but_not_beyond_giving_up() -> None:
    box = outbox(give_up_s=100.0)
    box.put(notice(), "a", 0.0)
    box.take(0.0)
    box.answer(Verdict("retry", "HTTP 429", 30.0), 0.0)
    assert box.wait_s(0.0) == 30.0
    box.take(30.0)
    box.answer(Verdict("retry", "HTTP 429", 1e6), 30.0)
    assert box.wait_s(30.0) == 100.0


def test_what_a_sink_that_fails_whatever_it_gets_has_not_taken_in_time_is_given_up_with_all_as_old() -> None:
    box = outbox(give_up_s=10.0)
    for number, queued_s in enumerate((0.0, 1.0, 1.0, 9.0)):
        box.put(notice(made(f"item:{number}")), number, queued_s)
    for at in (0.0, 1.0, 3.0, 7.0):
        box.take(at)
        assert box.answer(RETRY, at) == []
    box.take(15.0)
    over = box.answer(RETRY, 15.0)
    assert [settled.entry.handles for settled in over] == [[1], [2], [0]]
    assert [settled.failure for settled in over] == [
        f"HTTP 500; given up after {attempts} attempts" for attempts in (1, 0, 4)
    ]
    assert len(box) == 1


def test_an_alert_that_changes_twice_around_a_failure_ends_with_its_end() -> None:
    box = outbox(latest_only=True)
    box.put(notice(made("item:1", "opened")), "a", 0.0)
    box.take(0.0)
    box.put(notice(made("item:1", "worsening", minute=1)), "b", 0.0)
    box.answer(RETRY, 0.0)
    assert len(box) == 1
    box.put(notice(made("item:1", "resolved", minute=2)), "c", 0.0)
    entry = box.take(60.0)
    assert entry is not None
    assert (entry.notice.alert.status, entry.handles) == ("resolved", ["a", "b", "c"])
    assert (len(box.answer(DELIVERED, 60.0)), box.take(60.0)) == (1, None)


def test_a_letter_sent_again_while_later_news_is_under_way_goes_with_it() -> None:
    box = outbox(latest_only=True)
    box.put(notice(made("item:1", "resolved", minute=5)), "a", 0.0)
    box.take(0.0)
    box.put(notice(made("item:1", "opened")), "a letter sent again", 0.0)
    box.answer(RETRY, 0.0)
    entry = box.take(60.0)
    assert entry is not None
    assert (entry.notice.alert.status, entry.handles) == ("resolved", ["a", "a letter sent again"])


def test_what_is_given_up_takes_no_later_news_with_it() -> None:
    box = outbox(latest_only=True, give_up_s=10.0)
    box.put(notice(made("item:1", "opened")), "a", 0.0)
    box.take(0.0)
    box.answer(RETRY, 0.0)
    box.take(10.0)
    box.put(notice(made("item:1", "resolved", minute=1)), "b", 10.0)
    assert [settled.entry.handles for settled in box.answer(RETRY, 10.0)] == [["a"]]
    assert [entry.handles for entry in drained(box, 60.0)] == [["b"]]


def drained(box: Outbox, now_s: float) -> list[Entry]:
    """What a sink that takes everything gets, one right behind the other."""
    taken = []
    while (entry := box.take(now_s)) is not None:
        taken.append(entry)
        box.answer(DELIVERED, now_s)
    return taken


@pytest.mark.parametrize("latest_only", [True, False])
def test_a_message_that_a_sink_never_takes_goes_behind_the_others(latest_only: bool) -> None:
    box = outbox(latest_only=latest_only)
    for number in range(4):
        box.put(notice(made(f"item:{number}")), number, 0.0)
    now, over, delivered = 0.0, [], []
    while now <= 2000.0 and len(box):
        entry = box.take(now)
        if entry is not None and entry.handles == [0]:
            over += box.answer(RETRY, now)
        elif entry is not None:
            delivered.append((entry.handles[0], now))
            box.answer(DELIVERED, now)
        now += 1.0
    assert [number for number, _ in delivered] == [1, 2, 3]
    assert all(at < 20.0 for _, at in delivered)
    assert [settled.entry.handles for settled in over] == [[0]]


def test_one_failing_message_gives_up_no_other_that_was_never_tried() -> None:
    box = outbox(give_up_s=100.0)
    box.put(notice(made("item:0")), 0, 0.0)
    box.put(notice(made("item:1")), 1, 0.0)
    for at in (0.0, 200.0):  # a receiver that names so long a wait
        box.take(at)
        over = box.answer(Verdict("retry", "HTTP 429", 200.0), at)
    assert [settled.entry.handles for settled in over] == [[0]]
    assert [entry.handles for entry in drained(box, 400.0)] == [[1]]


def test_one_failure_gives_up_nothing_that_waited_for_the_rate() -> None:
    box = outbox(give_up_s=100.0, max_per_minute=1)
    for number in range(5):
        box.put(notice(made(f"item:{number}")), number, 0.0)
    for at in (0.0, 60.0):
        box.take(at)
        box.answer(DELIVERED, at)
    for at in (120.0, 180.0):
        box.take(at)
        assert box.answer(RETRY, at) == []
    assert len(box) == 3


def test_changes_of_an_alert_stay_in_order_behind_the_one_that_failed() -> None:
    box = outbox()
    box.put(notice(made("item:1", "opened")), "a", 0.0)
    box.put(notice(made("item:2")), "c", 0.0)
    box.put(notice(made("item:1", "resolved", minute=1)), "b", 0.0)
    for at in (0.0, 10.0, 20.0, 30.0):
        box.take(at)
        box.answer(RETRY, at)
    assert [entry.handles for entry in drained(box, 60.0)] == [["c"], ["a"], ["b"]]


def test_a_refusal_is_final_and_holds_nothing_up() -> None:
    box = outbox()
    box.put(notice(made("item:0")), 0, 0.0)
    box.put(notice(made("item:1")), 1, 0.0)
    box.take(0.0)
    (settled,) = box.answer(REFUSED, 0.0)
    assert settled.failure == "HTTP 404"
    entry = box.take(0.0)
    assert entry is not None
    assert entry.handles == [1]


def test_people_get_the_latest_of_an_alert_machines_get_everything() -> None:
    for latest_only, expected in ((True, [["a", "b"], ["c"]]), (False, [["a"], ["c"], ["b"]])):
        box = outbox(latest_only=latest_only)
        box.put(notice(made("item:1", "opened")), "a", 0.0)
        box.put(notice(made("item:2", "opened")), "c", 0.0)
        box.put(notice(made("item:1", "resolved", minute=3)), "b", 0.0)
        seen = []
        while (entry := box.take(0.0)) is not None:
            seen.append(entry)
            box.answer(DELIVERED, 0.0)
        assert [entry.handles for entry in seen] == expected
        assert seen[0].notice.alert.status == ("resolved" if latest_only else "opened")


def test_what_comes_late_does_not_take_the_place_of_later_news() -> None:
    box = outbox(latest_only=True)
    box.put(notice(made("item:1", "resolved", minute=5)), "a", 0.0)
    box.put(notice(made("item:1", "opened")), "a letter sent again", 0.0)
    entry = box.take(0.0)
    assert entry is not None
    assert (entry.notice.alert.status, entry.handles) == ("resolved", ["a", "a letter sent again"])


def test_what_is_under_way_is_not_changed_by_what_comes() -> None:
    box = outbox(latest_only=True)
    box.put(notice(made("item:1", "opened")), "a", 0.0)
    entry = box.take(0.0)
    box.put(notice(made("item:1", "worsening", minute=1)), "b", 0.0)
    assert entry is not None
    assert (entry.notice.alert.status, entry.handles, len(box)) == ("opened", ["a"], 2)


def test_handles_of_lost_partitions_are_dropped_with_messages_that_have_no_other() -> None:
    box = outbox(latest_only=True)
    box.put(notice(made("item:1")), "mine", 0.0)
    box.put(notice(made("item:1", "worsening", minute=1)), "gone", 0.0)
    box.put(notice(made("item:2")), "gone", 0.0)
    box.forget(lambda handle: handle == "gone")
    assert len(box) == 1
    entry = box.take(0.0)
    assert entry is not None
    assert entry.handles == ["mine"]


def test_what_is_withdrawn_is_over_and_holds_nothing_against_the_sink() -> None:
    box = outbox()
    box.put(notice(made("item:0")), 0, 0.0)
    box.put(notice(made("item:1")), 1, 0.0)
    box.take(0.0)
    settled = box.withdraw()
    assert (settled.entry.handles, settled.withdrawn, settled.failure) == ([0], True, None)
    entry = box.take(0.0)
    assert entry is not None
    assert entry.handles == [1]
    box.answer(DELIVERED, 0.0)
    with pytest.raises(ValueError, match="under way"):
        box.withdraw()


def test_what_is_withdrawn_uses_up_nothing_of_the_rate() -> None:
    box = outbox(max_per_minute=1)
    for number in range(3):
        box.put(notice(made(f"item:{number}")), number, 0.0)
    assert box.take(0.0) is not None
    assert box.withdraw().entry.attempts == 0
    assert box.take(0.0) is not None
    box.answer(DELIVERED, 0.0)
    assert box.wait_s(0.0) == RATE_WINDOW_S


def test_it_says_when_it_is_full() -> None:
    box = outbox(queue_max=2)
    box.put(notice(), 0, 0.0)
    assert not box.full
    box.put(notice(), 1, 0.0)
    assert box.full
    box.take(0.0)
    assert box.full, "what is under way counts"


@given(
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from([DELIVERED, RETRY, REFUSED])), max_size=80), st.integers(1, 7)
)
def test_no_minute_sees_more_attempts_than_allowed(steps: list[tuple[float, Verdict]], rate: int) -> None:
    box = outbox(max_per_minute=rate, retry_min_s=0.001, retry_max_s=0.002)
    now, attempts = 0.0, []
    for pause_s, verdict in steps:
        now += pause_s
        box.put(notice(), "x", now)
        if box.take(now) is not None:
            attempts.append(now)
            box.answer(verdict, now)
    for at in attempts:
        assert sum(at <= other < at + RATE_WINDOW_S for other in attempts) <= rate
