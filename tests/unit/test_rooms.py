"""The house keeps its plan: which room may use which. Imports point one way."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
USES: Final[dict[str, set[str]]] = {
    "schemas": set(),
    "model": {"schemas"},
    "worker": {"schemas", "model"},  # the ground floor: configuration, errors, logs, metrics
    "worker.kafka": {"schemas", "worker"},
    "worker.redis": {"schemas", "worker"},
    "worker.privacy": {"schemas", "model", "worker", "worker.kafka"},
    "worker.scoring": {"schemas", "model", "worker", "worker.kafka", "worker.redis", "worker.privacy"},
    "worker.profiles": {"schemas", "model", "worker", "worker.kafka", "worker.redis", "worker.privacy"},
    "worker.alerts": {"schemas", "model", "worker", "worker.kafka", "worker.privacy"},
    "worker.notify": {"schemas", "worker", "worker.kafka"},
    "worker.tools": {
        *("schemas", "model", "worker", "worker.kafka", "worker.redis", "worker.privacy"),
        *("worker.scoring", "worker.profiles", "worker.alerts", "worker.notify"),
    },
    "worker.demo": {"schemas", "model", "worker", "worker.kafka"},
    "worker.cli": {
        *("schemas", "model", "worker", "worker.kafka", "worker.alerts", "worker.notify"),
        *("worker.tools", "worker.demo"),
    },
}


def room_of(module: str) -> str | None:
    """``worker.kafka.sink`` is in ``worker.kafka``; None for what is not ours."""
    parts = module.split(".")
    for length in (2, 1):
        if ".".join(parts[:length]) in USES:
            return ".".join(parts[:length])
    return None


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", USES)
def test_a_room_uses_only_the_rooms_below_it(room: str) -> None:
    folder = ROOT / room.replace(".", "/")
    files = sorted(folder.glob("*.py") if room == "worker" else folder.rglob("*.py"))
    assert files
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imported(path)
        if (other := room_of(module)) is not None and other != room and other not in USES[room]
    }
    assert not wrong


def test_every_folder_of_the_worker_is_a_room_and_is_shipped() -> None:
    folders = {f"worker.{path.parent.name}" for path in (ROOT / "worker").glob("*/__init__.py")}
    assert folders == {room for room in USES if room.startswith("worker.")}
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{folder}"' in text for folder in folders)
