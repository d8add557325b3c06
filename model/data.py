"""Labelled rows from JSON Lines files, plain or gzipped. A malformed file is refused with file, line and reason."""

import codecs
import difflib
import gzip
import hashlib
import json
import math
import unicodedata
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from model.errors import DataError

Row = dict[str, Any]
TEXT_FIELDS = ("title", "text")
FIELD_OF_TASK = {  # of the public data sets: an artifact that does not say where its labels were is read so
    "sentiment": "sentiment",
    "sentiment.finance": "sentiment",
    "category": "category",
    "topic": "topic",
    "stars": "stars",
    "emotion": "emotion",
    "intent.shop": "intent",
    "intent.banking": "intent",
    "intent.general": "intent",
}
LINE_BYTES_MAX = 16 * 1024 * 1024
_SHOWN = 10  # names that a message lists
_CUT = 60  # characters of a label that a message shows


@dataclass(frozen=True, slots=True)
class Example:
    """One text and the labels it carries: head to label, only for the heads that know this row."""

    text: str
    labels: Mapping[str, str]
    outside: tuple[str, ...] = ()  # intent heads for which this text is out of scope
    group: str = ""  # named group of the row, for fairness; empty: none


class Fallback(tuple[str, ...]):
    """Text fields that nobody named for the file at hand: those of a head, which other files had. It may lack all but
    the last; fields that are named for it are misspelt when no row has them."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """Where rows have what a head learns from: the fields of the ``text``, joined by a space, and that of the
    ``label``; empty: not said. ``score``: the labels are numbers."""

    text: tuple[str, ...] = ()
    label: str = ""
    score: bool = False

    def otherwise(self, other: "Columns") -> "Columns":
        """These columns and, where they say nothing, the other's."""
        return Columns(self.text or other.text, self.label or other.label, self.score or other.score)


class Labelled(NamedTuple):
    """A row with its text and label, and the ``place`` (file:line) that errors name."""

    place: str
    text: str
    label: str
    row: Row


def read_rows(path: Path, *, torn: bool = False) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of a .jsonl or .jsonl.gz file. A byte order mark and empty lines are skipped, with
    ``torn`` a last line without its end, too: somebody is writing it, or was killed over it. Lines over LINE_BYTES_MAX,
    broken gzip, bad UTF-8, bad JSON and non-objects raise DataError."""
    path = Path(path)
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            while line := handle.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise DataError(f"{path}:{number}: the line is longer than {LINE_BYTES_MAX} bytes; split the file")
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip() and not (torn and not line.endswith(b"\n")):
                    yield number, _parse(path, number, line)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after line {number} ({error}); check the path and the file") from error


def _parse(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start}); re-encode it") from error
    except (ValueError, RecursionError) as error:
        if number == 1 and not line.lstrip().startswith((b"{", b"[")):
            raise DataError(f"{path}:1: not JSON Lines; is it CSV? one JSON object a line is expected") from error
        raise DataError(f"{path}:{number}: not JSON ({error}); mend or remove the line") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: a JSON {type(row).__name__}, not an object; one object a line is expected")
    return row


def text_of(row: Row, fields: Sequence[str], path: Path, number: int) -> str:
    """The text fields that a row has, joined by a space; null is as absent. The last one must be there. Raises
    DataError."""
    parts = []
    for field in fields:
        value = row.get(field)
        if value is None and field != fields[-1]:
            continue
        if not isinstance(value, str):
            has = f"; the row has {listed(own)}" if value is None and (own := _filled(row)) else ""
            raise DataError(f"{path}:{number}: field {field!r} is {_kind(value)}, text is expected{has}")
        parts.append(value)
    return " ".join(part for part in parts if part)


def texts_of(
    path: Path, fields: Sequence[str], rows: Iterable[tuple[int, Row]] | None = None
) -> Iterator[tuple[int, str, Row]]:
    """Line number, text (see ``text_of``) and row of each of a file's ``rows``, or of all. Raises DataError, after the
    last, for a field that none of them had, unless the fields are a ``Fallback``."""
    absent = set() if isinstance(fields, Fallback) else set(fields)
    had: dict[str, None] = {}
    for number, row in read_rows(path) if rows is None else rows:
        text = text_of(row, fields, path, number)
        if absent:
            own = _filled(row)
            absent.difference_update(own)
            if len(had) <= _SHOWN:  # of rows that each have other names, memory stays bounded
                had.update(dict.fromkeys(own))
        yield number, text, row
    if had and (missed := [field for field in fields if field in absent]):
        raise DataError(
            f"{path}: no row has the text field {missed[0]!r}; rows have {listed(had)}: mend the name, or leave it out"
        )


def _filled(row: Row) -> list[str]:
    return [name for name, value in row.items() if value is not None]


def listed(names: Collection[str]) -> str:
    """The first names, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in islice(names, _SHOWN))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def label_of(row: Row, field: str, path: Path, number: int, *, score: bool = False) -> str:
    """A row's label, see ``as_label``. Raises DataError."""
    value = row.get(field)
    label = as_label(value, score=score)
    if label is None:
        expected = "a finite number" if score else "a string or whole number"
        hint = ""
        if isinstance(value, str) and not value.strip():
            hint = "; for no label write null, or leave the field out"
        elif isinstance(value, float) and not score:
            hint = "; other numbers are labels of heads of `kind: score`"
        raise DataError(f"{path}:{number}: label field {field!r} is {_kind(value)}, {expected} is expected{hint}")
    return label


def as_label(value: Any, *, score: bool = False) -> str | None:
    """A label as text, from a string or a whole number, for a ``score`` from any finite one; None of what is neither,
    and of a blank string. What looks the same is the same: strings in NFKC without blanks at their ends, numbers (of a
    score also those in strings) without a point where they are whole."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str):
        value = unicodedata.normalize("NFKC", value).strip()
    if score:
        with suppress(ValueError, OverflowError):  # `check_number` tells of what is no number
            value = float(value)
    if isinstance(value, float):
        if value.is_integer():
            value = int(value)
        elif not score or not math.isfinite(value):
            return None
    return str(value) or None


def columns_of(head: str, entry: Mapping[str, Any], given: Columns | None = None) -> Columns:
    """Where rows have a head's text and label: as ``given``, else as the head's manifest ``entry`` says, else as the
    public data sets have it. A head that these do not know has its labels under its own name."""
    kind = entry.get("kind", "score" if head == "stars" else "classes")  # older artifacts do not say, and have `stars`
    stored = Columns(Fallback(entry.get("text", ())), entry.get("field", ""), kind == "score")
    public = Columns(Fallback(TEXT_FIELDS), FIELD_OF_TASK.get(head, head))
    return (given or Columns()).otherwise(stored).otherwise(public)


def own_label(label: str, known: Sequence[str]) -> str:
    """One of the ``known`` labels, for one that somebody typed: itself, or that which looks the same."""
    if label in known:
        return label
    for score in (False, True):  # 4.50 is 4.5, whatever the head's kind
        same = {as_label(own, score=score): own for own in known}
        if (found := same.get(as_label(label, score=score))) is not None:
            return found
    return label


def check_label(label: str, head: str, known: Collection[str], place: str) -> None:
    """Raises DataError, naming ``place``, for a label that is none of the head's ``known`` ones."""
    if label not in known:
        its = f"its labels: {', '.join(known)}"
        if len(known) > _SHOWN:
            close = difflib.get_close_matches(label[:_CUT], known, 3, cutoff=0.0)
            its = f"the closest of its {len(known)} labels: {', '.join(close)}"
        raise DataError(f"{place}: label {label[:_CUT]!r} is unknown to head {head!r}; {its}")


def check_number(label: str, head: str, place: str) -> None:
    """Raises DataError, naming ``place``, for a label of a head of kind ``score`` that is no number."""
    try:
        well = math.isfinite(float(label))
    except ValueError:
        well = False
    if not well:
        raise DataError(f"{place}: label {label!r} of head {head!r} is no number, as kind: score needs; leave kind out")


def read_labelled(paths: Sequence[Path], columns: Columns) -> list[Labelled]:
    """The rows of files that have text and label in ``columns``. Raises DataError as ``read_split``."""
    return read_split(paths, columns)[0]


def read_split(paths: Sequence[Path], columns: Columns) -> tuple[list[Labelled], int]:
    """The rows of files that have text and label in ``columns``, and how many more there are whose label is absent or
    null: of those nothing else is read. Raises DataError, also for a file whose rows have no label at all, or none of
    whose labelled rows has a text field that is named for it."""
    found: list[Labelled] = []
    unlabelled = 0
    for path in paths:
        before, left_out = len(found), list[int]()
        rows = _labelled(path, columns.label, left_out)
        for number, text, row in texts_of(path, columns.text, rows):
            label = label_of(row, columns.label, path, number, score=columns.score)
            found.append(Labelled(f"{path}:{number}", text, label, row))
        if left_out and len(found) == before:
            raise DataError(
                f"{path}: label field {columns.label!r} is missing or null in every row; give a file that has labels,"
                " or say in which field they are"
            )
        unlabelled += len(left_out)
    if not found:
        raise DataError(f"{', '.join(map(str, paths)) or 'no file'}: no rows; give at least one non-empty file")
    return found, unlabelled


def _labelled(path: Path, label: str, left_out: list[int]) -> Iterator[tuple[int, Row]]:
    """The rows of a file that have a label; the lines of the others are added to ``left_out``."""
    for number, row in read_rows(path):
        if row.get(label) is None:
            left_out.append(number)
        else:
            yield number, row


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises DataError when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _kind(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
