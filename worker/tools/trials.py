"""The trials of ``millrace report``: which file each task is measured on, and where it has text and label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.training.recipe import Trial
from worker.errors import InputError


def read_trials(pairs: Sequence[str], texts: Sequence[str], labels: Sequence[str]) -> list[Trial]:
    """Trials of ``TASK=FILE``, each with the fields that ``texts`` and ``labels`` (``TASK=FIELD``) name for its task.

    Raises `InputError` for what is no such pair, a file that is not there, or a field of a task without a trial.
    """
    files = [_split("--trial", pair, "FILE") for pair in pairs]
    for pair, (_, file) in zip(pairs, files, strict=True):
        if not Path(file).is_file():
            raise InputError(f"--trial {pair}: there is no file {file}")
    tasks = {task for task, _ in files}
    texts_of: dict[str, list[str]] = {}
    label_of: dict[str, str] = {}
    for pair in texts:
        task, field = _split("--field", pair, "FIELD", tasks)
        texts_of.setdefault(task, []).append(field)
    for pair in labels:
        task, field = _split("--label-field", pair, "FIELD", tasks)
        label_of[task] = field
    return [Trial(task, file, text=texts_of.get(task, []), label=label_of.get(task, "")) for task, file in files]


def _split(option: str, pair: str, kind: str, tasks: set[str] | None = None) -> tuple[str, str]:
    """Task and value of a pair; the task must be one of ``tasks`` where they are given."""
    task, _, value = pair.partition("=")
    if not task or not value:
        raise InputError(f"{option} {pair}: TASK={kind} is expected")
    if tasks is not None and task not in tasks:
        raise InputError(f"{option} {pair}: no --trial measures {task}")
    return task, value
