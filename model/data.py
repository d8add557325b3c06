"""Labelled rows from JSON Lines files, plain or gzipped. A malformed file is refused with file, line and reason."""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Example:
    """One text and the labels it carries: head to label, only for the heads that know this row."""

    text: str
    labels: Mapping[str, str]
    outside: tuple[str, ...] = ()  # intent heads for which this text is out of scope
    group: str = ""  # named group of the row, for fairness; empty: none


@dataclass(frozen=True, slots=True)
class Columns:
    """Where rows have what a head learns from: the fields of the ``text``, joined by a space, and that of the
    ``label``; empty: not said."""

    text: tuple[str, ...] = ()
    label: str = ""

    def otherwise(self, other: "Columns") -> "Columns":
        """These columns and, where they say nothing, the other's."""
        return Columns(self.text or other.text, self.label or other.label)


class Labelled(NamedTuple):
    """A row with its text and label, and the ``place`` (file:line) that errors name."""

    place: str
    text: str
    label: str
    row: Row


def read_rows(path: Path, *, torn: bool = False) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of a .jsonl or .jsonl.gz file. Empty lines are skipped, with ``torn`` a last line
    without its end, too: somebody is writing it, or was killed over it. Lines over LINE_BYTES_MAX, broken gzip, bad
    UTF-8, bad JSON and non-objects raise DataError."""
    path = Path(path)
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            while line := handle.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise DataError(f"{path}:{number}: the line is longer than {LINE_BYTES_MAX} bytes; split the file")
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
        raise DataError(f"{path}:{number}: not JSON ({error}); mend or remove the line") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number}: a JSON {type(row).__name__}, not an object; one object a line is expected")
    return row


def text_of(row: Row, fields: Sequence[str], path: Path, number: int) -> str:
    """The text fields that a row has, joined by a space. The last one must be there. Raises DataError."""
    parts = []
    for field in fields:
        value = row.get(field, "" if field != fields[-1] else None)
        if not isinstance(value, str):
            raise DataError(f"{path}:{number}: field {field!r} is {_kind(value)}, text is expected")
        parts.append(value)
    return " ".join(part for part in parts if part)


def label_of(row: Row, field: str, path: Path, number: int) -> str:
    """A row's label as a string (stars are whole numbers). Raises DataError."""
    value = row.get(field)
    label = as_label(value)
    if label is None:
        raise DataError(
            f"{path}:{number}: label field {field!r} is {_kind(value)}, a string or whole number is expected"
        )
    return label


def as_label(value: Any) -> str | None:
    """A label as text, from a string or a whole number; None of what is neither, and of the empty string."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None


def columns_of(head: str, entry: Mapping[str, Any], given: Columns | None = None) -> Columns:
    """Where rows have a head's text and label: as ``given``, else as the head's manifest ``entry`` says, else as the
    public data sets have it. A head that these do not know has its labels under its own name."""
    stored = Columns(tuple(entry.get("text", ())), entry.get("field", ""))
    public = Columns(TEXT_FIELDS, FIELD_OF_TASK.get(head, head))
    return (given or Columns()).otherwise(stored).otherwise(public)


def check_label(label: str, head: str, known: Collection[str], place: str) -> None:
    """Raises DataError, naming ``place``, for a label that is none of the head's ``known`` ones."""
    if label not in known:
        raise DataError(f"{place}: label {label!r} is unknown to head {head!r}; its labels: {', '.join(known)}")


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
    null: of those nothing else is read. Raises DataError, also for a file whose rows have no label at all."""
    found: list[Labelled] = []
    unlabelled = 0
    for path in paths:
        before, without = len(found), 0
        for number, row in read_rows(path):
            if row.get(columns.label) is None:
                without += 1
                continue
            text, label = text_of(row, columns.text, path, number), label_of(row, columns.label, path, number)
            found.append(Labelled(f"{path}:{number}", text, label, row))
        if without and len(found) == before:
            raise DataError(
                f"{path}: label field {columns.label!r} is missing or null in every row; give a file that has labels,"
                " or say in which field they are"
            )
        unlabelled += without
    if not found:
        raise DataError(f"{', '.join(map(str, paths)) or 'no file'}: no rows; give at least one non-empty file")
    return found, unlabelled


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises DataError when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _kind(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
