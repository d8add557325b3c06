"""How the command line shows things to people: tables, one-line records, a progress bar."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click
import msgspec
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from worker.kafka.admin import TopicReport
from worker.tools.check import Check
from worker.tools.one_text import Answer
from worker.tools.plan import Plan
from worker.tools.silencing import Silences
from worker.tools.status import Status
from worker.tools.tail import Line, clock, summary
from worker.tools.trending import Trend

T = TypeVar("T")
_TOPIC_STYLES: Final = {"events": "cyan", "scores": "green", "opinions": "blue", "alerts": "bold red"}
_BAD_WORDS: Final = {"negative": "red", "positive": "green", "oos": "yellow", "opened": "bold red", "resolved": "green"}
_MANY_LABELS: Final = 10
TREND_ROWS: Final = 60
PIPE_WIDTH: Final = 100_000
"""Where the output is no terminal a line has no width to keep to; rich wants one."""
FOLD_WIDTH: Final = 5
"""A column is folded to no less, be the terminal as narrow as it may."""


def show(what: T, table: Callable[[T], Any], *, json_: bool) -> None:
    """Print as JSON on one line, or as a table."""
    if json_:
        click.echo(msgspec.json.encode(what).decode())
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        console.print(table(what), crop=False)


class Folded(Table):
    """A table whose words go on in the next line where they do not fit: rich would put an ellipsis for the rest.

    Where the terminal is too narrow even so, it is wider than the terminal: rich would leave columns out.
    """

    def __init__(self, *headers: str | Column, **options: Any) -> None:
        super().__init__(
            *(
                Column(each, overflow="fold", min_width=FOLD_WIDTH if each else None) if isinstance(each, str) else each
                for each in headers
            ),
            **options,
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        least = 1 + sum((column.min_width or 1) + 3 for column in self.columns)  # with their borders
        yield from super().__rich_console__(console, options.update(width=max(options.max_width, least)))


def ids(header: str, shown: Iterable[str]) -> Column:
    """The column of these ids. Somebody will copy one, so they stay whole however narrow the terminal."""
    return Column(header, no_wrap=True, min_width=max(map(cell_len, shown), default=0))


def say(what: Any, sentence: str, *, json_: bool) -> None:
    """Print as JSON on one line, or as a sentence."""
    click.echo(msgspec.json.encode(what).decode() if json_ else sentence)


def silences_table(found: Silences) -> Group:
    """Mutes and acknowledgements in force."""
    mutes = Folded("subject", "until", "by", "note", title="muted", title_justify="left")
    for mute in found.mutes:
        mutes.add_row(Text(mute.pattern), _local(mute.until_ms), Text(mute.by), Text(mute.note))
    alert = ids("alert", (ack.alert_id for ack in found.acks))
    acks = Folded(alert, "since", "by", "note", title="acknowledged", title_justify="left")
    for ack in found.acks:
        acks.add_row(Text(ack.alert_id), _local(ack.at_ms), Text(ack.by), Text(ack.note))
    return Group(mutes, acks)


def trend_table(found: Trend) -> Group:
    """Spans, then the minutes with opinions, the latest last."""
    spans = Folded("last", "opinions", "negative", "positive", "polarity", title=Text(found.subject))
    for span in found.spans:
        shares = [_share(each) for each in (span.negative_share, span.positive_share)]
        polarity = "-" if span.polarity is None else f"{span.polarity:+.2f}"
        spans.add_row(f"{span.minutes} min", str(span.total), *shares, polarity)
    minutes = Folded("minute", "opinions", "negative", "")
    for minute in found.minutes[-TREND_ROWS:]:
        share = minute.negative / minute.total
        minutes.add_row(
            _local(minute.minute_ms), str(minute.total), _share(share), Text("█" * round(20 * share), "red")
        )
    return Group(spans, minutes)


def topics_table(reports: Sequence[TopicReport]) -> Table:
    """Wanted beside actual, differences marked."""
    table = Folded("topic", "partitions", "copies", "as the contract says")
    for report in reports:
        name = report.name if report.name == report.contract else f"{report.name} ({report.contract})"
        well = not report.differences
        table.add_row(
            Text(name),
            _beside(report.partitions, report.partitions_wanted),
            _beside(report.replication, report.replication_wanted),
            _mark(well, "" if well else "\n".join(report.differences)),
        )
    return table


def checks_table(checks: Sequence[Check]) -> Table:
    """Every check, and what to do where it failed."""
    table = Folded("", "check", "found", "what to do")
    for check in checks:
        table.add_row(_mark(check.well, ""), check.name, Text(check.found), Text(check.todo))
    return table


def status_table(status: Status) -> Group:
    """Roles, then fences."""
    roles = Folded("role", "topic", "partitions", "lag", "oldest unfinished", title="roles", title_justify="left")
    for role in status.roles:
        for name in dict.fromkeys(part.topic for part in role.partitions):
            parts = [part for part in role.partitions if part.topic == name]
            lag = sum(part.lag for part in parts)
            behind = ", ".join(f"{part.partition}: {part.lag}" for part in parts if part.lag)
            age = "" if role.oldest_unfinished_s is None or not lag else f"{role.oldest_unfinished_s} s"
            shown = f"{lag}  ({behind})" if behind and len(behind) < 60 else str(lag)
            roles.add_row(role.role, Text(name), str(len(parts)), Text(shown, style="yellow" if lag else "green"), age)
        for name in role.missing_topics:
            roles.add_row(role.role, Text(name), _mark(False, "missing"), "", "")
    if status.fences_error is not None:
        return Group(roles, Text(f"fences unknown: {status.fences_error}", style="red"))
    fences = Folded("kind", "shards", "with a fence", "blocks behind", title="fences in Redis", title_justify="left")
    for kind in ("user", "item"):
        shards = [fence for fence in status.fences if fence.kind == kind]
        late = sum(fence.behind for fence in shards)
        known = sum(fence.fence is not None for fence in shards)
        fences.add_row(kind, str(len(shards)), str(known), Text(str(late), style="yellow" if late else "green"))
    return Group(roles, fences)


def answers_table(answers: Sequence[Answer], *, every_label: bool) -> Table:
    """The best label of every head; or the likeliest labels of each."""
    table = Folded("task", "label", "probability")
    for answer in answers:
        oos = answer.label == "oos" and answer.threshold is not None
        note = f" (below {answer.threshold:.2f}: out of scope)" if oos else ""
        if not every_label:
            table.add_row(answer.task, _coloured(answer.label), f"{answer.probability:.3f}{note}")
            continue
        for i, (label, probability) in enumerate(list(answer.probabilities.items())[:_MANY_LABELS]):
            table.add_row(answer.task if i == 0 else "", _coloured(label), f"{probability:.3f}{note if i == 0 else ''}")
    return table


def figures_table(figures: dict[str, Any]) -> Table:
    """One figure a row."""
    table = Folded("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else Text(str(value)))
    return table


def plan_table(plan: Plan) -> Table:
    """What is needed, one line each."""
    table = Folded("what", "how much")
    table.add_row(
        "workers", f"{plan.workers}, used at {plan.use:.0%} of {plan.capacity_events_per_second:g} events/s each"
    )
    table.add_row("partitions of each events topic", str(plan.partitions))
    table.add_row("p99, produced to committed", f"{plan.p99_ms:g} ms (batches of {plan.batch_ms:g} ms)")
    table.add_row("memory of a worker", f"{plan.worker_memory_mb} MB")
    table.add_row("memory of Redis", f"{plan.redis_mb} MB")
    return table


def print_line(contract: str, line: Line) -> None:
    """One record on one line, coloured by topic and by what it says."""
    text = Text(f"{clock(line)} ", style="dim")
    text.append(f"{line.topic} ", style=_TOPIC_STYLES.get(contract.split(".")[0], "magenta"))
    text.append(f"{line.partition}/{line.offset}  ", style="dim")
    text.append(summary(line), style="red" if line.error else "default")
    for word, style in _BAD_WORDS.items():
        text.highlight_words([f"={word} "], style)
    Console(soft_wrap=True).print(text)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, for people only; gives a function to call with how many are done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def counter(title: str) -> Iterator[Callable[[int], None]]:
    """The same where nobody knows how many there will be: a count that goes up."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done: bar.update(task, completed=done)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _local(time_ms: int) -> str:
    return datetime.datetime.fromtimestamp(time_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M")


def _beside(actual: int | None, wanted: int) -> Text:
    if actual is None or actual == wanted:
        return Text(str(wanted) if actual == wanted else "-")
    return Text(f"{actual} (contract {wanted})", style="yellow")


def _mark(well: bool, words: str) -> Text:
    return Text(f"{'✓' if well else '✗'} {words}".rstrip(), style="green" if well else "red")


def _coloured(label: str) -> Text:
    return Text(label, style=_BAD_WORDS.get(label, "default"))
