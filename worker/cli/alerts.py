"""The command ``millrace alerts``: the role itself, and its rules tried on a history."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli.base import FILE, Commands, common, json_option
from worker.cli.roles import run_role

if TYPE_CHECKING:
    from worker.alerts.backtest import Replay, Tuned
    from worker.alerts.verdict import Verdict
    from worker.config import Config

_truth_option = click.option(
    "--truth", type=FILE, help="What really happened, JSON Lines: subject, start_ms, end_ms, kind (burst, outage, …)."
)


@click.group(cls=Commands, invoke_without_command=True)
@common
@click.pass_context
def alerts(context: click.Context, /, config: Config) -> None:
    """Watch opinion and alert when it turns.

    Without a command: the role. Reads opinions, writes alerts.opinion when negative ones surge on an item, category,
    brand, topic or aspect, smoulder for hours, or stop coming. The rules are a file (alerts.rules), read again when it
    changes.

    \b
    millrace alerts --config millrace.yaml
    millrace alerts backtest opinions.jsonl.gz --truth truth.jsonl --out timeline/
    millrace alerts tune opinions.jsonl.gz --truth truth.jsonl --budget 0.1
    millrace alerts rebuild
    """
    if context.invoked_subcommand is None:
        run_role(config, "alerts")


@alerts.command()
@click.argument("file", type=FILE)
@_truth_option
@click.option("--rules", type=FILE, help="Rules to try; by default those of the configuration.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Draw timeline.html and timeline.png here."
)
@json_option
@common
def backtest(
    config: Config, /, file: Path, truth: Path | None, rules: Path | None, out: Path | None, json_: bool
) -> None:
    """Replay a history through the rules, and judge what they would have told.

    FILE holds opinions as on the topic `opinions`, JSON Lines, gzipped or not, in the order of time: a dump has one
    partition behind the other, so sort it. With a truth file: precision, recall, delay, and false alarms for 1000
    subject-days. The detector is the live role's own.

    \b
    kcat -C -e -q -b localhost:9092 -t opinions -f '%T\\t%s\\n' | sort -s -n -k1,1 | cut -f2- > opinions.jsonl
    millrace alerts backtest opinions.jsonl --truth truth.jsonl --out timeline/
    """
    from worker.alerts.backtest import read_truths, replay
    from worker.alerts.timeline import write_timeline
    from worker.alerts.verdict import verdict
    from worker.cli import tables

    truths = read_truths(truth) if truth is not None else []
    book, rates = _rules(config, rules)
    with tables.counter(f"{file.name}: opinions replayed") as progress:
        run = replay(file, book, rates, progress)
    _warn_of_order(file, run.late_share)
    judged = verdict(run.opened, truths, run.subject_days) if truth is not None else None
    drawn = write_timeline(run, truths, out) if out is not None else []
    figures = _figures(run, judged) | ({"drawn": ", ".join(map(str, drawn))} if drawn else {})
    tables.show(figures, tables.figures_table, json_=json_)


@alerts.command()
@click.argument("file", type=FILE)
@_truth_option
@click.option("--rules", type=FILE, help="Rules to begin with; by default those of the configuration.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    help="False alarms allowed for 1000 subject-days.",
)
@json_option
@common
def tune(config: Config, /, file: Path, truth: Path | None, rules: Path | None, budget: float, json_: bool) -> None:
    """Choose thresholds that keep to a budget of false alarms.

    For each rule alone, the lowest threshold (0.6 to 3 times its own) whose false alarms on the history stay within
    the budget, and what it finds at that price. Without a truth file every alert counts as false: right for a history
    in which nothing happened. Exit code 1 when a rule stays above the budget at any threshold tried.

    \b
    kcat -C -e -q -b localhost:9092 -t opinions -f '%T\\t%s\\n' | sort -s -n -k1,1 | cut -f2- > opinions.jsonl
    millrace alerts tune opinions.jsonl --truth truth.jsonl --budget 0.1
    """
    from worker.alerts.backtest import read_truths, tune
    from worker.cli import tables

    truths = read_truths(truth) if truth is not None else []
    book, rates = _rules(config, rules)
    with tables.progress(f"rules tuned on {file.name}", len(book.rules)) as progress:
        tuned = tune(file, truths, book, rates, budget, progress)
    _warn_of_order(file, max((each.late_share for each in tuned), default=0.0))
    tables.show(tuned, _tuned_table, json_=json_)
    sys.exit(any((each.verdict.false_alarms_per_1000_subject_days or 0.0) > budget for each in tuned))


@alerts.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@common
def rebuild(config: Config, /, yes: bool, json_: bool) -> None:
    """Count all retained opinions anew, when their topic has got other partitions.

    Stop all alerts processes first. The topic that holds the counts (GROUP_PREFIX.alerts-subjects-changelog) is deleted
    and written anew, each subject where its opinions come now. Published are only alerts of opinions that had not been
    counted; alerts keep their ids. The user needs the alerts role's rights and the right to delete that topic.

    \b
    kafka-topics --alter --topic opinions --partitions 24 --bootstrap-server localhost:9092
    millrace alerts rebuild
    """
    from worker.alerts.rebuild import Rebuild
    from worker.alerts.watch import changelog_name
    from worker.cli import tables

    job = Rebuild(config)
    if not yes:
        where = f"{changelog_name(config)} on {config.kafka.bootstrap}"
        click.confirm(f"Delete {where} and count all opinions again?", abort=True, err=True)
    with tables.counter("opinions counted again") as progress:
        done = job.run(progress)
    import msgspec

    tables.show(msgspec.to_builtins(done), tables.figures_table, json_=json_)


def _rules(config: Config, file: Path | None) -> tuple[Any, Any]:
    from worker.alerts.error_rates import error_rates
    from worker.alerts.rules import RulesFile

    book = RulesFile(str(file) if file is not None else config.alerts.rules).book
    return book, error_rates(config)


def _warn_of_order(file: Path, late_share: float) -> None:
    from worker.alerts.backtest import LATE_SHARE_MAX

    if late_share > LATE_SHARE_MAX:
        click.echo(
            f"millrace: {file}: {late_share:.0%} of the opinions came too late to count, so the figures mean little."
            " The file must be in the order of time: see `millrace alerts backtest --help`",
            err=True,
        )


def _figures(run: Replay, judged: Verdict | None) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "opinions": sum(run.counted.values()),
        **dict(sorted(run.counted.items())),
        "late_share": round(run.late_share, 4),
        "subjects": len(run.minutes),
        "subject_days": round(run.subject_days, 2),
        "opened": len(run.opened),
        "messages": len(run.alerts),
    }
    if judged is not None:
        import msgspec

        figures |= msgspec.to_builtins(judged)
    return figures


def _tuned_table(tuned: list[Tuned]) -> Any:
    from rich.table import Table

    table = Table("rule", "threshold", "chosen", "false / 1000 subject-days", "precision", "recall", "median delay")
    for each in tuned:
        found = each.verdict
        shown = [f"{found.false_alarms_per_1000_subject_days or 0.0:.3f}"]
        shown += ["-" if value is None else f"{value:.3f}" for value in (found.precision, found.recall)]
        shown.append("-" if found.median_delay_s is None else f"{found.median_delay_s:.0f} s")
        table.add_row(each.rule, f"{each.threshold:g}", f"{each.chosen:g}", *shown)
    return table
