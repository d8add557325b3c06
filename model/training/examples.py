"""A recipe's data sets as examples: rows read and checked, all rows of one text made one example.

A row may carry some of its data set's labels and not others: a field that is absent or null is no label. Rows of one
text complement each other. Where they contradict each other that head's label is left out, and with it a text that
nothing else is known of.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from model.data import Example, check_label, check_number, label_of, listed, texts_of
from model.errors import DataError
from model.training.recipe import Dataset, Head, Recipe
from model.training.templates import outside_sentences, shop_sentences

Tell = Callable[[str], object]
_log = structlog.get_logger(__name__)


def read_corpus(recipe: Recipe, folder: Path, tell: Tell = _log.info) -> list[list[Example]]:
    """All data sets of a recipe, read and checked; ``tell`` hears what became of their rows, and of labels that no row
    has, or one alone. Raises DataError."""
    corpus = [read_dataset(dataset, recipe.heads, folder, recipe.seed, tell) for dataset in recipe.datasets]
    for name, head in recipe.heads.items():
        counts = Counter(example.labels[name] for part in corpus for example in part if name in example.labels)
        none = [label for label in head.labels if label not in counts]
        one = [label for label, count in counts.items() if count == 1]
        rare = {"without a text": none, "with one text only": one}
        if few := [f"{how}: {listed(labels)}" for how, labels in rare.items() if labels]:
            tell(f"warning: labels of {name} {'; '.join(few)}")
    return corpus


def read_dataset(
    dataset: Dataset, heads: Mapping[str, Head], folder: Path, seed: int, tell: Tell = _log.info
) -> list[Example]:
    """A data set's examples, one a text, in the order of their first rows; ``tell`` hears what became of its rows.

    Raises DataError naming the file, with the line of a row that carries no label, or one that its head of ``heads``
    cannot have, and with the field of labels, text or groups that no row has.
    """
    path = folder / dataset.file
    rows = list(_generated(dataset, heads, seed) if dataset.templates else _of_file(dataset, heads, path))
    labelled = {head for row in rows for head in row.labels}
    for head, field in dataset.labels.items():
        if head not in labelled:
            raise DataError(
                f"{path}: no row has a label in the field {field!r}, which {head} is to learn from; "
                f"name its field under `labels:` of the data set {dataset.name}, or leave the head out there"
            )
    if dataset.groups and not any(row.group for row in rows):
        raise DataError(f"{path}: no row has the field {dataset.groups!r} that names its group")
    examples, contradicted = merge(rows, dataset.outside)
    labels = Counter(head for example in examples for head in example.labels)
    left_out = len({row.text for row in rows}) - len(examples)
    tell(
        f"{dataset.name}: {len(rows)} rows, {len(examples)} texts"
        + (f" with labels of {_counts(labels)}" if labels else "")
        + (f"; rows of one text contradict each other: {_counts(contradicted)}" if contradicted else "")
        + (f"; {left_out} texts left out" if left_out else "")
    )
    return examples


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{head} {count}" for head, count in counts.items())


def merge(rows: Sequence[Example], outside: Mapping[str, Sequence[str]]) -> tuple[list[Example], Counter[str]]:
    """One example a text, and by head how many texts contradict themselves there.

    ``outside``: as a data set has it. A text is out of scope for a head where none of its labels is one that overlaps;
    while a head that has such labels says nothing of the text, that cannot be known.
    """
    known: dict[str, dict[str, str]] = {}
    groups: dict[str, str] = {}
    torn: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        own = known.setdefault(row.text, {})
        groups[row.text] = groups.get(row.text) or row.group
        for head, label in row.labels.items():
            if own.setdefault(head, label) != label:
                torn[row.text].add(head)
    kept = {text: {h: label for h, label in own.items() if h not in torn[text]} for text, own in known.items()}
    deciding = {
        head: {h for own in kept.values() for h, label in own.items() if label in overlap}
        for head, overlap in outside.items()
    }
    examples = []
    for text, own in kept.items():
        apart = tuple(
            head
            for head, overlap in outside.items()
            if deciding[head] <= own.keys() and not set(own.values()) & set(overlap)
        )
        if own or apart:
            examples.append(Example(text, own, apart, groups[text]))
    return examples, Counter(head for heads in torn.values() for head in heads)


def _generated(dataset: Dataset, heads: Mapping[str, Head], seed: int) -> Iterator[Example]:
    if dataset.templates == "shop":
        for text, intent in shop_sentences(seed):
            labels = dict.fromkeys(dataset.labels, intent)
            _check(labels, heads, f"data set {dataset.name}")
            yield Example(text, labels)
    elif dataset.templates == "outside":
        yield from (Example(text, {}) for text in outside_sentences())
    else:
        raise DataError(f"data set {dataset.name}: templates {dataset.templates!r} are unknown; use shop or outside")


def _of_file(dataset: Dataset, heads: Mapping[str, Head], path: Path) -> Iterator[Example]:
    for number, text, row in texts_of(path, dataset.text):
        labels = {
            head: label_of(row, field, path, number, score=heads[head].kind == "score")
            for head, field in dataset.labels.items()
            if row.get(field) is not None
        }
        if dataset.labels and not labels:
            fields = ", ".join(map(repr, dict.fromkeys(dataset.labels.values())))
            raise DataError(f"{path}:{number}: no label in {fields}; label the row or take it out of the file")
        _check(labels, heads, f"{path}:{number}")
        yield Example(text, labels, group=_group(row, dataset.groups))


def _check(labels: Mapping[str, str], heads: Mapping[str, Head], place: str) -> None:
    """Raises DataError, naming ``place``, for a label that its head cannot have: it is told while its line is known."""
    for name, label in labels.items():
        if heads[name].labels:
            check_label(label, name, heads[name].labels, place)
        if heads[name].kind == "score":
            check_number(label, name, place)


def _group(row: Mapping[str, Any], name: str) -> str:
    """A row's group; a row without the field belongs to none."""
    value = row.get(name) if name else None
    return "" if value is None else str(value)
