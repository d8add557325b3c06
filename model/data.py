"""Labelled rows from JSON Lines files, plain or gzipped. A malformed file is refused with file, line and reason."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import DataError

Row = dict[str, Any]
FIELD_OF_TASK = {
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


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) of a .jsonl or .jsonl.gz file. Empty lines are skipped; lines over LINE_BYTES_MAX,
    broken gzip, bad UTF-8, bad JSON and non-objects raise DataError."""
    path = Path(path)
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            while line := handle.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise DataError(f"{path}:{number}: the line is longer than {LINE_BYTES_MAX} bytes; split the file")
                if line.strip():
                    yield number, _parse(path, number, line)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after line {number} ({error}); check the path and the file") from error


def _parse(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start}); re-encode it") from error
    except ValueError as error:
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
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(
            f"{path}:{number}: label field {field!r} is {_kind(value)}, a string or whole number is expected"
        )
    return str(value)


def read_labelled(paths: Sequence[Path], task: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a text task's files (``title`` before ``text`` where there is one). Raises DataError."""
    texts, labels, _ = read_with_rows(paths, task)
    return texts, labels


def read_with_rows(paths: Sequence[Path], task: str) -> tuple[list[str], list[str], list[Row]]:
    """As ``read_labelled``, with the rows themselves. Raises DataError."""
    if task not in FIELD_OF_TASK:
        raise DataError(f"unknown task {task!r}; known: {', '.join(FIELD_OF_TASK)}, click, purchase")
    texts, labels, rows = [], [], []
    for path in paths:
        for number, row in read_rows(path):
            texts.append(text_of(row, ("title", "text"), path, number))
            labels.append(label_of(row, FIELD_OF_TASK[task], path, number))
            rows.append(row)
    if not texts:
        raise DataError(f"{', '.join(map(str, paths)) or 'no file'}: no rows; give at least one non-empty file")
    return texts, labels, rows


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises DataError when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _kind(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
