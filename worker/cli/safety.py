"""The commands for what went wrong and for who wants to be forgotten: ``millrace dead``, ``millrace erase``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, get_args

import click

from worker.cli.base import Commands, common, json_option

if TYPE_CHECKING:
    from worker.config import Config
    from worker.tools.dead_letters import Filter, Search
    from worker.tools.dead_replay import DeadReplay, ReplayedLetters


def _filters(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say which letters are meant."""
    for option in reversed(
        (
            click.option("--reason", "reasons", multiple=True, help="Only letters of this reason; repeatable."),
            click.option("--stage", "stages", multiple=True, help="Only of this stage: decode, model, notify."),
            click.option("--topic", "topics", multiple=True, help="Only from this source topic; repeatable."),
            click.option("--since", metavar="TIME", help="Written since: 30m, 2h, 7d ago, or 2026-01-31T12:00 (UTC)."),
            click.option("--until", metavar="TIME", help="Written before; as for --since."),
        )
    ):
        function = option(function)
    return function


def _choice(function: Callable[..., None]) -> Callable[..., None]:
    """Which letters something is done to: by id, by filter, or all."""
    all_ = click.option("--all", "all_", is_flag=True, help="All letters, where neither ids nor filters are given.")
    return click.argument("ids", metavar="[ID]...", nargs=-1)(_filters(all_(function)))


def _wanted(config: Config, ids: tuple[str, ...], options: dict[str, Any]) -> Filter:
    from schemas.dead import Reason, Stage
    from worker.errors import InputError
    from worker.tools.dead_letters import Filter, parse_id, parse_time_ms

    now_ms = time.time_ns() // 1_000_000
    for name, known in (("reason", get_args(Reason)), ("stage", get_args(Stage))):
        if unknown := sorted(set(options[f"{name}s"]) - set(known)):
            raise InputError(f"--{name} {unknown[0]}: the {name}s are {', '.join(known)}")
    times = {name: options[name] and parse_time_ms(options[name], now_ms) for name in ("since", "until")}
    return Filter(
        ids=frozenset(map(parse_id, ids)),
        reasons=frozenset(options["reasons"]),
        stages=frozenset(options["stages"]),
        topics=frozenset(map(config.kafka.topic, options["topics"])),
        since_ms=times["since"],
        until_ms=times["until"],
    )


def _chosen(config: Config, ids: tuple[str, ...], options: dict[str, Any], *, all_: bool, command: str) -> Filter:
    """The letters that a command is to end; all of them only where that is said."""
    from worker.errors import InputError
    from worker.tools.dead_letters import Filter

    wanted = _wanted(config, ids, options)
    if wanted == Filter() and not all_:
        raise InputError(f"{command}: say which letters, by id or by a filter; --all means all of them")
    return wanted


def _known(search: Search, verb: str) -> Search:
    """The search, where every id that was given is or was a letter."""
    from worker.errors import InputError

    if unknown := sorted(name for name, end in search.ended.items() if end == "unknown"):
        raise InputError(f"no such letter: {', '.join(unknown)}. Nothing was {verb}; `millrace dead list` shows them")
    return search


@click.group(cls=Commands)
def dead() -> None:
    """Look at what could not be scored or told, send it again or drop it.

    Dead letters lie in events.dead with their original bytes, key and headers until they are replayed, dropped, or
    erased with their person. A letter's id is its source position, topic/partition/offset; of an alert that a sink did
    not take, topic/partition/offset#sink.
    """


@dead.command("list")
@_filters
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Show the oldest so many.")
@json_option
@common
def list_(config: Config, limit: int, json_: bool, **options: Any) -> None:
    """Show dead letters, oldest first, and how many there are of each reason.

    Contents are not shown: a letter's size, its reason, and which field was wrong.

    \b
    millrace dead list --since 2h
    millrace dead list --reason model_error --topic events.review --json
    """
    from worker.cli import tables, tables_safety
    from worker.tools.dead_letters import Letters

    wanted = _wanted(config, (), options)
    with closing(Letters(config.kafka)) as letters:
        search = letters.search(wanted)
    tables.show(tables_safety.listing(search, limit), tables_safety.letters_table, json_=json_)


@dead.command()
@click.argument("letter_id", metavar="ID")
@click.option("--value", is_flag=True, help="Show the contents too: they may hold what a customer wrote.")
@click.option("--raw", is_flag=True, help="Write the original bytes to standard output, and nothing else.")
@json_option
@common
def show(config: Config, letter_id: str, value: bool, raw: bool, json_: bool) -> None:
    """Show one dead letter: why, whence, its headers, and its contents if asked for.

    ID is topic/partition/offset or topic/partition/offset#sink, as `millrace dead list` shows it. Exit code 6 if there
    is no such letter.

    \b
    millrace dead show events.review/3/17
    millrace dead show events.review/3/17 --raw > record.json
    """
    from worker.cli import tables, tables_safety
    from worker.errors import InputError
    from worker.tools.dead_letters import Filter, Letters, parse_id

    wanted = Filter(ids=frozenset([parse_id(letter_id)]))
    with closing(Letters(config.kafka)) as letters:
        search = letters.search(wanted)
        if not search.letters:
            raise InputError(f"no letter {letter_id}: {tables_safety.ENDED[search.ended[letter_id]]}")
        (found,) = search.letters
        letter = letters.fetch(found)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
    else:
        tables.show(tables_safety.whole(found, letter, value), tables_safety.letter_table, json_=json_)


@dead.command()
@_choice
@click.option("--limit", type=click.IntRange(min=1), help="Replay the oldest so many.")
@click.option("--to", metavar="TOPIC", help="Send them there; by default each to its source topic and partition.")
@click.option("--yes", is_flag=True, help="Do it, also for more than one letter.")
@click.option("--dry-run", is_flag=True, help="Tell what would be replayed, also for one letter.")
@json_option
@common
def replay(
    config: Config,
    ids: tuple[str, ...],
    all_: bool,
    limit: int | None,
    to: str | None,
    yes: bool,
    dry_run: bool,
    json_: bool,
    **options: Any,
) -> None:
    """Send dead letters again, each once: bytes, key, headers and partition as they came.

    Replayed records say so in the headers millrace-replay-of and millrace-replay-count. Record and the letter's end are
    one transaction: after a crash run it again, nothing is replayed twice or lost. More than one letter is a dry run
    unless --yes is given.

    Exit codes: 0 all that was meant is replayed (or was before, or is only told of); 1 some letters hold no bytes,
    they were too large to keep; 6 an id that is no letter.

    \b
    millrace dead replay events.review/3/17
    millrace dead replay --reason model_error --since 1d          # tells what it would do
    millrace dead replay --reason model_error --since 1d --yes
    """
    from worker.cli import tables, tables_safety
    from worker.tools.dead_replay import DeadReplay

    wanted = _chosen(config, ids, options, all_=all_, command="dead replay")
    with closing(DeadReplay(config.kafka, to)) as job:
        report = _replay(job, wanted, limit, yes=yes, dry_run=dry_run)
    tables.show(report, tables_safety.replayed_table, json_=json_)
    sys.exit(report.cut > 0)


def _replay(job: DeadReplay, wanted: Filter, limit: int | None, *, yes: bool, dry_run: bool) -> ReplayedLetters:
    from worker.cli import tables

    search = _known(job.look(wanted, limit), "replayed")
    if dry_run or not search.letters or (len(search.letters) > 1 and not yes):
        return job.plan(search)
    with tables.progress("replaying letters", len(search.letters)) as progress:
        return job.send(wanted, limit, progress)


@dead.command()
@_choice
@click.option("--limit", type=click.IntRange(min=1), help="Drop the oldest so many.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Tell what would be dropped.")
@json_option
@common
def drop(
    config: Config,
    ids: tuple[str, ...],
    all_: bool,
    limit: int | None,
    yes: bool,
    dry_run: bool,
    json_: bool,
    **options: Any,
) -> None:
    """Delete dead letters for good.

    events.dead keeps a letter for as long as nobody ends it. What is dropped cannot be shown or replayed any more; the
    brokers' next compaction takes it from the disks. Asks once, with the number of letters.

    Exit codes: 0 all that was meant is dropped (or had ended before, or is only told of); 6 an id that is no letter.

    \b
    millrace dead drop events.review/3/17
    millrace dead drop --reason not_json --until 90d
    """
    from worker.cli import tables, tables_safety
    from worker.tools.dead_letters import Letters

    wanted = _chosen(config, ids, options, all_=all_, command="dead drop")
    with closing(Letters(config.kafka)) as letters:
        search = _known(letters.search(wanted, limit), "dropped")
        if search.letters and not (yes or dry_run):
            counts = ", ".join(f"{reason} {count}" for reason, count in search.by_reason().items())
            where = f"{letters.topic} on {config.kafka.bootstrap}"
            click.confirm(
                f"Drop {len(search.letters)} letters of {where} ({counts})? This cannot be undone", abort=True, err=True
            )
        if not dry_run:
            letters.end({each.id.encode(): each.place[0] for each in search.letters}, "dropped")
    tables.show(tables_safety.dropped(search, dry_run=dry_run), tables_safety.dropped_table, json_=json_)


@click.command()
@click.argument("user_id", metavar="USER")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--anew", is_flag=True, help="Forget up to now, also where an earlier run recorded an earlier cut-off.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait for profiles to delete the state.",
)
@json_option
@common
def erase(config: Config, user_id: str, yes: bool, anew: bool, wait_s: float, json_: bool) -> None:
    """Forget a person: everything they did up to now, or up to the cut-off that an earlier run recorded.

    Records the erasure, on which the worker drops older events and profiles deletes state and features; deletes their
    dead letters; and prints a receipt: what is gone, and what will be gone when, topic by topic. A replay of older
    events does not bring them back; what they do from now on counts again. Running it twice does no harm: the cut-off
    of the first run stands, and the receipt, made anew, says since when. With --anew it is now.

    Exit codes: 0 done, 1 recorded but not carried out yet (the receipt says what is pending: run it again), 3 Kafka.

    \b
    millrace erase user-4711
    millrace erase user-4711 --yes --json > receipt.json
    millrace erase user-4711 --anew
    """
    from worker.cli import tables, tables_safety
    from worker.tools.erase import Erase

    job = Erase(config, user_id, time.time_ns() // 1_000_000, anew)
    if not yes:
        until = "now" if anew else "now (or, run again, up to the cut-off that stands)"
        click.confirm(
            f"Forget everything that {user_id!r} did up to {until}? This cannot be undone", abort=True, err=True
        )
    receipt = job.run(wait_s, lambda step: click.echo(f"{step} ...", err=True))
    tables.show(receipt, tables_safety.receipt_table, json_=json_)
    sys.exit(not receipt.done)


SAFETY_COMMANDS: Final = (dead, erase)
