"""Alerts as the alerts role publishes them, for tests of what tells people."""

from __future__ import annotations

import time
from typing import Any

from schemas.evidence import Evidence, Share, TellingText, Term
from schemas.scores import Alert
from worker.notify.notice import Notice

MINUTE_MS = 60_000
START_MS = 29_000_000 * MINUTE_MS


def made(subject: str = "item:lamp", status: Any = "opened", *, minute: int = 0, **fields: Any) -> Alert:
    """An alert on a subject in a minute of event time, published now."""
    end = START_MS + minute * MINUTE_MS
    return Alert(
        **{
            "alert_id": f"alert-{subject}",
            "rule": "negative_share",
            "subject": subject,
            "level": subject.partition(":")[0],
            "status": status,
            "severity": "warning",
            "opened_at_ms": START_MS,
            "window_start_ms": end - 5 * MINUTE_MS,
            "window_end_ms": end,
            "process_time_ms": time.time_ns() // 1_000_000,
            "negative": 18.2,
            "total": 20,
            "negative_share": 0.91,
            "expected_share": 0.15,
            "score": 8.6,
            "model_version": "m1",
        }
        | fields
    )


EVIDENCE = Evidence(
    seen=18,
    texts=[
        TellingText(excerpt="物流太慢，打[phone]没人接", p_negative=0.98, event_id="r1", event_time_ms=1, copies=3),
        TellingText(excerpt="Broke <b>after</b> a day @all", p_negative=0.95, event_id="r2", event_time_ms=2),
    ],
    terms=[Term(term="物流", window=12, before=1, score=4.2), Term(term="broke", window=5, before=0, score=3.1)],
    related=[Share(subject="category:灯", negative=18, share=1.0), Share(subject="brand:Lux", negative=9, share=0.5)],
)


def notice(alert: Alert | None = None, **fields: Any) -> Notice:
    """A notice of an alert."""
    alert = alert or made(evidence=EVIDENCE)
    return Notice(**{"alert": alert, "incident_id": alert.alert_id, "together": ("category:灯",)} | fields)
