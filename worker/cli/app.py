"""The command line. Imports are late, so that ``millrace --help`` is quick; errors are one line and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli.alerts import alerts
from worker.cli.base import CONTEXT, Commands, common, json_option
from worker.cli.judging import JUDGING_COMMANDS
from worker.cli.labelling import LABELLING_COMMANDS
from worker.cli.notify import NOTIFY_COMMANDS
from worker.cli.plan import plan
from worker.cli.roles import notify, profiles, worker
from worker.cli.safety import SAFETY_COMMANDS
from worker.cli.tools import TOOL_COMMANDS
from worker.cli.topics import topics
from worker.cli.training import TRAINING_COMMANDS

if TYPE_CHECKING:
    from worker.config import Config


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(package_name="millrace", message="millrace %(version)s")
def main() -> None:
    """Score an online shop's clicks, reviews and service messages in real time: Kafka in, Kafka out.

    \b
    Try it:        millrace demo
    On a cluster:  millrace topics create      make the topics of the contract
                   millrace doctor             what is not as it should be, and what to do
                   millrace worker             score; one process per GPU
                   millrace profiles           fold user and item state into Redis
                   millrace alerts             watch opinion; alerts backtest, tune: try its rules on a history
                   millrace notify             tell people of alerts
    Look at it:    millrace status             how far every role is
                   millrace tail               scores as they are written
                   millrace dead list          what could not be scored, and why; dead replay sends it again
    The model:     millrace train              on your own data, by one recipe
                   millrace evaluate           measure it; millrace report, explain

    Configuration is one YAML file (--config), overridden by environment (MILLRACE_KAFKA__BOOTSTRAP=host:9092),
    overridden by flags (--set kafka.bootstrap=host:9092). Exit codes: 0 well, 2 configuration, 3 Kafka or its
    schema registry, 4 Redis, 5 model or device, 6 an input file, 1 anything else.
    """


@main.command()
@click.option("--events", type=click.IntRange(min=1), help="End the shop after so many events.")
@click.option("--exit", "exit_", is_flag=True, help="End the demo when they are scored.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Events a second.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Keep the last screen here, as SVG.")
@json_option
@common
def demo(
    config: Config, events: int | None, exit_: bool, rate: float | None, picture: Path | None, json_: bool
) -> None:
    """Run a simulated shop through worker, profiles and alerts.

    Bilingual events, an embedded Kafka and an embedded Redis, and a live view of rates, latencies and scores.

    \b
    millrace demo
    millrace demo --events 2000 --exit --json
    """
    from worker.demo.demo import run_demo

    sys.exit(run_demo(config, events=events, exit_=exit_, json_=json_, rate=rate, picture=picture))


for _command in (
    *(worker, profiles, alerts, topics, *TOOL_COMMANDS, notify, plan),
    *(*NOTIFY_COMMANDS, *SAFETY_COMMANDS, *TRAINING_COMMANDS, *JUDGING_COMMANDS, *LABELLING_COMMANDS),
):
    main.add_command(_command)


if __name__ == "__main__":
    main()
