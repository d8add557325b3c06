"""The environment as configuration, and secrets from files."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from worker.config import Section, load_config
from worker.environment import FILE_KEYS, MAX_SECRET_BYTES
from worker.errors import ConfigError


def test_an_underscore_below_the_clients_options_is_a_dot() -> None:
    env = {"MILLRACE_KAFKA__OPTIONS__SASL_PASSWORD": "s3cret", "MILLRACE_KAFKA__OPTIONS__SSL_CA_LOCATION": "/ca.pem"}
    assert load_config(env=env).kafka.options == {"sasl.password": "s3cret", "ssl.ca.location": "/ca.pem"}
    env = {"MILLRACE_REGISTRY__OPTIONS__BASIC_AUTH_USER_INFO": "0123:no"}
    assert load_config(env=env).registry.options == {"basic.auth.user.info": "0123:no"}


@pytest.mark.parametrize("password", ["0123", "no", "1e5", "true", "a: b", "{", "null", " x "])
def test_a_password_that_looks_like_yaml_stays_as_it_is(password: str, tmp_path: Path) -> None:
    direct = load_config(env={"MILLRACE_KAFKA__OPTIONS__SASL_PASSWORD": password})
    assert direct.kafka.options["sasl.password"] == password
    file = tmp_path / "secret"
    file.write_text(password + "\n")
    read = load_config(env={"MILLRACE_KAFKA__OPTIONS__SASL_PASSWORD_FILE": str(file)})
    assert read.kafka.options["sasl.password"] == password


def test_any_key_can_come_from_a_file_and_only_its_line_end_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_bytes(b"rediss://u:p%20w@redis:6379/0\r\n")
    assert load_config(env={"MILLRACE_REDIS__URL_FILE": str(file)}).redis.url == "rediss://u:p%20w@redis:6379/0"


def test_a_key_that_names_a_file_takes_the_path_as_it_stands() -> None:
    env = {
        "MILLRACE_NOTIFY__SINKS__OPS__KIND": "webhook",
        "MILLRACE_NOTIFY__SINKS__OPS__URL": "https://ops.example.org/hook",
        "MILLRACE_NOTIFY__SINKS__OPS__CA_FILE": "/etc/ssl/ours.pem",
    }
    assert load_config(env=env).notify.sinks["ops"].ca_file == "/etc/ssl/ours.pem"


def test_every_key_that_ends_as_a_file_does_is_known_to_be_one() -> None:
    sections = [Section]
    for section in sections:
        sections += section.__subclasses__()
    keys = {name for section in sections for name in section.__struct_fields__}
    assert {name for name in keys if name.endswith("_file")} == FILE_KEYS


def test_other_values_are_yaml_as_before() -> None:
    env = {"MILLRACE_WORKER__POLL_RECORDS": "7", "MILLRACE_KAFKA__TOPICS": "{events.click: clicks}"}
    config = load_config(env=env)
    assert (config.worker.poll_records, config.kafka.topics) == (7, {"events.click": "clicks"})


def test_a_secret_file_that_cannot_be_used_is_named_and_its_content_is_not(tmp_path: Path) -> None:
    big, binary = tmp_path / "big", tmp_path / "binary"
    big.write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    binary.write_bytes(b"\xff\xfe")
    for path, says in ((tmp_path / "none", "No such file"), (big, "larger than"), (binary, "not UTF-8")):
        with pytest.raises(ConfigError, match=says) as caught:
            load_config(env={"MILLRACE_REDIS__URL_FILE": str(path)})
        assert "MILLRACE_REDIS__URL_FILE" in str(caught.value)
        assert "xxx" not in str(caught.value)


SLIPS = [
    ("redis:\n  url: rediss://:hunter2: secret@redis:6379/0", r"line 2, column 25: mapping values are not allowed"),
    ("redis: {url: *hunter2}", r"line 1, column 14: found undefined alias$"),
    ("redis: {url: !hunter2 x}", r"line 1, column 14: could not determine a constructor for the tag$"),
    ("redis: {url: !hunter2!x y}", r"line 1, column 14: found undefined tag handle$"),
    ("redis: {url: {{hunter2}}}", r"line 1, column 15: found unhashable key"),
    ("redis: {timeout_ms: !!int hunter2}", "a value that YAML does not have"),
    ("redis: {url: hunter2\x07}", "a character"),
]


@pytest.mark.parametrize(("text", "says"), SLIPS)
def test_a_slip_in_the_file_is_told_with_its_place_and_not_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "millrace.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_is_no_text_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "millrace.yaml"
    file.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 3"):
        load_config(file)


def test_a_value_that_is_no_yaml_is_not_shown() -> None:
    env = {"MILLRACE_REDIS__URL": "{s3cret"}
    with pytest.raises(ConfigError) as caught:
        load_config(env=env)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
