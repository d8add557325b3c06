"""The trials of a recipe: its valid files, checked before anything is trained and measured on the artifact after."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from model.artifact import Artifact
from model.assess.detail import assess_files
from model.assess.evaluate import STREAM_TASKS, check_truth, evaluate_files, evaluate_texts
from model.clicks.evaluate import LogSpec, read_events
from model.clicks.fields import read_lines
from model.data import Columns, Fallback, Labelled, fingerprint, read_labelled, read_rows, read_split, texts_of
from model.errors import DataError
from model.scoring import Scorer, load_scorer
from model.text import normalise
from model.training.examples import Tell, read_corpus
from model.training.floor import LinearFloor, fit_floor
from model.training.recipe import Recipe, Trial

_log = structlog.get_logger(__name__)


def check_trials(
    recipe: Recipe,
    heads: Mapping[str, Sequence[str]],
    data: Path,
    tell: Tell = _log.info,
    click: Mapping[str, Any] | None = None,
) -> None:
    """Read the valid files that are there, whole, and what their trials name besides; ``tell`` hears which are not
    there, and how many rows have no label and will be left out. ``heads``: their labels; ``click``: what the artifact
    says of the click head that it has already. Raises DataError, naming file and line, for a row without text, a file
    without labels or without a text field that its trial names, a label that its head does not have and an event that
    cannot be read; naming the task, for one that is no head, and for a trial that has nothing to measure."""
    spec = LogSpec.of(vars(recipe.click) if recipe.click else click or {})
    absent: dict[Path, list[str]] = defaultdict(list)
    for trial in recipe.evaluation:
        path = trial.path(data)
        if trial.task not in heads and trial.task not in STREAM_TASKS:
            known = ", ".join([*heads, *STREAM_TASKS])
            raise DataError(f"evaluation: task {trial.task!r} is no head of recipe {recipe.name}; its tasks: {known}")
        if not path.exists():
            absent[path].append(trial.task)
            continue
        if trial.task in STREAM_TASKS:
            read_events(trial.task, read_lines([path]), read_lines(recipe.history_of(trial, data)), spec)
            continue
        for name in trial.history:
            deque(read_rows(data / name), maxlen=0)
        columns, scoped = recipe.columns_of(trial), recipe.heads[trial.task].threshold
        found, unlabelled = read_split([path], columns)
        for row in found:
            check_truth(row.label, trial.task, heads[trial.task], row.place, scoped=scoped)
        if unlabelled:
            tell(f"{trial.file}: {unlabelled} rows have no {columns.label} and are left out of {trial.task}'s figures")
        if trial.without:
            _unseen_rows(recipe, trial, data, found)
    for path, tasks in absent.items():
        tell(f"evaluation: {path} is not there and is passed over; {', '.join(tasks)} will have no figures on it")


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
    rows = _unseen_rows(recipe, trial, data, read_labelled([trial.path(data)], recipe.columns_of(trial)))
    return evaluate_texts(scorer, trial.task, [row.text for row in rows], [row.label for row in rows])


def _unseen_rows(recipe: Recipe, trial: Trial, data: Path, rows: Sequence[Labelled]) -> list[Labelled]:
    """Those of a trial's rows whose text does not stand in its file ``without``. Raises DataError where all do."""
    known = _texts(data / trial.without, recipe.columns_of(trial))
    left = [row for row in rows if normalise(row.text, lower=True) not in known]
    if not left:
        raise DataError(
            f"evaluation: {trial.file}: every text with a label stands in {trial.without} too, so nothing is left to"
            " measure; leave `without` out, or name another file"
        )
    return left


def _texts(path: Path, columns: Columns) -> set[str]:
    """The texts of a training file, as the model reads them; a row may lack the label. Raises DataError."""
    return {normalise(text, lower=True) for _, text, _ in texts_of(path, Fallback(columns.text))}
