"""Whom to tell of an alert: repeats, old news, mutes and acknowledgements are nobody's; the rest goes by filter. Pure.

A dead letter that a person sent again is no repeat and never too old, and goes to the letter's sink alone; mutes and
filters hold for it too.

Bound: `SEEN_MAX` messages a partition are remembered for telling repeats; the role reads as many back at its start.
"""

from __future__ import annotations

from collections import OrderedDict
from fnmatch import fnmatchcase
from typing import Final, Literal

import msgspec

from schemas.dead import HEADER_REPLAY_OF, Headers, parse_letter_id
from schemas.scores import Alert
from worker.config import NotifyConfig, SinkConfig
from worker.notify.controls import Controls
from worker.notify.incident import Incidents
from worker.notify.notice import Notice

SEEN_MAX: Final = 1000
MINUTE_MS: Final = 60_000
Skipped = Literal["repeat", "old", "muted", "acknowledged", "unwanted"]


class Routed(msgspec.Struct, frozen=True):
    """A notice and the names of its sinks, or why there are none.

    Neither is set for a replayed letter whose sink the configuration has no more: ``unknown`` names it, and it is to
    be kept. Otherwise ``unknown`` are names that the alert's rule gives and no sink bears.
    """

    notice: Notice | None = None
    sinks: tuple[str, ...] = ()
    skipped: Skipped | None = None
    unknown: tuple[str, ...] = ()


def replayed_to(headers: Headers) -> str | None:
    """The sink that a replayed letter is for, empty where it was for all; None for what is no replayed letter."""
    for name, value in headers:
        if name == HEADER_REPLAY_OF:
            try:
                return parse_letter_id((value or b"").decode())[1]
            except ValueError:  # not as `millrace dead replay` writes it
                return None
    return None


class Dispatcher:
    """Decides for every alert of the partitions held."""

    def __init__(self, config: NotifyConfig, controls: Controls) -> None:
        self._config = config
        self._controls = controls
        self._incidents = Incidents()
        self._seen: dict[int, OrderedDict[str, None]] = {}

    def remember(self, partition: int, alert: Alert) -> None:
        """An alert that was dealt with before this process began."""
        self._repeat(partition, self._notice(alert))

    def forget(self, partition: int) -> None:
        """The partition is another process's now."""
        self._seen.pop(partition, None)

    def route(self, partition: int, alert: Alert, now_ms: int, headers: Headers = ()) -> Routed:
        """Where the alert goes, at the wall time ``now_ms``; ``headers`` are those of its record."""
        notice = self._notice(alert)
        repeat, replayed = self._repeat(partition, notice), replayed_to(headers)
        if replayed is None and repeat:
            return Routed(skipped="repeat")
        if replayed is None and now_ms - alert.process_time_ms > self._config.max_age_minutes * MINUTE_MS:
            return Routed(skipped="old")
        silence = self._controls.silence(alert, now_ms)
        if silence is not None:
            return Routed(skipped=silence)
        named = (replayed,) if replayed else tuple(alert.sinks)
        unknown = tuple(name for name in named if name not in self._config.sinks)
        if replayed and unknown:
            return Routed(unknown=unknown)
        sinks = tuple(
            name for name, sink in self._config.sinks.items() if (not named or name in named) and _wanted(sink, alert)
        )
        return Routed(notice, sinks, unknown=unknown) if sinks else Routed(skipped="unwanted", unknown=unknown)

    def _notice(self, alert: Alert) -> Notice:
        incident_id, together = self._incidents.join(alert)
        return Notice(alert=alert, incident_id=incident_id, together=together)

    def _repeat(self, partition: int, notice: Notice) -> bool:
        seen = self._seen.setdefault(partition, OrderedDict())
        if notice.message_id in seen:
            return True
        seen[notice.message_id] = None
        if len(seen) > SEEN_MAX:
            seen.popitem(last=False)
        return False


def _wanted(sink: SinkConfig, alert: Alert) -> bool:
    if sink.min_severity == "critical" and alert.severity != "critical":
        return False
    # A name with brackets is itself too.
    return any(alert.subject == pattern or fnmatchcase(alert.subject, pattern) for pattern in sink.subjects)
