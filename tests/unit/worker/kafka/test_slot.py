"""A worker that comes back takes the slot that it had; two never have the same."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker.errors import ConfigError
from worker.kafka import slot
from worker.kafka.slot import Slot

Take = Callable[..., Slot]


@pytest.fixture
def take(tmp_path: Path) -> Iterator[Take]:
    """Slots in a folder of the test's own, given back at its end."""
    taken: list[Slot] = []

    def one(configured: str = "", group: str = "g") -> Slot:
        taken.append(Slot(configured, group, tmp_path))
        return taken[-1]

    yield one
    for each in taken:
        each.close()


def test_the_lowest_free_slot_is_taken_and_given_back(take: Take) -> None:
    first, second = take(), take()
    assert first.name.endswith("-0")
    assert second.name.endswith("-1")
    first.close()
    assert take().name == first.name
    assert take(group="another").name == first.name


def test_a_configured_slot_is_nobody_elses(take: Take) -> None:
    assert take("blue").name == "blue"
    with pytest.raises(ConfigError, match=r"worker\.slot blue: another process on this machine has it"):
        take("blue")


def test_a_killed_process_leaves_its_slot(take: Take, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from worker.kafka.slot import Slot;"
        "kept = Slot('', 'g', Path(sys.argv[1])); print(kept.name); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == -9
    assert take().name.endswith("-0")


def test_there_are_so_many_slots_and_no_more(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "SLOTS_MAX", 2)
    take(), take()
    with pytest.raises(ConfigError, match=r"set worker\.slot"):
        take()


def test_names_cannot_leave_the_folder(take: Take, tmp_path: Path) -> None:
    take("../../etc/x")
    assert [path.parent for path in tmp_path.rglob("*.lock")] == [tmp_path]
