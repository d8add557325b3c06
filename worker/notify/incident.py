"""Alerts of related subjects as one incident. Pure.

When complaints about one item surge, its category and brand may alarm too. Two alerts belong together when their times
are no more than `GAP_MS` apart and at least half of the negative opinion on one subject also counts at the other
(`Alert.evidence.related`). The incident bears the id of the alert that opened first. What belongs to two incidents
joins them under the earlier one's id.

Bound: `MAX_ALERTS`; beyond it those longest not heard of are forgotten, and their later messages stand alone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from schemas.scores import Alert

SHARE_MIN: Final = 0.5
GAP_MS: Final = 30 * 60 * 1000
MAX_ALERTS: Final = 2000


class _Known(msgspec.Struct):
    """An alert as last heard of. ``related``: subjects that share at least `SHARE_MIN` of its negative opinion."""

    subject: str
    opened_at_ms: int
    last_ms: int
    related: frozenset[str]
    incident_id: str
    resolved: bool


class Incidents:
    """Alerts lately heard of, and the incident that each belongs to."""

    def __init__(self, max_alerts: int = MAX_ALERTS) -> None:
        self._max_alerts = max_alerts
        self._alerts: OrderedDict[str, _Known] = OrderedDict()

    def join(self, alert: Alert) -> tuple[str, tuple[str, ...]]:
        """Id of the incident of this alert, and the other subjects that still alarm in it, earliest first."""
        known = self._update(alert)
        members = [other for other in self._alerts.values() if other is not known and _together(known, other)]
        ids = {known.incident_id, *(member.incident_id for member in members)}
        incident = [each for each in self._alerts.values() if each.incident_id in ids]
        if len(ids) > 1:
            # Never empty: an id is that of one of the alerts, or of one forgotten, and `known` is here.
            first = min(incident, key=lambda each: (each.opened_at_ms, each.subject))
            for each in incident:
                each.incident_id = first.incident_id
        others = sorted(
            (each for each in incident if each is not known and not each.resolved),
            key=lambda each: (each.opened_at_ms, each.subject),
        )
        return known.incident_id, tuple(dict.fromkeys(each.subject for each in others))

    def _update(self, alert: Alert) -> _Known:
        evidence = alert.evidence
        related = frozenset(each.subject for each in evidence.related if each.share >= SHARE_MIN) if evidence else None
        known = self._alerts.get(alert.alert_id)
        if known is None:
            known = self._alerts[alert.alert_id] = _Known(
                alert.subject, alert.opened_at_ms, alert.window_end_ms, frozenset(), alert.alert_id, False
            )
            while len(self._alerts) > self._max_alerts:
                self._alerts.popitem(last=False)
        self._alerts.move_to_end(alert.alert_id)
        if alert.window_end_ms >= known.last_ms:  # a dead letter sent again may tell what is long over
            known.last_ms, known.resolved = alert.window_end_ms, alert.status == "resolved"
        # What it shared at its height still tells what it was about when it fades.
        known.related |= related or frozenset()
        return known


def _together(a: _Known, b: _Known) -> bool:
    apart_ms = max(a.opened_at_ms, b.opened_at_ms) - min(a.last_ms, b.last_ms)
    return apart_ms <= GAP_MS and (a.subject in b.related or b.subject in a.related)
