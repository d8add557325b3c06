"""The commands for people who look after alerts: mute, ack and trend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from worker.cli.base import common, json_option
from worker.errors import InputError

if TYPE_CHECKING:
    from worker.config import Config

_by = click.option("--by", default="", metavar="NAME", help="Who says so; kept with it.")
_note = click.option("--note", default="", metavar="TEXT", help="Why; kept with it.")


@click.command()
@click.argument("subject", required=False)
@click.option("--for", "for_", metavar="TIME", help="How long: 30m, 2h, 1d12h; at most 30 days.")
@click.option("--off", is_flag=True, help="Take the mute of exactly this SUBJECT back.")
@_by
@_note
@json_option
@common
def mute(config: Config, subject: str | None, for_: str | None, off: bool, by: str, note: str, json_: bool) -> None:
    """Keep alerts on a subject quiet for a while.

    SUBJECT is level:name; * and ? stand for anything. Alerts go on being raised, nobody is told of them, and what is
    still open afterwards is told with its next change. Without SUBJECT: what is muted and acknowledged now.

    \b
    millrace mute item:i-42 --for 2h
    millrace mute "category:*" --for 1d --note "sale"
    millrace mute item:i-42 --off
    millrace mute
    """
    from worker.cli import tables
    from worker.tools import silencing

    if subject is None:
        if for_ or off:
            raise InputError('mute: which SUBJECT? For example item:i-42, or "brand:*"')
        tables.show(silencing.silences(config.kafka), tables.silences_table, json_=json_)
        return
    if off:
        silencing.unmute(config.kafka, subject)
        tables.say({"subject": subject, "muted": False}, f"{subject}: no longer muted", json_=json_)
        return
    if for_ is None:
        raise InputError("mute: say for how long, --for 2h")
    made = silencing.mute(config.kafka, subject, silencing.duration_s(for_), by=by, note=note)
    tables.say(made, f"{subject}: muted for {for_}", json_=json_)


@click.command()
@click.argument("alert_id")
@_by
@_note
@json_option
@common
def ack(config: Config, alert_id: str, by: str, note: str, json_: bool) -> None:
    """Say that somebody is on an alert.

    ALERT_ID stands in every message of the alert. Nobody is told of it any more, but for its end.

    \b
    millrace ack 4f6c1b0a9d2e --by li.lei
    """
    from worker.cli import tables
    from worker.tools import silencing

    made = silencing.ack(config.kafka, alert_id, by=by, note=note)
    tables.say(made, f"{alert_id}: acknowledged", json_=json_)


@click.command()
@click.argument("subject")
@click.option(
    "--hours", type=click.FloatRange(0.1, 168), default=3.0, show_default=True, help="Written in so many hours."
)
@json_option
@common
def trend(config: Config, subject: str, hours: float, json_: bool) -> None:
    """Show how opinion on a subject moves.

    Opinions and shares of the last 5, 15 and 60 minutes, and minute by minute, in event time. Written once a minute by
    the alerts role.

    \b
    millrace trend item:i-42
    millrace trend aspect:delivery --hours 24 --json
    """
    from worker.cli import tables
    from worker.tools.trending import trend as ask

    tables.show(ask(config.kafka, subject, hours), tables.trend_table, json_=json_)


NOTIFY_COMMANDS = (mute, ack, trend)
