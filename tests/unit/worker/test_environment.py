"""The environment as configuration, and secrets from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.config import Section, load_config
from worker.environment import FILE_KEYS, MAX_SECRET_BYTES
from worker.errors import ConfigError


def test_an_underscore_below_kafka_options_is_a_dot() -> None:
    env = {"MILLRACE_KAFKA__OPTIONS__SASL_PASSWORD": "s3cret", "MILLRACE_KAFKA__OPTIONS__SSL_CA_LOCATION": "/ca.pem"}
    assert load_config(env=env).kafka.options == {"sasl.password": "s3cret", "ssl.ca.location": "/ca.pem"}


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


def test_a_value_that_is_no_yaml_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(env={"MILLRACE_REDIS__URL": "{s3cret"})
    assert "s3cret" not in str(caught.value)
