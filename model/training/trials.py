"""The trials of a recipe: its valid files, checked before anything is trained and measured on the artifact after."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from model.artifact import Artifact
from model.assess.detail import assess_files
from model.assess.evaluate import OUTSIDE, STREAM_TASKS, evaluate_files, evaluate_texts
from model.data import Columns, Labelled, check_label, fingerprint, read_labelled, read_rows, read_split, text_of
from model.errors import DataError
from model.scoring import Scorer, load_scorer
from model.text import normalise
from model.training.examples import Tell, read_corpus
from model.training.floor import LinearFloor, fit_floor
from model.training.recipe import Recipe, Trial

_log = structlog.get_logger(__name__)


def check_trials(recipe: Recipe, heads: Mapping[str, Sequence[str]], data: Path, tell: Tell = _log.info) -> None:
    """Read the valid files that are there; ``tell`` hears how many rows have no label and will be left out. ``heads``:
    their labels. Raises DataError, naming file and line, for a row without text, a file without labels and a label that
    its head does not have; naming the task, for one that is no head."""
    for trial in recipe.evaluation:
        path = trial.path(data)
        for name in trial.history if path.exists() else ():
            next(read_rows(data / name), None)
        if trial.task in STREAM_TASKS:
            continue
        if trial.task not in heads:
            known = ", ".join([*heads, *STREAM_TASKS])
            raise DataError(f"evaluation: task {trial.task!r} is no head of recipe {recipe.name}; its tasks: {known}")
        if not path.exists():
            continue
        columns = recipe.columns_of(trial)
        found, unlabelled = read_split([path], columns)
        for row in found:
            if row.label != OUTSIDE:
                check_label(row.label, trial.task, heads[trial.task], row.place)
        if unlabelled:
            tell(f"{trial.file}: {unlabelled} rows have no {columns.label} and are left out of {trial.task}'s figures")
        if trial.without:
            _texts(data / trial.without, columns)


def add_figures(recipe: Recipe, data: Path, folder: Path, *, detail: bool = False) -> list[dict[str, Any]]:
    """Record in the artifact what it reaches on the valid files that are there, with each file's fingerprint, and what
    a linear machine does (``model.training.floor``). Figures of tasks that are none of the recipe's stay. With
    ``detail`` the figures as ``assess_files`` gives them, each with ``file`` and ``sha256``: measured in the same pass,
    so the flat ones are the same. Raises DataError."""
    scorer, artifact = load_scorer(folder), Artifact.load(folder)
    own = {*recipe.heads, *(trial.task for trial in recipe.evaluation)}
    figures = [found for found in artifact.manifest.get("metrics", []) if found["task"] not in own]
    details = []
    measure = assess_files if detail else evaluate_files
    corpus = cache(lambda: read_corpus(recipe, data, lambda _: None))
    floor = cache(lambda head: fit_floor(recipe, head, corpus()))
    for trial in recipe.evaluation:
        path = trial.path(data)
        if not path.exists():
            continue
        digest = fingerprint(path)
        files = {"files": {trial.file: digest}}
        stream = trial.task in STREAM_TASKS  # its events have their own fields, and their history is run through
        columns = None if stream else recipe.columns_of(trial)
        found = measure(scorer, trial.task, [path], recipe.history_of(trial, data), columns=columns)
        if columns:
            found |= _linear(floor(trial.task), read_labelled([path], columns), scorer.labels[trial.task])
        figures.append({name: value for name, value in found.items() if not isinstance(value, list | dict)} | files)
        if detail:
            details.append(found | {"file": trial.file, "sha256": digest})
        if trial.without:
            figures.append(_unseen(scorer, recipe, trial, data) | files | {"rows": "texts not in train"})
    Artifact.save(folder, artifact.manifest | {"metrics": figures}, artifact.tensors, artifact.tokenizer_json)
    return details


def _linear(machine: LinearFloor | None, rows: Sequence[Labelled], known: Sequence[str]) -> dict[str, float]:
    """What the floor reaches on the rows whose label the head knows; nothing where there is no floor or no such row."""
    rows = [row for row in rows if row.label in known]
    return machine.figures([row.text for row in rows], [row.label for row in rows]) if machine and rows else {}


def _unseen(scorer: Scorer, recipe: Recipe, trial: Trial, data: Path) -> dict[str, Any]:
    """Figures on the rows of a valid file whose text does not stand in the training file."""
    columns = recipe.columns_of(trial)
    known = _texts(data / trial.without, columns)
    rows = [row for row in read_labelled([trial.path(data)], columns) if normalise(row.text, lower=True) not in known]
    return evaluate_texts(scorer, trial.task, [row.text for row in rows], [row.label for row in rows])


def _texts(path: Path, columns: Columns) -> set[str]:
    """The texts of a training file, as the model reads them; a row may lack the label. Raises DataError."""
    return {normalise(text_of(row, columns.text, path, line), lower=True) for line, row in read_rows(path)}
