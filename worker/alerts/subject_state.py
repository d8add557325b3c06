"""What is kept of a subject, and its bytes: this release's and the previous one's."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from schemas.folds import FormatError
from schemas.scores import AlertStatus, Level
from worker.alerts.baseline import Expected
from worker.alerts.rules import WINDOW_MINUTES_MAX, Kind
from worker.alerts.season import Season
from worker.alerts.voices import Voices

FORMAT_VERSION: Final = 2
MINUTE_MS: Final = 60_000
MILLIONTHS: Final = 1_000_000
BLOCK_MINUTES: Final = 5
BLOCKS: Final = 36

Severity = Literal["warning", "critical"]


class OpenAlert(msgspec.Struct, array_like=True):
    """An alert that is not resolved. What was expected of the share stays as it was at the opening."""

    alert_id: str
    rule: str
    opened_at_ms: int
    first_minute: int
    expected: Expected
    status: AlertStatus
    severity: Severity
    reported_score: float
    reported_minute: int


class SubjectState(msgspec.Struct, array_like=True):
    """What is kept of a subject. New fields go last, with a default: the previous release's bytes stay readable.

    minutes   minute -> [negative mass in millionths, opinions, set apart]
    blocks    block of five minutes -> [negative mass in millionths, opinions, 1 where an alert stood open]
    marks     id of the source topic (its name where the opinion tells none)/partition -> highest source offset counted
    alerts    kind -> the alert that stands open; resolved: kind -> the minute the last one ended
    """

    level: Level = "item"
    model_version: str = ""
    touched_minute: int = 0
    minutes: dict[int, list[int]] = {}
    blocks: dict[int, list[int]] = {}
    marks: dict[str, int] = {}
    alerts: dict[Kind, OpenAlert] = {}
    resolved: dict[Kind, int] = {}
    next_hour: int = -1
    burn: float = 0.0
    burn_hour: int = -1
    voices: Voices = msgspec.field(default_factory=Voices)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SubjectState).decode


def to_bytes(state: SubjectState) -> bytes:
    """Format version, then msgpack."""
    return bytes([FORMAT_VERSION]) + _encode(state)


def from_bytes(data: bytes) -> tuple[SubjectState, Season | None]:
    """State of the bytes of `to_bytes`, or of the first release's, which held the beginnings of a season too.

    Raises `FormatError` when they cannot be read.
    """
    version = data[0] if data else None
    if version == 1:
        return _first_release(data)
    if version != FORMAT_VERSION:
        found = "nothing" if version is None else version
        raise FormatError(f"alert state: format version {found}, this release reads 1 and {FORMAT_VERSION}")
    try:
        return _decode(memoryview(data)[1:]), None
    except msgspec.MsgspecError as error:
        raise FormatError(f"alert state: {error}") from error


class _FirstState(msgspec.Struct, array_like=True):
    """What format version 1 kept, see `SubjectState`. ``ring``: minutes; ``past``: a decayed sum of what left them."""

    level: Level
    model_version: str
    touched_minute: int
    ring: dict[int, list[int]]
    marks: dict[str, int]
    past: list[float]
    resolved_minute: int | None = None
    alert: tuple[str, int, int, Expected, AlertStatus, Severity, float, int] | None = None


def _first_release(data: bytes) -> tuple[SubjectState, Season]:
    try:
        old = msgspec.msgpack.decode(memoryview(data)[1:], type=_FirstState)
    except msgspec.MsgspecError as error:
        raise FormatError(f"alert state: {error}") from error
    state = SubjectState(old.level, old.model_version, old.touched_minute, marks=old.marks)
    for minute, (mass, total, alarmed) in sorted(old.ring.items()):
        if minute > old.touched_minute - WINDOW_MINUTES_MAX:
            state.minutes[minute] = [mass, total, 0]
        block = state.blocks.setdefault(minute // BLOCK_MINUTES, [0, 0, 0])
        block[0], block[1], block[2] = block[0] + mass, block[1] + total, max(block[2], alarmed)
    season = Season()
    if state.blocks:
        state.next_hour = min(state.blocks) * BLOCK_MINUTES // 60
        if old.past[1] >= 1:
            season.put(state.next_hour - 1, old.past[0], old.past[1])
    if old.resolved_minute is not None:
        state.resolved["surge"] = old.resolved_minute
    if old.alert is not None:
        identity, *rest = old.alert
        fields: list[Any] = [identity, "negative_share", *rest]
        state.alerts["surge"] = OpenAlert(*fields)
    return state, season
