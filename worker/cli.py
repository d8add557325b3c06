"""The command line. Imports are late, so that ``millrace --help`` is quick; errors are one line and an exit code."""

from __future__ import annotations

import faulthandler
import importlib
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from worker.cli_base import CONTEXT, FILE, Commands, common, json_option
from worker.cli_model import MODEL_COMMANDS
from worker.errors import DeviceError, MillraceError

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
                   millrace alerts             watch opinion
    Look at it:    millrace status             how far every role is
                   millrace tail               scores as they are written
    The model:     millrace train              on your own data, by one recipe
                   millrace evaluate           measure it; millrace report, explain

    Configuration is one YAML file (--config), overridden by environment (MILLRACE_KAFKA__BOOTSTRAP=host:9092),
    overridden by flags (--set kafka.bootstrap=host:9092). Exit codes: 2 configuration, 3 Kafka, 4 Redis, 5 model,
    6 an input file, 1 anything else.
    """


@main.command()
@click.option("--events", type=click.IntRange(min=1), help="End the shop after so many events.")
@click.option("--exit", "exit_", is_flag=True, help="End the demo when they are scored.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Events a second.")
@json_option
@common
def demo(config: Config, events: int | None, exit_: bool, rate: float | None, json_: bool) -> None:
    """Run a simulated shop through all three roles.

    Bilingual events, an embedded Kafka and an embedded Redis, and a live view of rates, latencies and scores.

    \b
    millrace demo
    millrace demo --events 2000 --exit --json
    """
    from worker.demo import run_demo

    sys.exit(run_demo(config, events=events, exit_=exit_, json_=json_, rate=rate))


EXIT_GRACE_S = 20
_ROLES = {"worker": "worker.pipeline", "profiles": "worker.profiles", "alerts": "worker.alerts"}


def _run_role(config: Config, role: Literal["worker", "profiles", "alerts"]) -> None:
    from worker import logs

    logs.configure(config.observe)
    logging.getLogger("worker.kafka").setLevel(logging.NOTSET)  # a role has a log; the tools are quiet
    stop = threading.Event()

    def ask_to_stop(number: int, frame: object) -> None:
        stop.set()
        # A second signal ends it at once: whoever sends it has waited long enough.
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    try:
        # Imported with the handlers in place: torch takes seconds, and a signal may come in them.
        importlib.import_module(_ROLES[role]).run(config, stop)
    except DeviceError:
        # A driver that hangs may keep the interpreter from ending, and the supervisor from starting anew.
        faulthandler.dump_traceback_later(EXIT_GRACE_S, exit=True)
        raise
    except Exception as error:
        if not isinstance(error, MillraceError):
            logging.getLogger(__name__).exception("%s ended on a defect", role)
        raise


@main.command()
@common
def worker(config: Config) -> None:
    """Score events, one process per GPU.

    Reads events.*, writes scores.*, opinions, folds.* and events.dead.

    Ends on SIGTERM or Ctrl-C: finishes what is in flight, commits, hands over. Add processes to go faster, up to
    the partitions of events.*.

    \b
    millrace worker --config millrace.yaml
    millrace worker --set model.artifact=/models/mine --set worker.max_batch_tokens=16384
    """
    _run_role(config, "worker")


@main.command()
@common
def profiles(config: Config) -> None:
    """Fold user and item state into Redis.

    Every event counts exactly once; states are published on features.* for recommenders.

    Waits while Redis is away; rebuilds an empty one. Add processes to go faster, up to kafka.fold_shards.
    """
    _run_role(config, "profiles")


@main.command()
@common
def alerts(config: Config) -> None:
    """Watch opinion and alert when it turns.

    Reads opinions, writes alerts.opinion when negative ones surge on an item, category, brand or topic.
    """
    _run_role(config, "alerts")


@main.group(cls=Commands)
def topics() -> None:
    """Make the topics of the contract, or compare them."""


@topics.command()
@click.option(
    "--replication", type=click.IntRange(min=1), help="Copies; by default 3, or as many as there are brokers."
)
@click.option("--update", is_flag=True, help="Set retention and sizes of topics that exist to the contract's.")
@common
def create(config: Config, replication: int | None, update: bool) -> None:
    """Make the topics that are missing: partitions, retention or compaction, replication and sizes by one table.

    Topics that exist are left as they are, but for --update. Partitions are never changed.
    """
    from worker.admin import create_topics

    made = create_topics(config.kafka, replication=replication, update=update)
    click.echo(f"made {', '.join(made)}" if made else "all topics are there")


@topics.command()
@click.option("--replication", type=click.IntRange(min=1), help="Copies wanted; as for create.")
@json_option
@common
def describe(config: Config, replication: int | None, json_: bool) -> None:
    """Every topic of the contract beside what the cluster has. Exit code 1 if they differ."""
    from worker import tables
    from worker.admin import describe_topics

    reports = describe_topics(config.kafka, replication=replication)
    tables.show(reports, tables.topics_table, json_=json_)
    sys.exit(any(report.differences for report in reports))


@main.command()
@click.argument("file", type=FILE)
@click.option("--topic", required=True, help="events.click, events.review or events.service.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Events a second; else as fast as possible.")
@click.option("--limit", type=click.IntRange(min=1), help="Send the first so many events.")
@click.option(
    "--preset", type=click.Choice(["auto", "clicks", "reviews", "service", "none"]), default="auto", show_default=True
)
@click.option("--map", "rules", multiple=True, metavar="FIELD=SOURCE", help="Fill a field of the event; repeatable.")
@click.option("--set-field", "constants", multiple=True, metavar="FIELD=VALUE", help="The same value in every event.")
@click.option(
    "--start-time", "start_time_ms", type=int, metavar="MS", help="@now, for rows without a time; else the clock."
)
@click.option("--skip-bad", is_flag=True, help="Leave out lines that are no events, and count them.")
@json_option
@common
def replay(config: Config, /, file: Path, topic: str, rate: float | None, json_: bool, **options: Any) -> None:
    """Send a file to an input topic.

    FILE is JSON Lines, gzipped or not.

    Rows that are events already go as they are. Others are mapped: a preset by topic knows the usual field names
    (text, title, stars, user_id, item_id, clicked, ts in seconds) and makes event ids of file name and line number,
    so that scores can be joined with labels afterwards. --map changes it field by field; a source is a field of the
    row (title), scaled (ts*1000), converted (str:user_id; int:, float:, bool:), a template ({file}-{n}) or @now.

    Every line is checked before the first is sent.

    \b
    millrace replay clicks.jsonl.gz --topic events.click --rate 500
    millrace replay reviews.jsonl --topic events.review --map event_time_ms=ts*1000 --map text=body
    millrace replay chats.jsonl --topic events.service --map text=message --set-field channel=chat
    """
    from worker import tables
    from worker.replay import Replay, report_json

    job = Replay(config.kafka, file, topic, **options)
    events, bad = job.check()
    with tables.progress(f"{file.name} to {topic}", events) as progress:
        report = job.send(rate=rate, progress=progress)
    if json_:
        click.echo(report_json(report))
    else:
        click.echo(
            f"{report.events} events to {report.topic} in {report.seconds} s, {report.events_per_second} a second;"
            f" {bad} bad lines left out"
        )


@main.command()
@click.argument("names", metavar="[TOPIC]...", nargs=-1)
@click.option("--from-beginning", is_flag=True, help="From the oldest record kept, not from now.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many records.")
@click.option("--show-ids", is_flag=True, help="User ids as they are, not their pseudonyms.")
@json_option
@common
def tail(config: Config, names: tuple[str, ...], json_: bool, **options: Any) -> None:
    """Follow topics, one readable line a record.

    By default the scores and the alerts. Ctrl-C ends it.

    Any topic of the contract: events.*, scores.*, opinions, alerts.opinion, folds.*, features.*, events.dead.
    Texts are shown as their length only.

    \b
    millrace tail
    millrace tail scores.sentiment events.dead --from-beginning --count 20
    """
    from worker import tables
    from worker.tail import DEFAULT_TOPICS, as_json, follow

    try:
        for line in follow(config.kafka, names or DEFAULT_TOPICS, **options):
            if json_:
                click.echo(as_json(line))
            else:
                tables.print_line(config.kafka.contract_topic(line.topic), line)
    except KeyboardInterrupt:
        click.echo(err=True)


@main.command()
@json_option
@common
def status(config: Config, json_: bool) -> None:
    """Tell how far every role is.

    Lag by topic and partition, the oldest event not yet finished, and Redis's fences beside the end of the folds.
    """
    from worker import tables
    from worker.status import status as ask

    tables.show(ask(config), tables.status_table, json_=json_)


@main.command()
@click.option("--text", required=True, help="What a customer might write, Chinese or English.")
@click.option("--task", help="One head or family: sentiment, category, intent, intent.shop, …; by default all.")
@click.option("--artifact", help="Artifact folder; by default model.artifact of the configuration.")
@json_option
@common
def score(config: Config, text: str, task: str | None, artifact: str | None, json_: bool) -> None:
    """Score one text, without Kafka or Redis.

    \b
    millrace score --text "物流太慢了"
    millrace score --text "I want to cancel my order" --task intent.shop
    """
    from worker import tables
    from worker.one_text import score_text

    answers = score_text(config.model, text, task=task, artifact=artifact)
    tables.show(answers, lambda found: tables.answers_table(found, every_label=task is not None), json_=json_)


@main.command()
@json_option
@common
def doctor(config: Config, json_: bool) -> None:
    """Check everything, and say what to mend.

    Libraries, broker, topics, Redis, model (its golden set) and device. Exit code 1 if anything is wrong.
    """
    from worker import tables
    from worker.doctor import examine

    checks = examine(config)
    tables.show(checks, tables.checks_table, json_=json_)
    sys.exit(not all(check.well for check in checks))


@main.command()
@click.option(
    "--events-per-second", type=click.FloatRange(min=0, min_open=True), required=True, help="All three streams."
)
@click.option("--p99-ms", type=click.FloatRange(min=0, min_open=True), required=True, help="Produced to committed.")
@click.option("--tokens", type=click.FloatRange(min=1), default=25.0, show_default=True, help="Mean length of a text.")
@click.option(
    "--repeated", type=click.FloatRange(0, 1), default=0.4, show_default=True, help="Share of texts seen before."
)
@click.option("--users", type=click.IntRange(min=0), default=0, help="How many have a state in Redis.")
@click.option("--items", type=click.IntRange(min=0), default=0, help="The same for items.")
@click.option("--batch-ms", type=click.FloatRange(min=0), help="What a batch costs; else measured, here and now.")
@click.option("--token-us", type=click.FloatRange(min=0), help="What a token of it costs; else measured.")
@click.option(
    "--event-us", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="The rest."
)
@click.option("--gpu", is_flag=True, help="With given costs: batches as for a GPU's objectives.")
@json_option
@common
def plan(
    config: Config,
    batch_ms: float | None,
    token_us: float | None,
    event_us: float,
    gpu: bool,
    json_: bool,
    **demand: Any,
) -> None:
    """Tell how many workers, partitions and how much memory a shop needs.

    The costs of the model are measured on this machine in a few seconds, or given by --batch-ms and --token-us (then
    neither model nor device is touched).

    \b
    millrace plan --events-per-second 2000 --p99-ms 800
    millrace plan --events-per-second 50000 --p99-ms 250 --batch-ms 4 --token-us 1.5 --users 5000000 --json
    """
    import msgspec

    from worker import tables
    from worker.plan import Costs, Demand
    from worker.plan import plan as work_out

    if batch_ms is None or token_us is None:
        from worker.yardstick import costs_here

        costs, gpu = costs_here(config)
    else:
        costs = Costs(batch_ms=batch_ms, token_us=token_us)
    costs = msgspec.structs.replace(costs, event_us=event_us)
    objectives_s = tuple(config.worker.objectives_s(on_gpu=gpu).values())
    tables.show(work_out(Demand(**demand), costs, config, objectives_s), tables.plan_table, json_=json_)


for _command in MODEL_COMMANDS:
    main.add_command(_command)


if __name__ == "__main__":
    main()
