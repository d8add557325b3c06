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
from itertools import takewhile
from typing import Final

from schemas.scores import Alert, Opinion
from worker.alerts.baseline import ErrorRates
from worker.alerts.rules import RuleBook
from worker.alerts.subject import Subject
from worker.alerts.subject_state import BLOCK_MINUTES, MINUTE_MS
from worker.alerts.tally import Counted

MAX_SUBJECTS: Final = 20_000
IDLE_MINUTES: Final = 3 * 24 * 60
SEASON_PREFIX: Final = "#season:"
"""A subject's two weeks of hours are stored under a key of their own; no subject's name begins like it."""
PERFECT: Final = ErrorRates()
DEAF_MINUTES: Final = 10
"""A step of event time so long says that the whole partition was silent."""


class SurgeDetector:
    """Subjects of one partition, in order of their last opinion. `take_changes` tells what is not yet on disk."""

    def __init__(self, rules: RuleBook, rates: ErrorRates = PERFECT, max_subjects: int = MAX_SUBJECTS) -> None:
        self._rules = rules
        self._rates = rates
        self._max_subjects = max_subjects
        self._subjects: OrderedDict[str, Subject] = OrderedDict()
        self._open: set[str] = set()
        self._changed: set[str] = set()
        self._watermark_ms = -1
        self._heard_minute = 0

    @classmethod
    def restore(
        cls,
        rules: RuleBook,
        stored: Mapping[str, bytes],
        watermark_ms: int,
        *,
        heard_minute: int = 0,
        rates: ErrorRates = PERFECT,
    ) -> SurgeDetector:
        """Detector as it stood when the bytes were taken. Raises `schemas.folds.FormatError`."""
        detector = cls(rules, rates)
        detector._watermark_ms, detector._heard_minute = watermark_ms, heard_minute
        restored = [
            Subject.from_bytes(name, rules.match(name), rates, data, stored.get(SEASON_PREFIX + name))
            for name, data in stored.items()
            if not name.startswith(SEASON_PREFIX)
        ]
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
    def heard_minute(self) -> int:
        """The minute in which the partition was last heard again after a silence; 0 when there was none."""
        return self._heard_minute

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
            before = self._watermark_ms // MINUTE_MS
            self._watermark_ms = opinion.event_time_ms
            if opinion.event_time_ms // MINUTE_MS > before:
                alerts = self._roll(process_time_ms, but=opinion.subject, before=before)
        subject = self._subjects.get(opinion.subject)
        if subject is None:
            self._make_room()
            subject = self._subjects[opinion.subject] = Subject(
                opinion.subject, self._rules.match(opinion.subject), self._rates
            )
        counted = subject.add(opinion, self._watermark_ms // MINUTE_MS)
        if counted != "repeat":
            self._subjects.move_to_end(opinion.subject)
            self._changed.add(opinion.subject)
            alerts += self._judge(subject, process_time_ms)
        return counted, alerts

    def take_changes(self) -> dict[str, bytes | None]:
        """Subjects that changed since the last call, as bytes; None for those forgotten. A season stands before its
        subject: written alone it is only ahead, and the hours that close again put the same values."""
        changed, self._changed = self._changed, set()
        changes: dict[str, bytes | None] = {}
        for name in sorted(changed):
            subject = self._subjects.get(name)
            if subject is None:
                changes[SEASON_PREFIX + name] = changes[name] = None
                continue
            season = subject.take_season()
            if season is not None:
                changes[SEASON_PREFIX + name] = season
            changes[name] = subject.to_bytes()
        return changes

    def use(self, rules: RuleBook) -> None:
        """Judge by these rules from now on. An alert whose rule is gone resolves when its minute next rolls."""
        self._rules = rules
        for name, subject in self._subjects.items():
            subject.rules = rules.match(name)

    def _roll(self, process_time_ms: int, but: str, before: int) -> list[Alert]:
        # By name, because sets have no order that a restart would find again. The subject of the opinion that
        # moved the minute on is judged once, with it.
        alerts = []
        for name in sorted(self._open - {but}):
            alerts += self._judge(self._subjects[name], process_time_ms)
        now = self._watermark_ms // MINUTE_MS
        if now - before > DEAF_MINUTES:
            # Nothing came at all: the partition was away, not each of its subjects.
            self._heard_minute = now
        elif now // BLOCK_MINUTES > before // BLOCK_MINUTES:
            alerts += self._listen(process_time_ms, but)
        self._forget_idle()
        return alerts

    def _listen(self, process_time_ms: int, but: str) -> list[Alert]:
        """Drop-outs among the subjects that have been silent for longest."""
        alerts: list[Alert] = []
        latest = self._watermark_ms // MINUTE_MS - BLOCK_MINUTES
        for name, subject in self._subjects.items():
            if subject.touched_minute > latest:
                break
            if name != but:
                found = subject.judge_silence(self._watermark_ms, process_time_ms, self._heard_minute)
                if found:
                    self._changed.add(name)
                    self._open.add(name)
                    alerts += found
        return sorted(alerts, key=lambda alert: alert.subject)

    def _judge(self, subject: Subject, process_time_ms: int) -> list[Alert]:
        alerts = subject.judge(self._watermark_ms, process_time_ms)
        if not alerts:
            return []
        self._changed.add(subject.name)
        if subject.alert_open:
            self._open.add(subject.name)
        else:
            self._open.discard(subject.name)
        return alerts

    def _forget_idle(self) -> None:
        oldest = self._watermark_ms // MINUTE_MS - IDLE_MINUTES
        idle = takewhile(lambda each: each[1].touched_minute < oldest, self._subjects.items())
        for name in [name for name, subject in idle if not subject.alert_open]:
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
