"""Mutes and acknowledgements: who is kept quiet, for how long, and what happens at the bounds."""

from __future__ import annotations

import msgspec
import pytest

from schemas.control import MAX_MUTE_DAYS, Ack, Mute
from tests.alerts_made import made
from worker.errors import InputError
from worker.notify import controls as controls_module
from worker.notify.controls import ACK_DAYS, DAY_MS, Controls
from worker.tools.silencing import duration_s

NOW = 1_000 * DAY_MS


def put(controls: Controls, control: Mute | Ack) -> None:
    assert controls.apply(control.key().encode(), msgspec.json.encode(control))


def test_a_mute_keeps_what_matches_quiet_until_it_ends() -> None:
    controls = Controls()
    put(controls, Mute(pattern="item:l*", until_ms=NOW + 1000, at_ms=NOW))
    assert controls.silence(made("item:lamp"), NOW) == "muted"
    assert controls.silence(made("item:lamp", "resolved"), NOW) == "muted"
    assert controls.silence(made("item:kettle"), NOW) is None
    assert controls.silence(made("item:lamp"), NOW + 1000) is None
    assert controls.mutes(NOW + 1000) == []


def test_brackets_in_a_mute_are_themselves() -> None:
    controls = Controls()
    put(controls, Mute(pattern="category:[促销]水壶", until_ms=NOW + 1000, at_ms=NOW))
    put(controls, Mute(pattern="item:[!x]*", until_ms=NOW + 1000, at_ms=NOW))
    assert controls.silence(made("category:[促销]水壶"), NOW) == "muted"
    assert controls.silence(made("item:[!x]lamp"), NOW) == "muted"
    assert controls.silence(made("category:促水壶"), NOW) is None
    assert controls.silence(made("item:lamp"), NOW) is None


def test_a_mute_is_replaced_and_taken_back_by_its_key() -> None:
    controls = Controls()
    put(controls, Mute(pattern="item:*", until_ms=NOW + 1000, at_ms=NOW))
    put(controls, Mute(pattern="item:*", until_ms=NOW + 9000, at_ms=NOW, by="li"))
    assert [mute.until_ms for mute in controls.mutes(NOW)] == [NOW + 9000]
    assert controls.apply(b"mute:item:*", None)
    assert controls.silence(made(), NOW) is None


def test_no_mute_outlasts_what_the_topic_keeps() -> None:
    controls = Controls()
    put(controls, Mute(pattern="*", until_ms=NOW + 10_000 * DAY_MS, at_ms=NOW))
    assert controls.silence(made(), NOW + MAX_MUTE_DAYS * DAY_MS - 1) == "muted"
    assert controls.silence(made(), NOW + MAX_MUTE_DAYS * DAY_MS) is None


def test_an_acknowledged_alert_tells_only_its_end() -> None:
    controls = Controls()
    alert = made("item:lamp", "worsening")
    put(controls, Ack(alert_id=alert.alert_id, at_ms=NOW))
    assert controls.silence(alert, NOW) == "acknowledged"
    assert controls.silence(made("item:kettle", "worsening"), NOW) is None
    assert controls.silence(made("item:lamp", "resolved"), NOW) is None
    assert controls.silence(alert, NOW + ACK_DAYS * DAY_MS) is None
    assert controls.acks(NOW + ACK_DAYS * DAY_MS) == []


def test_state_is_bounded_and_the_oldest_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls_module, "MAX_MUTES", 3)
    monkeypatch.setattr(controls_module, "MAX_ACKS", 2)
    controls = Controls()
    for number in range(5):
        put(controls, Mute(pattern=f"item:{number}", until_ms=NOW + 1000 + number, at_ms=NOW))
        put(controls, Ack(alert_id=str(number), at_ms=NOW + number))
    assert [mute.pattern for mute in controls.mutes(NOW)] == ["item:2", "item:3", "item:4"]
    assert [ack.alert_id for ack in controls.acks(NOW)] == ["4", "3"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"mute:a", b"not json"),
        (b"mute:a", b"\xff"),
        (b"mute:a", b'{"kind":"mute","pattern":"b","until_ms":1,"at_ms":1}'),
        (b"mute:a", b'{"kind":"deafen"}'),
        (None, b'{"kind":"mute","pattern":"b","until_ms":1,"at_ms":1}'),
        (b"ack:", b'{"kind":"ack","alert_id":"","at_ms":1}'),
    ],
)
def test_what_is_no_control_changes_nothing(key: bytes | None, value: bytes) -> None:
    controls = Controls()
    put(controls, Mute(pattern="item:*", until_ms=NOW + 1000, at_ms=NOW))
    assert not controls.apply(key, value)
    assert len(controls.mutes(NOW)) == 1


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d12h", 129_600)])
def test_durations_are_read(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "2w", "31d", "0s", "1e3s", "99999999h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--for"):
        duration_s(text)
