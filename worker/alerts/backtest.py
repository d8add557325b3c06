"""A history of opinions replayed through the live role's detector, judged against a truth, and thresholds chosen by it.

The file holds opinions as the worker writes them, JSON Lines, gzipped or not, in the order in which they came (a dump
of the topic ``opinions``, sorted by time). All partitions of the topic in one file are one partition here: one behind
the other, most opinions of all but the first would be late, and not count.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from schemas.scores import Alert, Opinion
from worker.alerts.baseline import ErrorRates
from worker.alerts.rules import RuleBook
from worker.alerts.surge import SurgeDetector
from worker.alerts.verdict import DAY_MS, Opened, Truth, Verdict, verdict
from worker.errors import InputError

PROGRESS_EVERY: Final = 5000
SUBJECTS_MAX: Final = 1_000_000
"""Subjects are not bounded as in the live role, so that a day's history and a year's are judged alike."""
TUNE_STEPS: Final = (0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Thresholds that `tune` tries, as multiples of the rule's own."""

LATE_SHARE_MAX: Final = 0.01
"""With more of the opinions late the file is not in the order of time."""

Progress = Callable[[int], None]
_T = TypeVar("_T")


class Minute(msgspec.Struct):
    """What a subject had in one minute of event time, for the timeline."""

    negative: float = 0.0
    total: int = 0


class Replay(msgspec.Struct, kw_only=True):
    """What came of a history: all alerts in order, how opinions counted, each subject's minutes and span."""

    alerts: list[Alert]
    counted: Counter[str]
    minutes: dict[str, dict[int, Minute]]
    subject_days: float

    @property
    def opened(self) -> list[Opened]:
        """The alerts at their openings."""
        return [Opened(each.subject, each.opened_at_ms, each.metric) for each in self.alerts if each.status == "opened"]

    @property
    def late_share(self) -> float:
        """Share of the opinions that came too late to count."""
        return self.counted["late"] / sum(self.counted.values())


class Tuned(msgspec.Struct, kw_only=True):
    """The threshold chosen for a kind of rule, and what it brought on the history. ``late_share``: see `Replay`."""

    rule: str
    metric: str
    threshold: float
    chosen: float
    verdict: Verdict
    late_share: float


def replay(file: Path, rules: RuleBook, rates: ErrorRates, progress: Progress | None = None) -> Replay:
    """Alerts of the rules over the file's opinions. Raises `InputError` naming the line that is no opinion."""
    detector = SurgeDetector(rules, rates, max_subjects=SUBJECTS_MAX)
    alerts: list[Alert] = []
    counted: Counter[str] = Counter()
    minutes: dict[str, dict[int, Minute]] = {}
    for number, opinion in enumerate(read_opinions(file), 1):
        how, raised = detector.add(opinion, opinion.process_time_ms)
        alerts += raised
        counted[how] += 1
        if how != "repeat":
            minute = minutes.setdefault(opinion.subject, {}).setdefault(opinion.event_time_ms // 60_000, Minute())
            minute.negative += opinion.p_negative
            minute.total += 1
        if progress is not None and number % PROGRESS_EVERY == 0:
            progress(number)
    if not minutes:
        raise InputError(f"{file} holds no opinions")
    days = sum((max(each) - min(each) + 1) * 60_000 / DAY_MS for each in minutes.values())
    return Replay(alerts=alerts, counted=counted, minutes=minutes, subject_days=days)


def tune(
    file: Path,
    truths: Sequence[Truth],
    rules: RuleBook,
    rates: ErrorRates,
    budget: float,
    progress: Progress | None = None,
) -> list[Tuned]:
    """For each rule the lowest threshold whose false alarms, alone, stay within ``budget`` (for 1000 subject-days).

    Rules are tuned one at a time, the others left out, so that one does not hide what another would have found. Where
    even the highest threshold tried is too loud, that one is taken, and its verdict says so.
    """
    tuned = []
    for number, rule in enumerate(rules.rules):
        judged = [truth for truth in truths if (truth.kind == "outage") == (rule.metric == "dropout")]
        best: Tuned | None = None
        for factor in TUNE_STEPS:
            threshold = round(rule.threshold * factor, 2)
            if threshold <= rule.resolve:
                continue
            alone = RuleBook((msgspec.structs.replace(rule, threshold=threshold),), f"tuning {rule.name}")
            run = replay(file, alone, rates)
            found = verdict(run.opened, truths, run.subject_days, judged=judged)
            best = Tuned(
                rule=rule.name,
                metric=rule.metric,
                threshold=rule.threshold,
                chosen=threshold,
                verdict=found,
                late_share=round(run.late_share, 4),
            )
            if (found.false_alarms_per_1000_subject_days or 0.0) <= budget:
                break
        if best is not None:
            tuned.append(best)
        if progress is not None:
            progress(number + 1)
    return tuned


def read_opinions(file: Path) -> Iterator[Opinion]:
    """Opinions of a JSON Lines file. Raises `InputError` naming the line that is none."""
    return _rows(file, msgspec.json.Decoder(Opinion), "no opinion as the worker writes them")


def read_truths(file: Path) -> list[Truth]:
    """Truths of a JSON Lines file (subject, start_ms, end_ms, kind). Raises `InputError` naming the bad line."""
    truths = list(_rows(file, msgspec.json.Decoder(Truth), "no truth (subject, start_ms, end_ms, kind)"))
    for number, truth in enumerate(truths, 1):
        if truth.end_ms < truth.start_ms:
            raise InputError(f"{file}: truth {number} ends before it starts")
    return truths


def _rows(file: Path, decoder: msgspec.json.Decoder[_T], otherwise: str) -> Iterator[_T]:
    opener = gzip.open if file.suffix == ".gz" else open
    number = 0
    try:
        with opener(file, "rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{file}:{number}: {otherwise}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:  # cut, or damaged, at either level of gzip
        raise InputError(f"{file}: {error}") from error
