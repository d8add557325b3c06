"""Files of texts without labels: read in batches, each text once. For self-training and active learning."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from model.data import TEXT_FIELDS, Fallback, Row, read_rows, text_of, texts_of
from model.errors import DataError
from model.scoring import Floats, Scorer
from model.text import normalise

BATCH = 1024


class Text(NamedTuple):
    """One text, the number of its line, and the row that it was read from."""

    line: int
    text: str
    row: Row


@dataclass
class Unlabelled:
    """The distinct texts of a .jsonl or .jsonl.gz file that are not blank and not in the ``labelled`` files.

    ``fields``: of every file's rows, joined by a space; the last one must be there. Texts are the same when they are so
    after normalisation in lower case. Memory grows by a digest of 16 bytes a text. The counts are of the rows read.
    """

    path: Path
    fields: Sequence[str] = Fallback(TEXT_FIELDS)
    labelled: Sequence[Path] = ()
    rows: int = 0
    blank: int = 0
    repeated: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def batches(self) -> Iterator[list[Text]]:
        """At most BATCH texts at a time. Raises DataError with file, line and reason, and after the last ones, see
        ``texts_of``, for a field that no row has."""
        for labelled in self.labelled:
            self._seen |= {_digest(text_of(row, self.fields, labelled, line)) for line, row in read_rows(labelled)}
        batch: list[Text] = []
        for line, text, row in texts_of(self.path, self.fields):
            self.rows += 1
            if self._is_new(text):
                batch.append(Text(line, text, row))
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch
        if not self.rows:
            raise DataError(f"{self.path}: no rows; give a file of JSON objects, one a line, with a field 'text'")

    def counts(self) -> dict[str, int]:
        """Rows read so far: all, those without text, and those whose text had been seen or is labelled."""
        return {"rows": self.rows, "blank": self.blank, "repeated_or_labelled": self.repeated}

    def _is_new(self, text: str) -> bool:
        if not normalise(text):
            self.blank += 1
            return False
        digest = _digest(text)
        if digest in self._seen:
            self.repeated += 1
            return False
        self._seen.add(digest)
        return True


def _digest(text: str) -> bytes:
    return hashlib.blake2b(normalise(text, lower=True).encode(), digest_size=16).digest()


def score(scorer: Scorer, head: str, batch: Sequence[Text]) -> tuple[Floats, Floats]:
    """Encoded rows [n, hidden] and the head's probabilities [n, labels] of a batch."""
    encoded = scorer.encode(scorer.prepare([entry.text for entry in batch]))
    return encoded, scorer.classify(head, encoded)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON Lines, whole or not at all. Raises DataError when it cannot be written."""
    fresh = path.with_name(path.name + ".part")
    try:
        with fresh.open("w", encoding="utf-8", errors="backslashreplace") as handle:
            handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.replace(fresh, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); give another file") from error
