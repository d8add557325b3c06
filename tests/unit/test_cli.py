"""The command line as people meet it: help, errors, exit codes, and that the README says the same."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import click
import msgspec
import pytest
import structlog
import yaml
from click.testing import CliRunner

import worker.cli.roles
from model.errors import ArtifactError
from schemas.dead import Stage
from worker import errors
from worker.cli.app import main
from worker.config import Config
from worker.errors import DeviceError, KafkaError, MillraceError, StoreError

README = Path(__file__).resolve().parents[2] / "README.md"
HELP_SECONDS = 0.5


def leaves(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its whole name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path}{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield f"{path}{name}", command


COMMANDS = dict(leaves(main))


def run(*arguments: str, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(main, list(arguments), env=env)


def documented(mark: str) -> str:
    """What the README holds between ``<!-- mark:begin -->`` and its end."""
    found = re.search(rf"<!-- {mark}:begin -->\n(.*)<!-- {mark}:end -->", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"README.md has no <!-- {mark}:begin --> section"
    return found[1]


def test_the_commands_are_those_of_the_design() -> None:
    assert set(COMMANDS) == {
        *("demo", "worker", "profiles", "alerts", "alerts backtest", "alerts tune", "alerts rebuild"),
        *("topics create", "topics describe", "topics acls", "replay", "tail"),
        *("status", "score", "doctor", "evaluate", "plan"),
        *("dead list", "dead show", "dead replay", "dead drop", "erase"),
        *("notify", "mute", "ack", "trend"),
        *("train", "tune", "export", "report", "explain", "active", "label"),
    }


def test_the_readme_lists_exactly_the_commands_there_are() -> None:
    listed = set(re.findall(r"`millrace ((?:(?:topics|alerts|dead) )?[a-z]+)", documented("commands")))
    assert listed == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_default(name: str) -> None:
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option) and isinstance(option.default, (int, float, str, Path)):
            assert option.show_default or option.is_flag or not option.default, option.opts


def test_help_and_readme_tell_the_same_exit_codes() -> None:
    codes = {
        each.exit_code for each in vars(errors).values() if isinstance(each, type) and issubclass(each, MillraceError)
    }
    told = [" ".join((main.help or "").split()), " ".join(documented("commands").split())]
    for text in told:
        found = re.search(r"Exit codes: (0 well, .*? 1 anything else)\.", text)
        assert found is not None
        assert {int(code) for code in re.findall(r"\d", found[1])} == codes | {0}
        assert "5 model or device" in found[1]


def test_the_readme_lists_every_key_of_the_configuration_with_its_default() -> None:
    block = re.search(r"```yaml\n(.*?)```", documented("config"), re.DOTALL)
    assert block is not None
    listed = yaml.safe_load(block[1])
    assert listed == json.loads(msgspec.json.encode(Config()))
    msgspec.convert(listed, Config)


@pytest.mark.parametrize("name", [*COMMANDS, "", "topics", "dead"])
def test_help_is_worth_reading(name: str) -> None:
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    assert len(result.output) > 100
    command = COMMANDS.get(name)
    if command is not None:
        assert all(
            option.help for option in command.params if isinstance(option, click.Option) and option.name != "preset"
        )
        assert not (command.help or "").splitlines()[0].endswith("...")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from worker.cli.app import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    began = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    seconds = time.monotonic() - began
    heavy = {"torch", "transformers", "faust", "confluent_kafka", "numpy", "redis", "rich"}
    assert heavy & set(out.split()) == set()
    # The promise is half a second on an idle machine; a test machine may be busy.
    assert seconds < 4 * HELP_SECONDS


def test_help_names_every_stage_at_which_a_letter_is_written() -> None:
    for command in ("list", "replay", "drop"):
        assert f"Only of this stage: {', '.join(get_args(Stage))}." in " ".join(
            run("dead", command, "-h").output.split()
        )


def test_options_of_a_group_are_those_of_its_commands_and_the_commands_own_are_stronger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.alerts.rebuild.Rebuild", lambda _: None)  # which would look for the topic first
    for name in ("prod", "test"):
        text = f"kafka: {{bootstrap: '{name}:9092', group_prefix: {name}}}"
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    prod, test = ["--config", str(tmp_path / "prod.yaml")], ["--config", str(tmp_path / "test.yaml")]

    def asked(*arguments: str, **env: str) -> str:
        result = CliRunner().invoke(main, list(arguments), env=env, input="n\n")
        assert result.exit_code == 1
        return result.output

    # What it asks before it deletes names the cluster.
    assert "prod.alerts-subjects-changelog on prod:9092" in asked("alerts", *prod, "rebuild")
    assert "on prod:9092" in asked("alerts", *prod, "rebuild", MILLRACE_CONFIG=str(tmp_path / "test.yaml"))
    assert "on test:9092" in asked("alerts", *prod, "rebuild", *test)
    assert "on a:1 " in asked("alerts", *prod, "--set", "kafka.bootstrap=a:1", "rebuild")
    assert "on b:1 " in asked("alerts", "--set", "kafka.bootstrap=a:1", "rebuild", "--set", "kafka.bootstrap=b:1")
    assert "on test:9092" in asked("alerts", "rebuild", MILLRACE_CONFIG=str(tmp_path / "test.yaml"))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["status", "--set", "kafka.bootstrp=x"], 2, "bootstrp"),
        (["status", "--set", "worker.max_batch_tokens=many"], 2, "max_batch_tokens"),
        (["worker", "--set", "kafka.topics={events.clicks: a}"], 2, "events.clicks"),
        (["worker", "--set", "kafka.backfill={old: scores.ctr}"], 2, "scores.ctr"),
        (["worker", "--set", "kafka.backfill={events.click: events.click}"], 2, "apart"),
        (["worker", "--set", "kafka.further_topics={app: scores.ctr}"], 2, "further_topics: scores.ctr"),
        (
            ["worker", "--set", "kafka.further_topics={a: events.click}", "--set", "kafka.backfill={a: events.click}"],
            2,
            "apart",
        ),
        (["notify", "--set", "notify.sinks={a: {kind: webhook, format: slack, url: 'https://x/T'}}"], 2, "a.url"),
        (["notify", "--set", "notify.sinks={a: {kind: webhook, url: 'https://x', secret: plain}}"], 2, "secret"),
        (["notify", "--set", "notify.sinks={a: {kind: fax}}"], 2, "fax"),
        (["mute", "item:a"], 6, "--for"),
        (["mute", "item:a", "--for", "soon"], 6, "2h"),
        (["mute", "--off"], 6, "SUBJECT"),
        (["replay", "{file}", "--topic", "scores.ctr"], 6, "events.click"),
        (["replay", "{file}", "--topic", "events.service", "--map", "txt=a"], 6, "txt"),
        (["replay", "{file}", "--topic", "events.service"], 6, "{file}:1: the row has no event time"),
        (["replay", "{file}", "--topic", "events.service", "--map", "event_time_ms=@now"], 6, "{file}:2"),
        (["score", "--text", "  "], 6, "--text"),
        (["score", "--text", "a", "--artifact", "/nowhere/at/all"], 5, "/nowhere/at/all"),
        (["score", "--text", "a", "--artifact", "null"], 5, "null"),
        (["tail", "scores"], 6, "scores.ctr"),
        (["dead", "show", "nonsense"], 6, "topic/partition/offset"),
        (["dead", "show", "alerts.opinion/0/1#"], 6, "#sink"),
        (["dead", "replay"], 6, "--all"),
        (["dead", "drop"], 6, "--all"),
        (["dead", "list", "--stage", "nowhere"], 6, "notify"),
        (["dead", "list", "--since", "soon"], 6, "soon"),
        (["evaluate", "--task", "sentiment", "--data", "{file}", "--artifact", "/nowhere"], 5, "/nowhere"),
    ],
)
def test_errors_are_one_line_with_the_exit_code_of_their_kind(
    tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\nnot json\n')
    result = run(*[argument.replace("{file}", str(file)) for argument in arguments])
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("millrace: ")
    assert says.replace("{file}", str(file)) in line


def test_every_kind_of_error_has_an_exit_code_of_its_own_or_its_parents() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MillraceError)]
    codes = {kind.exit_code for kind in kinds if kind.__base__ in (MillraceError, Exception)}
    assert codes == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("error", "says"), [("gone", "gone; kafka.bootstrap is k:9092"), ("k:9092 gone", "k:9092 gone")]
)
def test_an_error_of_kafka_names_the_address(monkeypatch: pytest.MonkeyPatch, error: str, says: str) -> None:
    def broken(config: Config) -> None:
        raise KafkaError(error)

    monkeypatch.setattr("worker.tools.status.status", broken)
    result = run("status", "--set", "kafka.bootstrap=k:9092")
    assert (result.exit_code, result.stderr) == (3, f"millrace: {says}\n")


def test_topics_with_fewer_partitions_than_asked_for_are_told_with_how_to_add_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.kafka.admin.create_topics", lambda kafka, **options: [])
    monkeypatch.setattr("worker.kafka.admin.too_narrow", lambda kafka, partitions: {"events.click": 12})
    result = run("topics", "create", "--partitions", "24", "--set", "kafka.bootstrap=k:9092")
    assert (result.exit_code, result.stdout) == (1, "all topics are there\n")
    assert result.stderr.splitlines() == [
        "events.click has 12 partitions, not 24. To add them:",
        "kafka-topics.sh --bootstrap-server k:9092 --alter --topic events.click --partitions 24",
    ]
    assert run("topics", "create").exit_code == 0
    monkeypatch.setattr("worker.kafka.admin.too_narrow", lambda kafka, partitions: {})
    assert run("topics", "create", "--partitions", "24").exit_code == 0


def test_a_defect_is_one_line_and_a_traceback_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("secret arithmetic")

    monkeypatch.setattr("worker.tools.one_text.score_text", broken)
    result = run("score", "--text", "a")
    assert result.exit_code == 1
    assert re.fullmatch(r"millrace: a defect, ZeroDivisionError: .* --debug .*\n", result.stderr)
    assert isinstance(run("score", "--text", "a", "--debug").exception, ZeroDivisionError)


def test_configuration_comes_from_file_then_environment_then_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr("worker.tools.status.status", lambda config: seen.append(config) or {})
    monkeypatch.setattr("worker.cli.tables.show", lambda *arguments, **options: None)
    file = tmp_path / "millrace.yaml"
    file.write_text("kafka: {bootstrap: file, group_prefix: file}\nredis: {timeout_ms: 7}\n")
    env = {"MILLRACE_KAFKA__BOOTSTRAP": "env", "MILLRACE_KAFKA__GROUP_PREFIX": "env"}
    result = run("status", "--config", str(file), "--set", "kafka.bootstrap=flag", env=env)
    assert result.exit_code == 0, result.output
    assert (seen[0].kafka.bootstrap, seen[0].kafka.group_prefix, seen[0].redis.timeout_ms) == ("flag", "env", 7)


def test_evaluate_takes_several_files_after_one_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in "abcd"]
    for file in files:
        file.write_text("{}\n")
    a, b, c, d = map(str, files)
    seen: list[Any] = []

    def evaluate_files(
        scorer: object, task: str, data: tuple[Path, ...], history: tuple[Path, ...], **options: Any
    ) -> dict[str, Any]:
        seen.append((task, data, history, options["delays_s"]))
        return {"task": task, "n": 3, "auc": 0.75}

    monkeypatch.setattr("worker.tools.measure.evaluate_files", evaluate_files)
    monkeypatch.setattr("worker.tools.one_text.load", lambda model, artifact: SimpleNamespace(labels={}))
    result = run("evaluate", "--data", a, b, "--task", "click", "--history", c, "--data", d, "--json")
    assert result.exit_code == 0, result.output
    assert seen == [("click", (files[0], files[1], files[3]), (files[2],), (600, 3600))]
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {"task": "click", "n": 3, "auc": 0.75}
    assert "0.7500" in run("evaluate", "--data", a, "--task", "click", "--delay-s", "0").stdout
    assert seen[1] == ("click", (files[0],), (), ())


ROLE = """
import sys, threading
import worker.cli.app, worker.profiles.role

def run(config, stop):
    print("running", flush=True)
    stop.wait()
    print("drained", flush=True)

worker.profiles.role.run = run
worker.cli.app.main(["profiles"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_role_drains_and_ends_well_when_asked_to_stop(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", ROLE], stdout=subprocess.PIPE, text=True, env={**os.environ}) as role:
        assert role.stdout is not None
        assert role.stdout.readline() == "running\n"
        role.send_signal(number)
        assert role.stdout.read() == "drained\n"
        assert role.wait(20) == 0


@pytest.fixture
def role_in_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A role may run in this process: signals and logging are as before after it."""
    monkeypatch.setattr(worker.cli.roles.signal, "signal", lambda number, handler: None)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.usefixtures("role_in_the_test")
@pytest.mark.parametrize("role", ["worker", "profiles", "alerts", "notify"])
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KafkaError("broker gone"), 3, "broker gone; kafka.bootstrap is k:9092"),
        (StoreError("Redis gone"), 4, "Redis gone"),
        (DeviceError("hangs"), 5, "hangs"),
        (ArtifactError("damaged"), 5, "damaged"),
        (ZeroDivisionError("secret"), 1, "on a defect"),
    ],
)
def test_why_a_role_ended_is_in_its_log_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, role: str, error: Exception, code: int, says: str
) -> None:
    def run_(config: Config, stop: object) -> None:
        raise error

    armed: list[bool] = []
    monkeypatch.setattr(worker.cli.roles.importlib, "import_module", lambda name: SimpleNamespace(run=run_))
    monkeypatch.setattr(
        worker.cli.roles.faulthandler,
        "dump_traceback_later",
        lambda after_s, exit: armed.append(exit),  # noqa: A006
    )
    vars(error).pop("__notes__", None)
    result = run(role, "--set", "kafka.bootstrap=k:9092")
    assert result.exit_code == code
    (line,) = map(json.loads, result.stderr.splitlines())
    assert (line["level"], line["exit_code"], line["logger"]) == ("error", code, "worker.cli.roles")
    assert line["event"].startswith(f"{role} ended")
    assert line["event"].endswith(says)
    assert line["timestamp"]
    assert ("ZeroDivisionError" in line.get("exception", "")) is (code == 1)
    assert armed == [True] * isinstance(error, DeviceError)

    # On a terminal: one line for people.
    result = run(role, "--set", "kafka.bootstrap=k:9092", "--set", "observe.log_format=console")
    assert result.exit_code == code
    if code != 1:
        assert result.stderr == f"millrace: {says}\n"
    assert run(role, "--debug").exception is not None


@pytest.mark.usefixtures("role_in_the_test")
def test_a_role_that_cannot_start_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.kafka.admin.REQUEST_TIMEOUT_S", 0.5)
    options = (
        "--set",
        "kafka.bootstrap=127.0.0.1:1",
        "--set",
        "model.artifact=null",
        "--set",
        "observe.log_level=error",
    )
    result = run("profiles", *options)
    assert result.exit_code == 3
    assert "kafka.bootstrap" in json.loads(result.stderr.splitlines()[-1])["event"]
