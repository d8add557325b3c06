"""Whom to tell of an alert, and which alerts are one incident."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.control import Ack, Mute
from schemas.dead import HEADER_REPLAY_OF
from schemas.evidence import Evidence, Share
from schemas.scores import Alert
from tests.alerts_made import made
from tests.opinions import detect, stream
from worker.config import NotifyConfig, WebhookConfig
from worker.notify import dispatch as dispatch_module
from worker.notify.controls import Controls
from worker.notify.dispatch import Dispatcher, Routed
from worker.notify.incident import Incidents
from worker.notify.notice import Notice

SINKS = {
    "all": WebhookConfig(url="https://x"),
    "critical": WebhookConfig(url="https://x", min_severity="critical"),
    "brands": WebhookConfig(url="https://x", subjects=("brand:*", "category:*")),
}
NOW_MS = made().process_time_ms


def dispatcher(controls: Controls | None = None) -> Dispatcher:
    return Dispatcher(NotifyConfig(sinks=SINKS, max_age_minutes=60), controls or Controls())


def test_filters_choose_the_sinks() -> None:
    one = dispatcher()
    assert one.route(0, made("item:a"), NOW_MS).sinks == ("all",)
    assert one.route(0, made("item:b", severity="critical"), NOW_MS).sinks == ("all", "critical")
    assert one.route(0, made("brand:c"), NOW_MS).sinks == ("all", "brands")


def test_a_filter_is_a_shell_pattern_or_the_name_itself() -> None:
    sinks = {"sale": WebhookConfig(url="https://x", subjects=("category:[促销]水壶",))}
    one = Dispatcher(NotifyConfig(sinks=sinks, max_age_minutes=60), Controls())
    assert one.route(0, made("category:[促销]水壶"), NOW_MS).sinks == ("sale",)
    assert one.route(0, made("category:促水壶"), NOW_MS).sinks == ("sale",)
    assert one.route(0, made("category:水壶"), NOW_MS).sinks == ()


def test_a_rule_that_names_sinks_goes_to_those_only() -> None:
    one = dispatcher()
    missed = one.route(0, made("item:a", sinks=["critical", "elsewhere"]), NOW_MS)
    assert missed == Routed(skipped="unwanted", unknown=("elsewhere",))
    routed = one.route(0, made("item:b", sinks=["critical"], severity="critical"), NOW_MS)
    assert routed.sinks == ("critical",)


def test_the_same_alert_status_and_window_is_told_once() -> None:
    one = dispatcher()
    first = made("item:a", "opened", minute=5)
    assert one.route(0, first, NOW_MS).sinks
    assert one.route(0, msgspec.structs.replace(first, process_time_ms=NOW_MS + 5), NOW_MS) == Routed(skipped="repeat")
    assert one.route(0, made("item:a", "worsening", minute=5), NOW_MS).sinks
    assert one.route(0, made("item:a", "worsening", minute=6), NOW_MS).sinks


def test_a_rise_to_critical_is_told_beside_what_else_worsened_in_that_minute() -> None:
    one = dispatcher()
    worse = made("item:a", "worsening", minute=5)
    assert one.route(0, worse, NOW_MS).sinks == ("all",)
    critical = msgspec.structs.replace(worse, severity="critical")
    assert one.route(0, critical, NOW_MS).sinks == ("all", "critical")
    assert one.route(0, critical, NOW_MS).skipped == "repeat"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(shares=st.lists(st.floats(0.0, 1.0), min_size=8, max_size=8), seed=st.integers(0, 99))
@example(shares=[0.96, 0.95, 0.06, 0.08, 0.84, 0.74, 0.67, 0.31], seed=2)  # worsens twice in a minute
def test_every_message_of_an_alert_bears_an_id_of_its_own(shares: list[float], seed: int) -> None:
    burst = dict(enumerate(shares, 40))
    told = detect(stream(60, 30, lambda _s, minute: burst.get(minute, 0.1), subjects=("item:lamp",), seed=seed))
    ids = [Notice(alert=alert, incident_id="").message_id for alert in told]
    assert len(ids) == len(set(ids))


def test_what_was_told_before_this_process_began_is_a_repeat_until_the_partition_moves() -> None:
    one = dispatcher()
    one.remember(3, made("item:a"))
    assert one.route(3, made("item:a"), NOW_MS).skipped == "repeat"
    one.forget(3)
    assert one.route(3, made("item:a"), NOW_MS).sinks


def test_memory_of_what_was_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_module, "SEEN_MAX", 2)
    one = dispatcher()
    for minute in range(3):
        one.route(0, made(minute=minute), NOW_MS)
    assert one.route(0, made(minute=2), NOW_MS).skipped == "repeat"
    assert one.route(0, made(minute=0), NOW_MS).sinks


def test_old_news_muted_and_acknowledged_alerts_are_nobodys() -> None:
    controls = Controls()
    one = dispatcher(controls)
    assert one.route(0, made(process_time_ms=NOW_MS - 3_600_001), NOW_MS).skipped == "old"
    for control in (
        Mute(pattern="brand:*", until_ms=NOW_MS + 1000, at_ms=NOW_MS),
        Ack(alert_id="alert-item:b", at_ms=NOW_MS),
    ):
        controls.apply(control.key().encode(), msgspec.json.encode(control))
    assert one.route(0, made("brand:x"), NOW_MS).skipped == "muted"
    assert one.route(0, made("item:b", "worsening"), NOW_MS).skipped == "acknowledged"
    assert one.route(0, made("item:b", "resolved", minute=4), NOW_MS).sinks == ("all",)


def replay_of(letter_id: str) -> list[tuple[str, bytes | None]]:
    return [("trace", None), (HEADER_REPLAY_OF, letter_id.encode())]


def test_a_letter_sent_again_goes_to_its_sink_alone_however_old_it_is() -> None:
    one = dispatcher()
    alert = made("brand:c", severity="critical", process_time_ms=NOW_MS - 86_400_000)
    one.remember(0, alert)
    assert one.route(0, alert, NOW_MS, replay_of("alerts.opinion/0/12#brands")).sinks == ("brands",)
    assert one.route(0, alert, NOW_MS, replay_of("alerts.opinion/0/12#all")).sinks == ("all",)
    # A letter that was for nobody in particular: a record that an earlier release could not read.
    assert one.route(0, alert, NOW_MS, replay_of("alerts.opinion/0/12")).sinks == tuple(SINKS)
    assert one.route(0, alert, NOW_MS).skipped == "repeat"


def test_mutes_and_filters_hold_for_a_letter_sent_again() -> None:
    controls = Controls()
    one = dispatcher(controls)
    again = replay_of("alerts.opinion/0/12#critical")
    assert one.route(0, made("item:a"), NOW_MS, again).skipped == "unwanted"
    mute = Mute(pattern="item:*", until_ms=NOW_MS + 1000, at_ms=NOW_MS)
    controls.apply(mute.key().encode(), msgspec.json.encode(mute))
    assert one.route(0, made("item:a", severity="critical"), NOW_MS, again).skipped == "muted"


def test_a_letter_whose_sink_has_gone_is_neither_told_nor_skipped() -> None:
    again = replay_of("alerts.opinion/0/12#gone")
    assert dispatcher().route(0, made(), NOW_MS, again) == Routed(unknown=("gone",))


@pytest.mark.parametrize("value", [None, b"", b"nonsense", b"alerts.opinion/0/12#", b"\xff/0/1#all"])
def test_a_mark_that_no_replay_writes_makes_no_letter(value: bytes | None) -> None:
    one = dispatcher()
    one.remember(0, made())
    assert one.route(0, made(), NOW_MS, [(HEADER_REPLAY_OF, value)]).skipped == "repeat"


# --- incidents --------------------------------------------------------------------------------------------------------


def sharing(subject: str, shares: dict[str, float], status: str = "opened", minute: int = 0, opened: int = 0) -> Alert:
    related = [Share(subject=name, negative=10, share=share) for name, share in shares.items()]
    at = made(subject, minute=opened).window_end_ms
    return made(subject, status, minute=minute, opened_at_ms=at, evidence=Evidence(seen=10, related=related))


ITEM = sharing("item:lamp", {"category:lamps": 1.0, "brand:lux": 1.0}, opened=2, minute=2)
CATEGORY = sharing("category:lamps", {"item:lamp": 0.8, "item:bulb": 0.1}, opened=3, minute=3)
BRAND = sharing("brand:lux", {"item:lamp": 0.6, "category:lamps": 0.3}, opened=4, minute=4)
OTHER = sharing("item:tent", {"category:camping": 1.0}, opened=3, minute=3)


@pytest.mark.parametrize("order", list(itertools.permutations([ITEM, CATEGORY, BRAND, OTHER])))
def test_an_item_its_category_and_its_brand_are_one_incident_in_any_order(order: tuple[Alert, ...]) -> None:
    incidents = Incidents()
    for alert in order:
        incidents.join(alert)
    found = {alert.subject: incidents.join(alert) for alert in order}
    assert {found[name][0] for name in ("item:lamp", "category:lamps", "brand:lux")} == {ITEM.alert_id}
    assert found["item:tent"] == (OTHER.alert_id, ())
    assert found["brand:lux"][1] == ("item:lamp", "category:lamps")


def test_less_than_half_in_common_or_long_apart_is_not_the_same() -> None:
    incidents = Incidents()
    incidents.join(sharing("category:lamps", {"item:lamp": 0.49}))
    assert incidents.join(sharing("item:lamp", {"category:lamps": 0.2}))[1] == ()
    incidents = Incidents()
    incidents.join(sharing("category:lamps", {"item:lamp": 1.0}))
    assert incidents.join(sharing("item:lamp", {"category:lamps": 1.0}, opened=31, minute=31))[1] == ()


def test_what_has_resolved_is_of_the_incident_but_alarms_no_more() -> None:
    incidents = Incidents()
    incidents.join(ITEM)
    incidents.join(sharing("item:lamp", {}, "resolved", opened=2, minute=9))
    incident_id, together = incidents.join(CATEGORY)
    assert (incident_id, together) == (ITEM.alert_id, ())
    incidents.join(ITEM)  # a dead letter sent again
    assert incidents.join(CATEGORY) == (ITEM.alert_id, ())


def test_an_alert_without_evidence_stands_alone() -> None:
    assert Incidents().join(made()) == (made().alert_id, ())


def test_the_number_of_alerts_known_is_bounded() -> None:
    incidents = Incidents(max_alerts=2)
    incidents.join(ITEM)
    incidents.join(OTHER)
    incidents.join(BRAND)
    # The lamp's alert, which joins the two, is forgotten.
    assert incidents.join(CATEGORY) == (CATEGORY.alert_id, ())
