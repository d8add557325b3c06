"""All subjects of one partition of ``opinions``: counts them, and says which alerts to publish.

Pure and replayable: the same opinions in the same order give the same alerts, whichever process sees them and
wherever it was stopped in between. A partition is a world of its own: its event time (the watermark: the highest
seen in it) moves all its subjects, so an alert resolves although its subject has fallen silent, and nothing depends
on which other partitions the process holds.

Bounds: at most `MAX_SUBJECTS` subjects; the longest untouched without an open alert make room. A subject without
opinions for `IDLE_MINUTES` of event time is forgotten. What is forgotten begins again without a baseline, so it
stays silent until it has one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from schemas.scores import Alert, Opinion
from worker.config import AlertsConfig
from worker.subject import MINUTE_MS, Counted, Subject

MAX_SUBJECTS: Final = 20_000
IDLE_MINUTES: Final = 24 * 60


class SurgeDetector:
    """Subjects of one partition, in order of their last opinion. `take_changes` tells what is not yet on disk."""

    def __init__(self, config: AlertsConfig, max_subjects: int = MAX_SUBJECTS) -> None:
        self._config = config
        self._max_subjects = max_subjects
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._open: set[str] = set()
        self._changed: set[str] = set()
        self._watermark_ms = -1

    @classmethod
    def restore(cls, config: AlertsConfig, subjects: Mapping[str, bytes], watermark_ms: int) -> SurgeDetector:
        """Detector as it stood when the bytes were taken. Raises `schemas.folds.FormatError`."""
        detector = cls(config)
        detector._watermark_ms = watermark_ms
        restored = [Subject.from_bytes(name, config, data) for name, data in subjects.items()]
        for subject in sorted(restored, key=lambda subject: (subject.touched_minute, subject.name)):
            detector._subjects[subject.name] = subject
            if subject.alert_open:
                detector._open.add(subject.name)
        return detector

    def __len__(self) -> int:
        return len(self._subjects)

    @property
    def watermark_ms(self) -> int:
        """Highest event time seen, -1 before the first opinion."""
        return self._watermark_ms

    @property
    def open_alerts(self) -> int:
        """Alerts that stand open."""
        return len(self._open)

    @property
    def changes(self) -> int:
        """Subjects that `take_changes` would give."""
        return len(self._changed)

    def add(self, opinion: Opinion, process_time_ms: int) -> tuple[Counted, list[Alert]]:
        """Count one opinion; what came of it, and the alerts to publish, in order."""
        alerts: list[Alert] = []
        if opinion.event_time_ms > self._watermark_ms:
            rolled = opinion.event_time_ms // MINUTE_MS > self._watermark_ms // MINUTE_MS
            self._watermark_ms = opinion.event_time_ms
            if rolled:
                alerts = self._roll(process_time_ms, but=opinion.subject)
        subject = self._subjects.get(opinion.subject)
        if subject is None:
            self._make_room()
            subject = self._subjects[opinion.subject] = Subject(opinion.subject, self._config)
        counted = subject.add(opinion, self._watermark_ms // MINUTE_MS)
        if counted != "repeat":
            self._subjects.move_to_end(opinion.subject)
            self._changed.add(opinion.subject)
            alerts += self._judge(subject, process_time_ms)
        return counted, alerts

    def take_changes(self) -> dict[str, bytes | None]:
        """Subjects that changed since the last call, as bytes; None for those forgotten."""
        changed, self._changed = self._changed, set()
        subjects = self._subjects
        return {name: subjects[name].to_bytes() if name in subjects else None for name in sorted(changed)}

    def _roll(self, process_time_ms: int, but: str) -> list[Alert]:
        # By name, because sets have no order that a restart would find again. The subject of the opinion that
        # moved the minute on is judged once, with it.
        alerts = []
        for name in sorted(self._open - {but}):
            alerts += self._judge(self._subjects[name], process_time_ms)
        self._forget_idle()
        return alerts

    def _judge(self, subject: Subject, process_time_ms: int) -> list[Alert]:
        alert = subject.judge(self._watermark_ms, process_time_ms)
        if alert is None:
            return []
        self._changed.add(subject.name)
        if subject.alert_open:
            self._open.add(subject.name)
        else:
            self._open.discard(subject.name)
        return [alert]

    def _forget_idle(self) -> None:
        oldest = self._watermark_ms // MINUTE_MS - IDLE_MINUTES
        while self._subjects:
            name, subject = next(iter(self._subjects.items()))
            if subject.touched_minute >= oldest or subject.alert_open:
                return
            self._forget(name)

    def _make_room(self) -> None:
        if len(self._subjects) >= self._max_subjects:
            calm = (name for name, subject in self._subjects.items() if not subject.alert_open)
            # Were every subject alarming, the bound still holds: the longest untouched goes.
            self._forget(next(calm, next(iter(self._subjects))))

    def _forget(self, name: str) -> None:
        del self._subjects[name]
        self._open.discard(name)
        self._changed.add(name)
