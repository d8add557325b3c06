"""A history replayed: the same alerts as live, judged, drawn, and thresholds chosen for a budget."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tests.opinions import MINUTE_MS, START_MS, burst_on_lamp, detect, stream
from worker.alerts.backtest import read_opinions, read_truths, replay, tune
from worker.alerts.baseline import ErrorRates
from worker.alerts.error_rates import error_rates, from_metrics
from worker.alerts.rules import RuleBook, shipped
from worker.alerts.verdict import Truth
from worker.cli.app import main
from worker.config import AlertsConfig, Config, ModelConfig
from worker.errors import InputError, ModelLoadError

OPINIONS = stream(60, 10, burst_on_lamp)
TRUTH = Truth(subject="item:lamp", start_ms=START_MS + 40 * MINUTE_MS, end_ms=START_MS + 46 * MINUTE_MS)


@pytest.fixture
def history(tmp_path: Path) -> Path:
    file = tmp_path / "opinions.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n".join(msgspec.json.encode(each) for each in OPINIONS)))
    return file


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    file = tmp_path / "truth.jsonl"
    file.write_bytes(msgspec.json.encode(TRUTH) + b"\n\n")
    return file


def test_a_replay_gives_the_alerts_of_the_live_role(history: Path) -> None:
    run = replay(history, shipped(), ErrorRates())
    live = [msgspec.structs.replace(alert, process_time_ms=0) for alert in detect(OPINIONS)]
    assert [msgspec.structs.replace(alert, process_time_ms=0) for alert in run.alerts] == live
    assert run.counted == {"counted": len(OPINIONS)}
    assert run.subject_days == pytest.approx(3 * 60 / 1440)


def test_the_command_judges_and_draws(history: Path, truth: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "here"
    result = CliRunner().invoke(
        main, ["alerts", "backtest", str(history), "--truth", str(truth), "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output)
    assert (figures["precision"], figures["recall"], figures["false_alarms"]) == (1.0, 1.0, 0)
    assert 0 < figures["median_delay_s"] < 200
    assert (out / "timeline.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "timeline.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert page.count("<td>item:lamp") == figures["messages"]


def test_names_are_no_markup_in_the_page(tmp_path: Path) -> None:
    odd = "item:<b>$x$</b>"
    file = tmp_path / "odd.jsonl"
    rows = [msgspec.structs.replace(each, subject=odd) for each in OPINIONS if each.subject == "item:lamp"]
    file.write_bytes(b"\n".join(msgspec.json.encode(each) for each in rows))
    result = CliRunner().invoke(main, ["alerts", "backtest", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "<b>" not in (tmp_path / "out" / "timeline.html").read_text(encoding="utf-8")


def test_tuning_keeps_to_the_budget(history: Path) -> None:
    surge = RuleBook(tuple(rule for rule in shipped().rules if rule.metric == "negative_share"), "one")
    (with_truth,) = tune(history, [TRUTH], surge, ErrorRates(), budget=0.0)
    assert with_truth.chosen == pytest.approx(0.6 * with_truth.threshold)
    assert (with_truth.verdict.false_alarms, with_truth.verdict.recall) == (0, 1.0)
    # Where nothing is said to have happened, the surge is a false alarm, and only a higher threshold is silent.
    (without,) = tune(history, [], surge, ErrorRates(), budget=0.0)
    assert without.chosen > with_truth.threshold


def test_the_command_says_when_a_budget_cannot_be_kept(history: Path) -> None:
    result = CliRunner().invoke(main, ["alerts", "tune", str(history), "--budget", "0", "--json"])
    tuned = {each["rule"]: each for each in json.loads(result.output)}
    assert set(tuned) == {rule.name for rule in shipped().rules}
    over = any(each["verdict"]["false_alarms_per_1000_subject_days"] > 0 for each in tuned.values())
    assert result.exit_code == int(over)


@pytest.mark.parametrize("command", ["backtest", "tune"])
def test_a_file_that_is_not_in_the_order_of_time_is_told(tmp_path: Path, command: str) -> None:
    ordered = stream(400, 1, lambda _subject, _minute: 0.1)
    dumped = sorted(ordered, key=lambda each: each.subject)  # a partition behind the other
    said = {}
    for name, opinions in {"ordered": ordered, "dumped": dumped}.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_bytes(b"\n".join(msgspec.json.encode(each) for each in opinions))
        result = CliRunner().invoke(main, ["alerts", command, str(file), "--json"])
        found = json.loads(result.stdout)
        said[name] = ((found[0] if command == "tune" else found)["late_share"], result.stderr)
    assert said["ordered"] == (0.0, "")
    late_share, warning = said["dumped"]
    assert late_share > 0.3
    assert f"{late_share:.0%} of the opinions came too late" in warning
    assert "order of time" in warning
    shown = CliRunner().invoke(main, ["alerts", command, "--help"]).stdout
    assert r"-f '%T\t%s\n' | sort -s -n -k1,1 | cut -f2- > opinions.jsonl" in shown


@pytest.mark.parametrize("bad", ["nonsense", '{"subject": 3}', "[]"])
def test_a_line_that_is_no_opinion_is_named(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(msgspec.json.encode(OPINIONS[0]).decode() + f"\n\n{bad}\n")
    with pytest.raises(InputError, match=r"bad\.jsonl:3"):
        list(read_opinions(file))


def test_other_files_are_told(tmp_path: Path) -> None:
    empty, cut, wrong = tmp_path / "empty.jsonl", tmp_path / "cut.jsonl.gz", tmp_path / "truth.jsonl"
    empty.write_text("\n")
    cut.write_bytes(gzip.compress(msgspec.json.encode(OPINIONS[0]) * 50)[:-9])
    wrong.write_text('{"subject": "item:a", "start_ms": 5, "end_ms": 1}\n')
    with pytest.raises(InputError, match="no opinions"):
        replay(empty, shipped(), ErrorRates())
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz"):
        list(read_opinions(cut))
    for at in (5, 30, 300):  # header, compressed data at its beginning and within
        whole = bytearray(gzip.compress(b"\n".join(msgspec.json.encode(each) for each in OPINIONS)))
        whole[at : at + 20] = b"\xff" * 20
        cut.write_bytes(whole)
        with pytest.raises(InputError, match=r"cut\.jsonl\.gz"):
            list(read_opinions(cut))
    with pytest.raises(InputError, match="ends before it starts"):
        read_truths(wrong)


def test_error_rates_come_from_the_configuration_then_from_the_artifact(tmp_path: Path) -> None:
    said = Config(alerts=AlertsConfig(p_negative_of_negatives=0.8, p_negative_of_others=0.1))
    assert error_rates(said) == ErrorRates(0.8, 0.1)
    assert error_rates(Config(model=ModelConfig(artifact="null"))) == ErrorRates()
    rows = [
        {"task": "sentiment", "n": 300, "p_negative_of_negatives": 0.9, "p_negative_of_others": 0.0},
        {"task": "sentiment", "n": 100, "p_negative_of_negatives": 0.5, "p_negative_of_others": 0.4},
        {"task": "sentiment", "n": 900},
        {"task": "emotion", "n": 900, "p_negative_of_negatives": 0.1, "p_negative_of_others": 0.0},
    ]
    assert from_metrics(rows) == ErrorRates(0.8, 0.1)
    assert from_metrics([]) == ErrorRates()
    assert from_metrics([rows[1] | {"p_negative_of_negatives": 0.2}]) == ErrorRates()
    (tmp_path / "manifest.json").write_text(json.dumps({"metrics": rows}))
    assert error_rates(Config(model=ModelConfig(artifact=str(tmp_path)))) == ErrorRates(0.8, 0.1)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ModelLoadError, match="manifest"):
        error_rates(Config(model=ModelConfig(artifact=str(tmp_path))))
