"""The training corpus: every data set's rows, tokenised once, with labels as one matrix."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.data import Example, label_of, read_rows, text_of
from model.errors import DataError
from model.loss import NO_LABEL, OUTSIDE
from model.recipe import Dataset, Recipe, SpaceTexts
from model.scoring import Prepared
from model.templates import outside_sentences, shop_sentences
from model.text import TextCodec


@dataclass(frozen=True)
class Corpus:
    """Rows of all data sets, n in all, H heads.

    labels: int64 [n, H], class, NO_LABEL or OUTSIDE. weights: float32 [n, H]. dataset: int64 [n]. held: bool [n], the
    calibration rows. allowed: by data set and head, bool [classes].
    """

    heads: dict[str, list[str]]
    prepared: list[Prepared]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    dataset: npt.NDArray[np.int64]
    held: npt.NDArray[np.bool_]
    allowed: list[dict[str, npt.NDArray[np.bool_]]]

    @property
    def names(self) -> list[str]:
        return list(self.heads)


def read_dataset(dataset: Dataset, folder: Path, seed: int) -> list[Example]:
    """A data set's rows without repeats; texts that bear two labels are left out. Raises DataError."""
    seen: dict[str, Example] = {}
    doubtful: set[str] = set()
    for example in _examples(dataset, folder, seed):
        before = seen.setdefault(example.text, example)
        if before.labels != example.labels:
            doubtful.add(example.text)
    return [example for text, example in seen.items() if text not in doubtful]


def _examples(dataset: Dataset, folder: Path, seed: int) -> Iterator[Example]:
    if dataset.templates == "shop":
        for text, intent in shop_sentences(seed):
            yield Example(text, dict.fromkeys(dataset.labels, intent))
        return
    if dataset.templates == "outside":
        yield from (Example(text, {}, tuple(dataset.outside)) for text in outside_sentences())
        return
    if dataset.templates:
        raise DataError(f"data set {dataset.name}: templates {dataset.templates!r} are unknown; use shop or outside")
    path = folder / dataset.file
    for number, row in read_rows(path):
        labels = {head: label_of(row, field, path, number) for head, field in dataset.labels.items()}
        own = set(labels.values())
        outside = tuple(head for head, overlap in dataset.outside.items() if not own & set(overlap))
        yield Example(text_of(row, dataset.text, path, number), labels, outside)


def read_corpus(recipe: Recipe, folder: Path) -> list[list[Example]]:
    """All data sets of a recipe, read and checked. Raises DataError."""
    return [read_dataset(dataset, folder, recipe.seed) for dataset in recipe.datasets]


def build_corpus(recipe: Recipe, rows: Sequence[Sequence[Example]], codec: TextCodec) -> Corpus:
    """Tokenise and number everything. Raises DataError when a label is not among a head's."""
    heads = _label_sets(recipe, rows)
    names = list(heads)
    index = {head: {label: i for i, label in enumerate(labels)} for head, labels in heads.items()}
    flat = [example for part in rows for example in part]
    dataset = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    labels = np.full((len(flat), len(names)), NO_LABEL, np.int64)
    for i, example in enumerate(flat):
        for head, label in example.labels.items():
            if label not in index[head]:
                known = ", ".join(heads[head])
                raise DataError(f"{recipe.datasets[dataset[i]].name}: label {label!r} is not one of {head}'s: {known}")
            labels[i, names.index(head)] = index[head][label]
        for head in example.outside:
            labels[i, names.index(head)] = OUTSIDE
    prepared = [
        p for start in range(0, len(flat), 4096) for p in codec.prepare([e.text for e in flat[start : start + 4096]])
    ]
    share = round(recipe.calibration_share * 10007)
    held = np.array([zlib.crc32(p.ids.tobytes()) % 10007 < share for p in prepared])
    weights = np.ones(labels.shape, np.float32)
    allowed = []
    for d, spec in enumerate(recipe.datasets):
        own = dataset == d
        allowed.append(_allowed(spec, heads, rows[d]))
        if spec.balance:
            for head in spec.labels:
                column = names.index(head)
                weights[own, column] = _balanced(labels[own, column], spec.balance)
    return Corpus(heads, prepared, labels, weights, dataset, held, allowed)


def space_texts(specs: Sequence[SpaceTexts], folder: Path) -> list[str]:
    """Distinct texts for the vector space, evenly spread over each file. Raises DataError."""
    chosen: list[str] = []
    for spec in specs:
        path = folder / spec.file
        texts = list(dict.fromkeys(text_of(row, spec.text, path, number) for number, row in read_rows(path)))
        step = max(1, len(texts) // spec.rows)
        chosen += texts[::step][: spec.rows]
    return chosen


def _label_sets(recipe: Recipe, rows: Sequence[Sequence[Example]]) -> dict[str, list[str]]:
    heads = {}
    for name, head in recipe.heads.items():
        found = {example.labels[name] for part in rows for example in part if name in example.labels}
        heads[name] = head.labels or sorted(found)
        if len(heads[name]) < 2:
            raise DataError(f"head {name} has {len(heads[name])} labels in the data; it needs at least two")
    return heads


def _allowed(spec: Dataset, heads: dict[str, list[str]], rows: Sequence[Example]) -> dict[str, npt.NDArray[np.bool_]]:
    allowed = {}
    for head, labels in heads.items():
        known = {row.labels[head] for row in rows if head in row.labels}
        allowed[head] = np.array([head not in spec.partial or label in known for label in labels])
    return allowed


def _balanced(labels: npt.NDArray[np.int64], power: float) -> npt.NDArray[np.float32]:
    """Class weights frequency^-power, scaled so that the rows' mean weight is one."""
    counts = Counter(labels.tolist())
    raw = np.array([counts[label] ** -power for label in labels.tolist()], np.float32)
    return np.asarray(raw / raw.mean(), np.float32)
