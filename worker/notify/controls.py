"""Which alerts people want to hear no more of: mutes by subject and acknowledgements by alert. Pure.

Bounds: `MAX_MUTES` and `MAX_ACKS`; beyond them the oldest are dropped, which errs on the side of telling. Mutes end
by themselves, and acknowledgements are forgotten after `ACK_DAYS`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final, Literal, TypeVar

import msgspec

from schemas.control import MAX_MUTE_DAYS, Ack, Control, Mute
from schemas.scores import Alert

MAX_MUTES: Final = 1000
MAX_ACKS: Final = 10_000
ACK_DAYS: Final = 30
DAY_MS: Final = 24 * 60 * 60 * 1000

T = TypeVar("T")
Silence = Literal["muted", "acknowledged"]
_decoder = msgspec.json.Decoder(Control)


class Controls:
    """The latest record of every key of ``alerts.control``."""

    def __init__(self) -> None:
        self._mutes: dict[str, Mute] = {}
        self._acks: dict[str, Ack] = {}

    def apply(self, key: bytes | None, value: bytes | None) -> bool:
        """Take one record in. False for one that is no control, which changes nothing."""
        name = (key or b"").decode(errors="replace")
        if not value:
            self._mutes.pop(name, None)
            self._acks.pop(name, None)
            return True
        try:
            control = _decoder.decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
        if control.key() != name:
            return False
        if isinstance(control, Mute):
            _put(self._mutes, name, control, MAX_MUTES)
        else:
            _put(self._acks, name, control, MAX_ACKS)
        return True

    def silence(self, alert: Alert, now_ms: int) -> Silence | None:
        """Why nobody is to be told of this alert; None when they are."""
        ack = self._acks.get(f"ack:{alert.alert_id}")
        if ack is not None and alert.status != "resolved" and now_ms - ack.at_ms < ACK_DAYS * DAY_MS:
            return "acknowledged"
        # Names have brackets of their own: only * and ? are signs of a mute.
        muted = any(fnmatchcase(alert.subject, mute.pattern.replace("[", "[[]")) for mute in self.mutes(now_ms))
        return "muted" if muted else None

    def mutes(self, now_ms: int) -> list[Mute]:
        """Mutes in force, those that end first first. One made for longer than the contract allows is cut to it."""
        limit = MAX_MUTE_DAYS * DAY_MS
        active = [mute for mute in self._mutes.values() if now_ms < min(mute.until_ms, mute.at_ms + limit)]
        return sorted(active, key=lambda mute: (mute.until_ms, mute.pattern))

    def acks(self, now_ms: int) -> list[Ack]:
        """Acknowledgements not yet forgotten, newest first."""
        kept = [ack for ack in self._acks.values() if now_ms - ack.at_ms < ACK_DAYS * DAY_MS]
        return sorted(kept, key=lambda ack: (-ack.at_ms, ack.alert_id))


def _put(records: dict[str, T], name: str, record: T, bound: int) -> None:
    records.pop(name, None)  # to the end: the order is that of the topic
    records[name] = record
    while len(records) > bound:
        del records[next(iter(records))]
