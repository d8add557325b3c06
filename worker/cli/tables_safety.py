"""What the commands of `worker.cli.safety` show: for people as tables, for machines as the same structs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from schemas.dead import DeadLetter
from worker.cli.tables import Folded, ids
from worker.logs import pseudonym
from worker.tools.dead_letters import Found, Search
from worker.tools.dead_replay import ReplayedLetters
from worker.tools.receipt import Receipt

_WHAT: Final = {"deleted": "[green]deleted[/]", "pending": "[red]pending[/]", "kept": "[yellow]kept[/]"}
ENDED: Final = {
    "replayed": "it was replayed",
    "erased": "it was erased with its person",
    "dropped": "it was dropped",
    "unknown": "none is known by this id; `millrace dead list` shows them",
}


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The oldest letters that matched; ``matched`` and ``by_reason`` count all that did."""

    matched: int
    by_reason: dict[str, int]
    letters: list[Found]


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """What was dropped, or with ``dry_run`` would be; ``ended`` tells of the wanted letters that were not there."""

    dry_run: bool
    dropped: int
    by_reason: dict[str, int]
    ended: dict[str, str]


class Whole(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One letter. ``key`` is a pseudonym unless contents were asked for; ``value`` is the original bytes then (base64
    in JSON), and headers have their values."""

    letter: Found
    key: str
    headers: list[tuple[str, bytes | None]]
    null: bool
    value: bytes | None = None


def listing(search: Search, limit: int) -> Listing:
    """The oldest ``limit`` letters of a search."""
    return Listing(matched=len(search.letters), by_reason=search.by_reason(), letters=search.letters[:limit])


def whole(found: Found, letter: DeadLetter, contents: bool) -> Whole:
    """A letter to be shown, with its contents or without."""
    key = "" if letter.key is None else letter.key.decode(errors="backslashreplace")
    return Whole(
        letter=found,
        key=key if contents or not key else pseudonym(key),
        headers=[(name, value if contents else None) for name, value in letter.source_headers],
        null=letter.value is None,
        value=letter.value if contents else None,
    )


def letters_table(shown: Listing) -> Group:
    """One letter a row, and the counts."""
    letter = ids("letter", (each.id for each in shown.letters))
    table = Folded("written (UTC)", letter, "stage", "reason", "bytes", "what was wrong")
    for each in shown.letters:
        again = f" (replayed {each.replays}x)" if each.replays else ""
        size = "cut" if each.truncated else str(each.size_bytes)
        table.add_row(_clock(each.time_ms), Text(each.id), each.stage, each.reason + again, size, Text(each.detail))
    counts = ", ".join(f"{reason} {count}" for reason, count in shown.by_reason.items())
    return Group(table, Text(f"{len(shown.letters)} of {shown.matched} letters{': ' if counts else ''}{counts}"))


def letter_table(shown: Whole) -> Table:
    """One letter, a row for each thing known of it."""
    letter = Column(shown.letter.id, overflow="fold", min_width=cell_len(shown.letter.id))
    table = Folded("", letter, show_lines=False)
    for name in ("stage", "reason", "detail", "size_bytes", "replays", "truncated"):
        table.add_row(name, Text(str(getattr(shown.letter, name))))
    table.add_row("written", _clock(shown.letter.time_ms))
    table.add_row("key", Text(_printable(shown.key)))
    for name, value in shown.headers:
        table.add_row("header", Text(_printable(name if value is None else f"{name} = {_text(value)}")))
    if shown.null:
        table.add_row("value", "none: a tombstone")
    elif shown.value is not None:
        table.add_row("value", Text(_printable(_text(shown.value))))
    return table


def dropped(search: Search, *, dry_run: bool) -> Dropped:
    """What became of the letters of a search."""
    return Dropped(dry_run=dry_run, dropped=len(search.letters), by_reason=search.by_reason(), ended=search.ended)


def dropped_table(report: Dropped) -> Group:
    """What was dropped, or would be."""
    table = Folded("reason", "letters to be dropped" if report.dry_run else "letters dropped")
    for reason, count in report.by_reason.items():
        table.add_row(Text(reason), str(count))
    return Group(table, *_ended(report.ended))


def replayed_table(report: ReplayedLetters) -> Group:
    """What was done, or would be."""
    table = Folded("topic", "letters to be replayed" if report.dry_run else "letters replayed")
    for topic, count in report.by_topic.items():
        table.add_row(Text(topic), str(count))
    lines = _ended(report.ended)
    if report.cut:
        lines.append(Text(f"{report.cut} letters hold no bytes (too large to keep) and stay where they are", "yellow"))
    if report.dry_run and report.replayed:
        lines.append(Text("a dry run: nothing was sent. --yes does it"))
    return Group(table, *lines)


def receipt_table(receipt: Receipt) -> Group:
    """What is gone, and what will be when."""
    told = Folded("", "", title="receipt", title_justify="left", show_header=False)
    told.add_row("person", Text(_printable(receipt.user_id)))
    told.add_row("forgotten up to", f"{_clock(receipt.cutoff_ms)} UTC")
    told.add_row("states in Redis", Text(receipt.redis))
    if receipt.states_deleted:
        told.add_row("", f"{receipt.states_deleted} of other vector spaces deleted")
    if receipt.newer_states:
        told.add_row("", f"{receipt.newer_states} holds what they did since")
    told.add_row("dead letters", f"{receipt.letters_deleted} deleted")
    if receipt.letters_unread:
        told.add_row("", f"{receipt.letters_unread} left of which nobody can tell whose they are")
    topics = Folded("topic", "their records", "gone from the disks by (UTC)", "")
    for each in receipt.topics:
        gone_by = "" if each.gone_by_ms is None else _clock(each.gone_by_ms)
        topics.add_row(Text(each.topic), _WHAT.get(each.what, each.what), gone_by, Text(each.detail))
    return Group(told, topics, *(Text(note) for note in receipt.notes))


def _ended(ended: Mapping[str, str]) -> list[Text]:
    return [Text(f"{name}: {ENDED[end]}, skipped") for name, end in sorted(ended.items())]


def _clock(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _printable(text: str) -> Any:
    # Control characters in what came from outside must not steer the terminal.
    return "".join(char if char.isprintable() else "�" for char in text)
