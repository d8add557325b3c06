"""The training corpus: every data set's rows, tokenised once, with labels as one matrix."""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.data import Example, texts_of
from model.errors import DataError
from model.scoring import Prepared
from model.text import TextCodec
from model.training.extra import extra_rows
from model.training.fairness import NO_GROUP
from model.training.loss import NO_LABEL, OUTSIDE
from model.training.recipe import Dataset, Recipe, SpaceTexts


@dataclass(frozen=True)
class Corpus:
    """Rows of all data sets, n in all, H heads.

    labels: int64 [n, H], class, NO_LABEL or OUTSIDE. weights: float32 [n, H]. dataset: int64 [n]. held: bool [n], the
    calibration rows. allowed: by data set and head, bool [classes]. origin: int64 [n], the row that a row was made from
    by augmentation, itself for the others; extra rows come last and are never held. groups: int64 [n], index into
    group_names, or NO_GROUP. texts: as they were read. files: SHA-256 of the data files, by name.
    """

    heads: dict[str, list[str]]
    prepared: list[Prepared]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    dataset: npt.NDArray[np.int64]
    held: npt.NDArray[np.bool_]
    allowed: list[dict[str, npt.NDArray[np.bool_]]]
    origin: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    group_names: list[str]
    texts: list[str]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return list(self.heads)


def build_corpus(
    recipe: Recipe, rows: Sequence[Sequence[Example]], codec: TextCodec, keep: Path | None = None
) -> Corpus:
    """Tokenise, number and augment everything. ``rows``: as ``read_corpus`` gives them. ``keep``: folder for what
    augmentation is slow to make. Raises DataError for a head with fewer than two labels, ModelError when a translation
    model cannot be had."""
    heads = _label_sets(recipe, rows)
    names = list(heads)
    index = {head: {label: i for i, label in enumerate(labels)} for head, labels in heads.items()}
    flat = [example for part in rows for example in part]
    dataset = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    labels = np.full((len(flat), len(names)), NO_LABEL, np.int64)
    for i, example in enumerate(flat):
        for head, label in example.labels.items():
            labels[i, names.index(head)] = index[head][label]
        for head in example.outside:
            labels[i, names.index(head)] = OUTSIDE
    prepared = _prepare(codec, [example.text for example in flat])
    held = _held(prepared, recipe.calibration_share)
    guessed = np.array([spec.guessed for spec in recipe.datasets])
    labels[held & guessed[dataset]] = NO_LABEL
    extra = extra_rows(recipe, flat, dataset, ~held, keep)
    more = _prepare(codec, [text for _, text in extra])
    # What would be held is left out: it may be a held row's text, to the model.
    usable = np.flatnonzero(~_held(more, recipe.calibration_share))
    prepared += [more[i] for i in usable]
    origin = np.array([*range(len(flat)), *(extra[i][0] for i in usable)], np.int64)
    labels, dataset = labels[origin], dataset[origin]
    held = np.concatenate([held, np.zeros(len(usable), bool)])
    weights = np.ones(labels.shape, np.float32)
    allowed = []
    for d, spec in enumerate(recipe.datasets):
        own = dataset == d
        allowed.append(_allowed(spec, heads, rows[d]))
        if spec.balance:
            for head in spec.labels:
                column = names.index(head)
                weights[own, column] = _balanced(labels[own, column], spec.balance)
    group_names = sorted({example.group for example in flat} - {""})
    place = {name: i for i, name in enumerate(group_names)}
    groups = np.array([place.get(example.group, NO_GROUP) for example in flat], np.int64)[origin]
    texts = [example.text for example in flat] + [extra[i][1] for i in usable]
    return Corpus(heads, prepared, labels, weights, dataset, held, allowed, origin, groups, group_names, texts)


def read_by(corpus: Corpus, codec: TextCodec) -> Corpus:
    """The same rows as another tokenizer reads them."""
    return replace(corpus, prepared=_prepare(codec, corpus.texts))


def _prepare(codec: TextCodec, texts: Sequence[str]) -> list[Prepared]:
    return [p for start in range(0, len(texts), 4096) for p in codec.prepare(texts[start : start + 4096])]


def _held(prepared: Sequence[Prepared], share: float) -> npt.NDArray[np.bool_]:
    """Which rows are calibrated on: decided by a row's tokens, so that equal texts fall on one side."""
    limit = round(share * 10007)
    return np.array([zlib.crc32(p.ids.tobytes()) % 10007 < limit for p in prepared], bool)


def evenly(rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` of the rows, evenly spread, so that every data set is among them."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def space_texts(specs: Sequence[SpaceTexts], folder: Path) -> list[str]:
    """Distinct texts for the vector space, evenly spread over each file. Raises DataError, also for a file of none, or
    without a field that is named for it."""
    chosen: list[str] = []
    for spec in specs:
        path = folder / spec.file
        texts = list(dict.fromkeys(text for _, text, _ in texts_of(path, spec.text)))
        if not texts:
            raise DataError(f"{path}: no rows; space needs texts, give a file that is not empty or leave it out there")
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
    """Class weights frequency^-power, scaled so that the labelled rows' mean weight is one; the others have none."""
    counts = Counter(labels[labels != NO_LABEL].tolist())
    raw = np.array([counts[label] ** -power if label in counts else 0.0 for label in labels.tolist()], np.float32)
    return np.asarray(raw * counts.total() / max(raw.sum(), 1e-9), np.float32)
