"""The command ``millrace topics``: those of the contract, made, compared, and who may do what with them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from worker.cli.base import Commands, common, json_option
from worker.cli.roles import ROLE_NAMES

if TYPE_CHECKING:
    from worker.config import Config


@click.group(cls=Commands)
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

    Those of the contract, and those of kafka.further_topics and kafka.backfill, each like the input topic that it
    carries. Topics that exist are left as they are, but for --update. Partitions are never changed: exit code 1 if an
    input topic has fewer than --partitions, with the calls that add them.

    \b
    millrace topics create
    millrace topics create --partitions 24
    """
    from worker.kafka.admin import create_topics, too_narrow

    made = create_topics(config.kafka, replication=replication, update=update, partitions=partitions)
    click.echo(f"made {', '.join(made)}" if made else "all topics are there")
    narrow = too_narrow(config.kafka, partitions) if partitions and not config.kafka.embedded else {}
    for name, found in narrow.items():
        click.echo(
            f"{name} has {found} partitions, not {partitions}. To add them:\n"
            f"kafka-topics.sh --bootstrap-server {config.kafka.bootstrap} --alter --topic {name}"
            f" --partitions {partitions}",
            err=True,
        )
    sys.exit(bool(narrow))


@topics.command()
@click.option("--replication", type=click.IntRange(min=1), help="Copies wanted; as for create.")
@json_option
@common
def describe(config: Config, replication: int | None, json_: bool) -> None:
    """Every topic of the contract and of the configuration beside what the cluster has. Exit code 1 if they differ."""
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
