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

from worker.cli.alerts import alerts
from worker.cli.base import CONTEXT, FILE, Commands, artifact_option, common, json_option
from worker.cli.judging import JUDGING_COMMANDS
from worker.cli.labelling import LABELLING_COMMANDS
from worker.cli.notify import NOTIFY_COMMANDS
from worker.cli.plan import plan
from worker.cli.safety import SAFETY_COMMANDS
from worker.cli.training import TRAINING_COMMANDS
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
                   millrace alerts             watch opinion; alerts backtest, tune: try its rules on a history
                   millrace notify             tell people of alerts
    Look at it:    millrace status             how far every role is
                   millrace tail               scores as they are written
                   millrace dead list          what could not be scored, and why; dead replay sends it again
    The model:     millrace train              on your own data, by one recipe
                   millrace evaluate           measure it; millrace report, explain

    Configuration is one YAML file (--config), overridden by environment (MILLRACE_KAFKA__BOOTSTRAP=host:9092),
    overridden by flags (--set kafka.bootstrap=host:9092). Exit codes: 0 well, 2 configuration, 3 Kafka, 4 Redis,
    5 model or device, 6 an input file, 1 anything else.
    """


@main.command()
@click.option("--events", type=click.IntRange(min=1), help="End the shop after so many events.")
@click.option("--exit", "exit_", is_flag=True, help="End the demo when they are scored.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Events a second.")
@json_option
@common
def demo(config: Config, events: int | None, exit_: bool, rate: float | None, json_: bool) -> None:
    """Run a simulated shop through worker, profiles and alerts.

    Bilingual events, an embedded Kafka and an embedded Redis, and a live view of rates, latencies and scores.

    \b
    millrace demo
    millrace demo --events 2000 --exit --json
    """
    from worker.demo.demo import run_demo

    sys.exit(run_demo(config, events=events, exit_=exit_, json_=json_, rate=rate))


EXIT_GRACE_S = 20
Role = Literal["worker", "profiles", "alerts", "notify"]
_ROLES: dict[Role, str] = {
    "worker": "worker.scoring.pipeline",
    "profiles": "worker.profiles.role",
    "alerts": "worker.alerts.role",
    "notify": "worker.notify.role",
}
ROLE_NAMES = (*_ROLES, "operator")


def run_role(config: Config, role: Role) -> None:
    """Run a role until it is asked to stop. Its errors are logged, and raised."""
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
    run_role(config, "worker")


@main.command()
@common
def profiles(config: Config) -> None:
    """Fold user and item state into Redis.

    Every event counts exactly once; states are published on features.* for recommenders.

    Waits while Redis is away; rebuilds an empty one. Add processes to go faster, up to kafka.fold_shards.
    """
    run_role(config, "profiles")


main.add_command(alerts)


@main.group(cls=Commands)
def topics() -> None:
    """Make the topics of the contract, or compare them."""


@topics.command()
@click.option(
    "--replication", type=click.IntRange(min=1), help="Copies; by default 3, or as many as there are brokers."
)
@click.option("--partitions", type=click.IntRange(min=1), help="Of each input topic; `millrace plan` says how many.")
@click.option("--update", is_flag=True, help="Set retention and sizes of topics that exist to the contract's.")
@common
def create(config: Config, replication: int | None, partitions: int | None, update: bool) -> None:
    """Make the topics that are missing: partitions, retention or compaction, replication and sizes by one table.

    Topics that exist are left as they are, but for --update. Partitions are never changed.

    \b
    millrace topics create
    millrace topics create --partitions 24
    """
    from worker.kafka.admin import create_topics

    made = create_topics(config.kafka, replication=replication, update=update, partitions=partitions)
    click.echo(f"made {', '.join(made)}" if made else "all topics are there")


@topics.command()
@click.option("--replication", type=click.IntRange(min=1), help="Copies wanted; as for create.")
@json_option
@common
def describe(config: Config, replication: int | None, json_: bool) -> None:
    """Every topic of the contract beside what the cluster has. Exit code 1 if they differ."""
    from worker.cli import tables
    from worker.kafka.admin import describe_topics

    reports = describe_topics(config.kafka, replication=replication)
    tables.show(reports, tables.topics_table, json_=json_)
    sys.exit(any(report.differences for report in reports))


@topics.command(name="acls")
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLE_NAMES), help="Only this role's; repeatable.")
@click.option(
    "--principal", "principals", multiple=True, metavar="ROLE=User:NAME", help="Else User:millrace-<role>; repeatable."
)
@click.option("--apply", "apply_", is_flag=True, help="Add them on the cluster now: needs the right to alter it.")
@json_option
@common
def acls_(config: Config, roles: tuple[str, ...], principals: tuple[str, ...], apply_: bool, json_: bool) -> None:
    """List the rights that each role needs on Kafka, and no more.

    As calls of Kafka's own kafka-acls.sh, for topic names and group prefix as configured. The roles are worker,
    profiles, alerts, notify, and operator: who makes topics, replays, follows and runs the doctor.

    The calls name a file, admin.properties. It says how Kafka's tools log in as a user who may alter the cluster
    (security.protocol, sasl.mechanism, sasl.jaas.config, ssl.truststore.location); empty where nobody need log in.

    \b
    millrace topics acls > acls.sh
    millrace topics acls --role worker --principal worker=User:scoring
    millrace topics acls --apply
    """
    from worker.cli import tables
    from worker.kafka import acls

    bearers = acls.principals_of(principals)
    rights = [right for right in acls.acls(config.kafka) if not roles or right.role in roles]
    if apply_:
        acls.apply(config.kafka, rights, bearers)
        click.echo(f"added {len(rights)} rights", err=True)
    elif json_:
        tables.show(rights, lambda _: None, json_=True)
    else:
        click.echo("\n".join(acls.commands(config.kafka, rights, bearers)))


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
    from worker.cli import tables
    from worker.tools.replay import Replay, report_json

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

    Any topic of the contract: events.*, scores.*, opinions, alerts.opinion, alerts.control, trends.opinion, folds.*,
    features.*, events.dead, erasures. Texts are shown as their length only.

    \b
    millrace tail
    millrace tail scores.sentiment events.dead --from-beginning --count 20
    """
    from worker.cli import tables
    from worker.tools.tail import DEFAULT_TOPICS, as_json, follow

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
    from worker.cli import tables
    from worker.tools.status import status as ask

    tables.show(ask(config), tables.status_table, json_=json_)


@main.command()
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


@main.command()
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
    time-outs, eviction, persistence), sinks of alerts and the rules that name them, model (its golden set) and device.
    Exit code 1 if anything is wrong.
    """
    from worker.cli import tables
    from worker.tools.doctor import examine

    checks = examine(config, replication)
    tables.show(checks, tables.checks_table, json_=json_)
    sys.exit(not all(check.well for check in checks))


@main.command()
@common
def notify(config: Config) -> None:
    """Tell people of alerts: chat, webhook, mail.

    Reads alerts.opinion and sends what the sinks under notify.sinks want, at least once; tries again while a sink
    fails, and puts what none would take on events.dead. Honours `millrace mute` and `millrace ack`.

    \b
    millrace notify --config millrace.yaml
    """
    run_role(config, "notify")


main.add_command(plan)
for _command in (*NOTIFY_COMMANDS, *SAFETY_COMMANDS, *TRAINING_COMMANDS, *JUDGING_COMMANDS, *LABELLING_COMMANDS):
    main.add_command(_command)


if __name__ == "__main__":
    main()
