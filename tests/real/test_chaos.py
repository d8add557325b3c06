"""Small runs of the two campaigns: `make chaos` and `make kills` are the long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import run
from tests.chaos.fleet import CRASH_POINTS
from tests.chaos.kills import kill_at
from tests.servers import or_skip

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


def test_everything_broken_at_once_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with or_skip():
        figures = run(tmp_path, events=3000, faults=10, seed=5, rate=60)
    assert figures["faults"] == 10
    assert figures["kinds"] >= 5
    assert figures["events"] >= 3000
    for name in ("lost", "duplicated", "reordered", "state_mismatches"):
        assert figures[name] == 0, figures


@pytest.mark.parametrize("point", list(CRASH_POINTS))
def test_a_worker_killed_here_loses_and_doubles_nothing(kafka_bootstrap: str, tmp_path: Path, point: str) -> None:
    found = kill_at(point, 1, kafka_bootstrap, tmp_path, seed=3)
    assert found.clean, found.examples
    assert found.events > 0
