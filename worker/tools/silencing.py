"""Mutes and acknowledgements, written to ``alerts.control`` for every notifier to read."""

from __future__ import annotations

import re
import time
from contextlib import closing
from typing import Final

import msgspec

from schemas.control import MAX_MUTE_DAYS, Ack, Mute
from schemas.topics import ALERTS_CONTROL
from worker.config import KafkaConfig
from worker.errors import InputError
from worker.kafka.admin import partition_counts
from worker.kafka.readback import Readback
from worker.kafka.single import write_one
from worker.notify.controls import DAY_MS, Controls

SEND_TIMEOUT_S: Final = 15.0
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Silences(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force."""

    mutes: list[Mute]
    acks: list[Ack]


def duration_s(text: str) -> int:
    """Seconds of ``90s``, ``30m``, ``2h``, ``1d12h``. Raises `InputError` for anything else, and beyond the limit."""
    if not re.fullmatch(r"(?:[0-9]{1,7}[smhd])+", text):
        raise InputError(f"--for {text}: say 30m, 2h or 1d12h")
    seconds = sum(int(number) * _UNITS_S[unit] for number, unit in re.findall(r"([0-9]+)([smhd])", text))
    if not 0 < seconds <= MAX_MUTE_DAYS * DAY_MS // 1000:
        raise InputError(f"--for {text}: a mute lasts from a second to {MAX_MUTE_DAYS} days")
    return seconds


def mute(kafka: KafkaConfig, pattern: str, seconds: int, *, by: str = "", note: str = "") -> Mute:
    """No more messages about subjects that match, for so long. Raises `InputError`, `TopicError`, `KafkaError`."""
    now_ms = _now_ms()
    made = Mute(pattern=pattern, until_ms=now_ms + seconds * 1000, at_ms=now_ms, by=by, note=note)
    _write(kafka, made)
    return made


def unmute(kafka: KafkaConfig, pattern: str) -> None:
    """Take a mute back. Raises as `mute`."""
    _send(kafka, Mute(pattern=pattern, until_ms=0, at_ms=0).key(), None)


def ack(kafka: KafkaConfig, alert_id: str, *, by: str = "", note: str = "") -> Ack:
    """No more messages about this alert but that it resolved. Raises as `mute`."""
    made = Ack(alert_id=alert_id, at_ms=_now_ms(), by=by, note=note)
    _write(kafka, made)
    return made


def silences(kafka: KafkaConfig) -> Silences:
    """What is in force now. Raises `TopicError`, `KafkaError`."""
    controls = Controls()
    with closing(Readback(kafka, "silences")) as reader:
        for message in reader.read(reader.places(kafka.topic(ALERTS_CONTROL))):
            controls.apply(message.key(), message.value())
    now_ms = _now_ms()
    return Silences(mutes=controls.mutes(now_ms), acks=controls.acks(now_ms))


def _write(kafka: KafkaConfig, control: Mute | Ack) -> None:
    value = msgspec.json.encode(control)
    try:
        msgspec.json.decode(value, type=type(control))  # the limits of the contract are checked in reading
    except msgspec.ValidationError as error:
        raise InputError(f"{control.key()}: {error}") from error
    _send(kafka, control.key(), value)


def _send(kafka: KafkaConfig, key: str, value: bytes | None) -> None:
    topic = kafka.topic(ALERTS_CONTROL)
    partition_counts(kafka, [topic])  # a missing topic or broker is told now
    write_one(kafka, topic, value, key.encode(), doing=f"writing to {topic}", timeout_s=SEND_TIMEOUT_S)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
