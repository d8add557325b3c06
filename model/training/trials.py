"""The trials of a recipe: its valid files, checked before anything is trained and measured on the artifact after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.artifact import Artifact
from model.assess.evaluate import OUTSIDE, STREAM_TASKS, evaluate_files, evaluate_texts
from model.data import Columns, check_label, fingerprint, read_labelled, read_rows, text_of
from model.errors import DataError
from model.scoring import Scorer, load_scorer
from model.text import normalise
from model.training.recipe import Recipe, Trial


def check_trials(recipe: Recipe, heads: Mapping[str, Sequence[str]], data: Path) -> None:
    """Read the valid files that are there. ``heads``: their labels. Raises DataError, naming file and line, for a row
    without text or label and a label that its head does not have; naming the task, for one that is no head."""
    for trial in recipe.evaluation:
        if trial.task in STREAM_TASKS:
            continue
        if trial.task not in heads:
            known = ", ".join([*heads, *STREAM_TASKS])
            raise DataError(f"evaluation: task {trial.task!r} is no head of recipe {recipe.name}; its tasks: {known}")
        path, columns = trial.path(data), recipe.columns_of(trial)
        if not path.exists():
            continue
        for row in read_labelled([path], columns):
            if row.label != OUTSIDE:
                check_label(row.label, trial.task, heads[trial.task], row.place)
        if trial.without:
            _texts(data / trial.without, columns)


def add_figures(recipe: Recipe, data: Path, folder: Path) -> None:
    """Record in the artifact what it reaches on the valid files that are there, with each file's fingerprint. Figures
    of tasks that are none of the recipe's stay. Raises DataError as ``evaluate_files``."""
    scorer, artifact = load_scorer(folder), Artifact.load(folder)
    own = {*recipe.heads, *(trial.task for trial in recipe.evaluation)}
    figures = [found for found in artifact.manifest.get("metrics", []) if found["task"] not in own]
    for trial in recipe.evaluation:
        path = trial.path(data)
        if not path.exists():
            continue
        files = {"files": {trial.file: fingerprint(path)}}
        # A stream task's events have their own fields.
        columns = None if trial.task in STREAM_TASKS else recipe.columns_of(trial)
        figures.append(evaluate_files(scorer, trial.task, [path], columns=columns) | files)
        if trial.without:
            figures.append(_unseen(scorer, recipe, trial, data) | files | {"rows": "texts not in train"})
    Artifact.save(folder, artifact.manifest | {"metrics": figures}, artifact.tensors, artifact.tokenizer_json)


def _unseen(scorer: Scorer, recipe: Recipe, trial: Trial, data: Path) -> dict[str, Any]:
    """Figures on the rows of a valid file whose text does not stand in the training file."""
    columns = recipe.columns_of(trial)
    known = _texts(data / trial.without, columns)
    rows = [row for row in read_labelled([trial.path(data)], columns) if normalise(row.text, lower=True) not in known]
    return evaluate_texts(scorer, trial.task, [row.text for row in rows], [row.label for row in rows])


def _texts(path: Path, columns: Columns) -> set[str]:
    """The texts of a training file, as the model reads them; a row may lack the label. Raises DataError."""
    return {normalise(text_of(row, columns.text, path, line), lower=True) for line, row in read_rows(path)}
