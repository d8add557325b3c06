"""What a fresh clone installs and offers: locked versions, make targets, the CI script."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    *("demo", "test", "check", "kafka", "schemas", "lock", "help", "clean"),
    *("bench-latency", "bench-three", "bench-scale", "bench-memory"),
    *("bench-worker", "bench-limit", "bench-peers", "bench-delivery", "bench-shared", "bench-variants"),
    *("bench-alerts", "bench-rebuild", "bench-watch"),
    *("simulate", "kills", "storms", "outages", "upgrade", "chaos", "fuzz", "starter", "starter-gpu"),
}


def pins() -> dict[str, str]:
    lines = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
    return dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#"))  # type: ignore[union-attr,misc]


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]


def test_every_line_of_the_lock_is_an_exact_version_without_a_local_build_or_path() -> None:
    assert len(pins()) > 80


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_what_the_project_asks_for_is_locked_to_a_version_it_accepts(requirement: Requirement) -> None:
    locked = {canonicalize_name(name): version for name, version in pins().items()}
    assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True, timeout=30).stdout
    assert set(re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE)) == TARGETS


@pytest.mark.parametrize("script", [".ci/run", "deploy/kafka/kafka"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=30)


def test_ci_runs_what_the_readme_tells_people_to_run() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert text.rstrip().endswith("make check\nmake test")
    assert "set -euo pipefail" in text


def test_the_licence_is_the_one_that_is_named() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
