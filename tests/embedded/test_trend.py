"""From opinions to `millrace trend`, through the alerts role and a restart of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from schemas.topics import ALERTS_OPINION, OPINIONS, TRENDS_OPINION
from tests.opinions import MINUTE_MS, START_MS, burst_on_lamp, counted_to_the_end, produce, running, stream, wait_until
from worker.cli.app import main
from worker.config import AlertsConfig, Config, KafkaConfig, ObserveConfig
from worker.kafka.admin import create_topics


def test_a_trend_holds_every_opinion_once_across_a_restart(embedded_broker: str, tmp_path: Path) -> None:
    config = Config(
        kafka=KafkaConfig(bootstrap=embedded_broker, embedded=True),
        alerts=AlertsConfig(data_dir=str(tmp_path)),
        observe=ObserveConfig(log_level="warning"),
    )
    create_topics(config.kafka, contracts=[OPINIONS, ALERTS_OPINION, TRENDS_OPINION])
    opinions = stream(60, 10, burst_on_lamp)
    half = 43 * 10 * 3
    for part in (opinions[:half], opinions[half:]):
        produce(config, part)
        with running(config):
            wait_until(lambda: counted_to_the_end(config), "counted")
    options = ["--set", f"kafka.bootstrap={embedded_broker}", "--set", "kafka.embedded=true"]
    result = CliRunner().invoke(main, ["trend", "item:lamp", "--json", *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    lamp = [each for each in opinions if each.subject == "item:lamp"]
    assert [minute[:2] for minute in found["minutes"]] == [[START_MS + n * MINUTE_MS, 10] for n in range(60)]
    negative = sum(minute[2] for minute in found["minutes"])
    assert negative == pytest.approx(sum(each.p_negative for each in lamp), abs=0.01)  # four digits a minute
    hour = found["spans"][2]
    assert (hour["minutes"], hour["total"]) == (60, 600)
    assert found["until_ms"] == START_MS + 60 * MINUTE_MS
    shown = CliRunner().invoke(main, ["trend", "item:lamp", *options])
    assert "60 min" in shown.stdout
    nothing = CliRunner().invoke(main, ["trend", "item:nobody", *options])
    assert (nothing.exit_code, "item:nobody" in nothing.stderr) == (6, True)
