"""The commands that send events in, look at what comes out and say how all is: replay, tail, status, score, doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from worker.cli.base import FILE, artifact_option, common, json_option

if TYPE_CHECKING:
    from worker.config import Config


@click.command()
@click.argument("file", type=FILE)
@click.option("--topic", required=True, help="events.click, events.review, events.service, or one added to them.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Events a second; else as fast as possible.")
@click.option("--limit", type=click.IntRange(min=1), help="Send the first so many events.")
@click.option(
    "--preset", type=click.Choice(["auto", "clicks", "reviews", "service", "none"]), default="auto", show_default=True
)
@click.option("--map", "rules", multiple=True, metavar="FIELD=SOURCE", help="Fill a field of the event; repeatable.")
@click.option("--set-field", "constants", multiple=True, metavar="FIELD=VALUE", help="The same value in every event.")
@click.option("--start-time", "start_time_ms", type=int, metavar="MS", help="Time of rows that have none, and @now.")
@click.option("--skip-bad", is_flag=True, help="Leave out lines that are no events, and count them.")
@json_option
@common
def replay(config: Config, /, file: Path, topic: str, rate: float | None, json_: bool, **options: Any) -> None:
    """Send a file to an input topic.

    FILE is JSON Lines, gzipped or not.

    Rows that are events already go as they are. Others are mapped: a preset by topic knows the usual field names
    (text, title, stars, user_id, item_id, clicked, ts in seconds) and makes event ids of file name and line number,
    so that scores can be joined with labels afterwards. --map changes it field by field, context.NAME too; a source is
    a field of the row (title, review.text), scaled (ts*1000), converted (str:user_id; int:, float:, bool:), an ISO
    8601 time (time:created, time:created@+08:00 where it names no zone), what its words stand for
    (map:type(view=impression, buy=purchase, *=-), where * is any other and - leaves the row out), a constant
    (value:chat), a template ({file}-{n}) or @now. `kafka.fields` takes the same rules, for topics that are read live;
    rows for such a topic are checked by them and sent as they are.

    Every line is checked before the first is sent. A row without a time is refused, and so are times before March 1973
    or in the future; fields of the rows that nothing reads are named.

    \b
    millrace replay clicks.jsonl.gz --topic events.click --rate 500
    millrace replay reviews.jsonl --topic events.review --map event_time_ms=time:created --map text=review.body
    millrace replay chats.jsonl --topic events.service --map text=message --set-field channel=chat
    """
    from worker.cli import tables
    from worker.tools.replay import Replay, named, report_json

    job = Replay(config.kafka, file, topic, **options)
    events, bad = job.check()
    if job.unused:
        click.echo(f"Fields of the rows that nothing reads: {named(job.unused)}", err=True)
    with tables.progress(f"{file.name} to {topic}", events) as progress:
        report = job.send(rate=rate, progress=progress)
    if json_:
        click.echo(report_json(report))
    else:
        click.echo(
            f"{report.events} events to {report.topic} in {report.seconds} s, {report.events_per_second} a second;"
            f" {bad} lines left out"
        )


@click.command()
@click.argument("names", metavar="[TOPIC]...", nargs=-1)
@click.option("--from-beginning", is_flag=True, help="From the oldest record kept, not from now.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many records.")
@click.option("--show-ids", is_flag=True, help="User ids as they are, not their pseudonyms.")
@json_option
@common
def tail(config: Config, names: tuple[str, ...], json_: bool, **options: Any) -> None:
    """Follow topics, one readable line a record.

    By default the scores and the alerts. Ctrl-C ends it.

    Any topic of the contract: events.*, scores.*, opinions, alerts.opinion, alerts.control, trends.opinion, folds.*,
    features.*, events.dead, erasures. Texts are shown as their length only.

    \b
    millrace tail
    millrace tail scores.sentiment events.dead --from-beginning --count 20
    """
    from worker.cli import tables
    from worker.tools.tail import DEFAULT_TOPICS, as_json, follow

    try:
        for line in follow(config, names or DEFAULT_TOPICS, **options):
            if json_:
                click.echo(as_json(line))
            else:
                tables.print_line(config.kafka.contract_topic(line.topic), line)
    except KeyboardInterrupt:
        click.echo(err=True)


@click.command()
@json_option
@common
def status(config: Config, json_: bool) -> None:
    """Tell how far every role is.

    Lag by topic and partition, the oldest event not yet finished, and Redis's fences beside the end of the folds.
    """
    from worker.cli import tables
    from worker.tools.status import status as ask

    tables.show(ask(config), tables.status_table, json_=json_)


@click.command()
@click.option("--text", required=True, help="What a customer might write, Chinese or English.")
@click.option("--task", help="One head or family: sentiment, category, intent, intent.shop, …; by default all.")
@artifact_option
@json_option
@common
def score(config: Config, text: str, task: str | None, artifact: str | None, json_: bool) -> None:
    """Score one text, without Kafka or Redis.

    \b
    millrace score --text "物流太慢了"
    millrace score --text "I want to cancel my order" --task intent.shop
    """
    from worker.cli import tables
    from worker.tools.one_text import score_text

    answers = score_text(config.model, text, task=task, artifact=artifact)
    tables.show(answers, lambda found: tables.answers_table(found, every_label=task is not None), json_=json_)


@click.command()
@click.option(
    "--replication",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Copies of a record that the cluster must keep; 1 on a machine for development.",
)
@json_option
@common
def doctor(config: Config, replication: int, json_: bool) -> None:
    """Check everything, and say what to mend.

    Libraries, brokers, topics, what exactly once and durability need of Kafka and Redis (copies, elections,
    time-outs, eviction, persistence), sinks of alerts and the rules that name them, routing and aspects beside the
    model's labels, model (its golden set) and device.
    Exit code 1 if anything is wrong.
    """
    from worker.cli import tables
    from worker.tools.doctor import examine

    checks = examine(config, replication)
    tables.show(checks, tables.checks_table, json_=json_)
    sys.exit(not all(check.well for check in checks))


TOOL_COMMANDS = (replay, tail, status, score, doctor)
