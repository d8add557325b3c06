"""Logs are structured, and users are pseudonyms in them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from worker import logs
from worker.config import ObserveConfig
from worker.errors import ConfigError


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()
    logs._key.cache_clear()


def test_our_lines_and_those_of_libraries_are_json_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(ObserveConfig())
    structlog.get_logger("worker.test").warning("lag is high", topic="events.click", lag=7)
    logging.getLogger("library").error("broker %s away", 1)
    logging.getLogger("library").debug("not shown")
    out, err = capsys.readouterr()
    first, second = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert (first["event"], first["lag"], first["level"], first["logger"]) == (
        "lag is high",
        7,
        "warning",
        "worker.test",
    )
    assert (second["event"], second["level"], second["logger"]) == ("broker 1 away", "error", "library")
    assert first["timestamp"].endswith("Z")


def test_level_and_format_follow_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(ObserveConfig(log_level="error", log_format="console"))
    structlog.get_logger().warning("hidden")
    structlog.get_logger().error("shown", partition=3)
    err = capsys.readouterr().err
    assert "hidden" not in err
    assert "shown" in err
    assert "partition=3" in err
    assert not err.startswith("{")


def test_a_traceback_is_part_of_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(ObserveConfig())
    try:
        int("inner")
    except ValueError:
        logging.getLogger("role").exception("ended on a defect")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


@given(st.text())
def test_a_pseudonym_is_stable_short_and_hides_the_id(user_id: str) -> None:
    name = logs.pseudonym(user_id)
    assert name == logs.pseudonym(user_id)
    assert len(name) == 14
    assert name.startswith("u-")
    assert name != f"u-{user_id}"


def test_pseudonyms_differ_between_users_and_keys_and_agree_under_one_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def under(key: str | None) -> str:
        logs._key.cache_clear()
        if key is None:
            monkeypatch.delenv(logs.KEY_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(logs.KEY_VARIABLE, key)
        return logs.pseudonym("alice")

    def from_file(content: str) -> str:
        logs._key.cache_clear()
        (tmp_path / "key").write_text(content)
        with monkeypatch.context() as patch:
            patch.setenv(f"{logs.KEY_VARIABLE}_FILE", str(tmp_path / "key"))
            return logs.pseudonym("alice")

    assert under("a" * 100) == under("a" * 100)
    assert from_file("secret\n") == under("secret")
    assert len({under("a"), under("b"), under(None), under(None)}) == 4
    assert logs.pseudonym("alice") != logs.pseudonym("bob")
    assert logs.pseudonym(None) == "-"


def test_a_key_that_cannot_be_read_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logs._key.cache_clear()
    monkeypatch.setenv(f"{logs.KEY_VARIABLE}_FILE", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=f"{logs.KEY_VARIABLE}_FILE: .*absent: No such file"):
        logs.configure(ObserveConfig())
