"""A worker that comes back takes the slot that it had; two never have the same."""

import os
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


def test_a_link_for_a_lock_is_not_followed(take: Take, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "g-blue.lock").symlink_to(precious)
    with pytest.raises(ConfigError, match=r"g-blue\.lock"):
        take("blue")
    assert precious.read_text() == "kept"


def test_what_lies_in_a_lock_is_left_there(take: Take, tmp_path: Path) -> None:
    lock = tmp_path / "g-blue.lock"
    lock.write_text("kept")
    assert take("blue").name == "blue"
    assert lock.read_text() == "kept"


@pytest.mark.parametrize("made", ["link", "dangling", "file", "open to others", "another's"])
def test_a_folder_that_is_not_ours_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str) -> None:
    monkeypatch.setattr(slot.tempfile, "gettempdir", lambda: str(tmp_path))
    folder, victim = tmp_path / f"millrace-{os.getuid()}", tmp_path / "victim"
    match made:
        case "link":
            victim.mkdir(0o700)
            folder.symlink_to(victim)
        case "dangling":
            folder.symlink_to(victim)
        case "file":
            folder.write_text("")
        case "open to others":
            folder.mkdir()
            folder.chmod(0o770)
        case _:
            folder.mkdir(0o700)
            uid = os.getuid()
            folder.rename(folder.with_name(f"millrace-{uid + 1}"))
            monkeypatch.setattr(slot.os, "getuid", lambda: uid + 1)
    with pytest.raises(ConfigError, match=r"millrace-\d+: wanted is a folder of user .* TMPDIR"):
        Slot("", "g")
    assert not list(tmp_path.rglob("*.lock"))


def test_a_folder_of_ours_alone_is_made_and_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o2700)  # a volume of Kubernetes has this bit, and folders in it get it too
    monkeypatch.setattr(slot.tempfile, "gettempdir", lambda: str(tmp_path))
    for _ in range(2):
        Slot("blue", "g").close()
    assert (tmp_path / f"millrace-{os.getuid()}").stat().st_mode & 0o777 == 0o700
