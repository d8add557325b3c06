"""How good alerts are against a truth: precision, recall, delay, false alarms per subject-day. Pure.

An alert is right when it opens on the subject of a truth between its start and `GRACE_MS` after its end; drop-outs
answer outages, surges and slow burns answer everything else. Any number of alerts may answer one truth. Precision is
over surges and burns; false alarms are all that answer nothing, drop-outs too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean, median
from typing import Final

import msgspec

from schemas.scores import AlertMetric

GRACE_MS: Final = 15 * 60_000
DAY_MS: Final = 86_400_000


class Truth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happened to a subject, in event time. ``kind``: ``outage`` is answered by drop-outs, all others by surges
    and burns."""

    subject: str
    start_ms: int
    end_ms: int
    kind: str = "burst"


class Opened(msgspec.Struct, frozen=True):
    """An alert at its opening."""

    subject: str
    opened_at_ms: int
    metric: AlertMetric


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one detector on one stream; None where there was nothing to count."""

    alerts: int
    false_alarms: int
    truths: int
    found: int
    subject_days: float
    precision: float | None
    recall: float | None
    median_delay_s: float | None
    mean_delay_s: float | None
    false_alarms_per_1000_subject_days: float | None


def verdict(
    alerts: Iterable[Opened], truths: Sequence[Truth], subject_days: float, *, judged: Sequence[Truth] | None = None
) -> Verdict:
    """Alerts against all ``truths``; recall and delay over ``judged`` (by default those that are no outage)."""
    by_subject: defaultdict[str, list[Truth]] = defaultdict(list)
    for truth in truths:
        by_subject[truth.subject].append(truth)
    first: dict[Truth, int] = {}
    right = wrong = dropouts = 0
    for alert in sorted(alerts, key=lambda each: each.opened_at_ms):
        answered = [truth for truth in by_subject[alert.subject] if _answers(alert, truth)]
        for truth in answered:
            first.setdefault(truth, alert.opened_at_ms)
        if not answered:
            wrong += 1
            dropouts += alert.metric == "dropout"
        elif alert.metric != "dropout":
            right += 1
    asked = [truth for truth in truths if truth.kind != "outage"] if judged is None else list(judged)
    delays = [(first[truth] - truth.start_ms) / 1000 for truth in asked if truth in first]
    told = right + wrong - dropouts
    return Verdict(
        alerts=told,
        false_alarms=wrong,
        truths=len(asked),
        found=len(delays),
        subject_days=round(subject_days, 2),
        precision=round(right / told, 4) if told else None,
        recall=round(len(delays) / len(asked), 4) if asked else None,
        median_delay_s=round(median(delays), 1) if delays else None,
        mean_delay_s=round(mean(delays), 1) if delays else None,
        false_alarms_per_1000_subject_days=round(1000 * wrong / subject_days, 4) if subject_days else None,
    )


def _answers(alert: Opened, truth: Truth) -> bool:
    return truth.start_ms <= alert.opened_at_ms <= truth.end_ms + GRACE_MS and (truth.kind == "outage") == (
        alert.metric == "dropout"
    )
