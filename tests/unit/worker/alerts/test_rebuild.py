"""Which alerts a rebuild publishes: only those of opinions that nobody had counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.alerts import rebuild as rebuild_module
from worker.alerts.rebuild import Rebuild
from worker.alerts.watch import Position
from worker.config import Config


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Rebuild:
    monkeypatch.setattr(rebuild_module, "admin_client", lambda _kafka: None)
    monkeypatch.setattr(rebuild_module, "partition_counts", lambda _kafka, names: dict.fromkeys(names, 2))
    monkeypatch.setattr(rebuild_module, "topic_ids", lambda _kafka, names: dict.fromkeys(names, "now"))
    return Rebuild(Config())


def message(partition: int, offset: int, value: bytes) -> Any:
    clock = (1, 1_700_000_000_000)
    parts = {"partition": partition, "offset": offset, "value": value, "timestamp": clock}
    return SimpleNamespace(**{name: lambda part=part: part for name, part in parts.items()})


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        ({}, ["first", "second", "third"]),
        ({0: 6}, ["second", "third"]),
        ({0: 9, 1: 9}, ["third"]),
        ({0: 10, 1: 9}, ["third"]),
        ({0: 11, 1: 9}, ["first", "second", "third"]),  # above the end: the topic has been made anew since
    ],
)
def test_alerts_of_counted_opinions_are_not_told_again(job: Rebuild, counted: dict[int, int], told: list[str]) -> None:
    places: Any = [(0, 5, "first"), (0, 8, "second"), (1, 9, "third")]
    job._alerts_of, job._next = places, {0: 10, 1: 10}
    assert job._untold(counted) == told


@pytest.mark.parametrize(("topic_id", "counts_from"), [("now", 9), ("", 9), ("before", 0)])
def test_positions_of_a_topic_that_was_deleted_say_nothing_of_this_one(
    job: Rebuild, topic_id: str, counts_from: int
) -> None:
    assert job._next_offset(Position(9, 123, 0, topic_id).to_bytes()) == counts_from


def test_what_is_no_opinion_is_passed_over(job: Rebuild) -> None:
    job._add(message(1, 7, b"no opinion"))
    assert (job._malformed, job._opinions_read, job._next) == (1, 0, {1: 8})
