"""The trials of ``millrace report``: which file each task is measured on, and where it has text and label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.training.recipe import Trial
from worker.errors import InputError


def read_trials(
    pairs: Sequence[str], texts: Sequence[str], labels: Sequence[str], histories: Sequence[str] = ()
) -> list[Trial]:
    """Trials of ``TASK=FILE``, each with the fields that ``texts`` and ``labels`` (``TASK=FIELD``) name for its task,
    and the files of ``histories`` (``TASK=FILE``).

    Raises `InputError` for what is no such pair, a file that is not there, or a field of a task without a trial.
    """
    files = [_file("--trial", pair) for pair in pairs]
    tasks = {task for task, _ in files}
    texts_of: dict[str, list[str]] = {}
    label_of: dict[str, str] = {}
    for pair in texts:
        task, field = _split("--field", pair, "FIELD", tasks)
        texts_of.setdefault(task, []).append(field)
    for pair in labels:
        task, field = _split("--label-field", pair, "FIELD", tasks)
        label_of[task] = field
    before: dict[str, list[str]] = {}
    for pair in histories:
        task, file = _file("--history", pair, tasks)
        before.setdefault(task, []).append(file)
    return [
        Trial(
            task,
            file,
            text=texts_of.get(task, []),
            label=label_of.get(task, ""),
            history=before.get(task, []),
        )
        for task, file in files
    ]


def _file(option: str, pair: str, tasks: set[str] | None = None) -> tuple[str, str]:
    """Task and file of a pair; the file must be there."""
    task, file = _split(option, pair, "FILE", tasks)
    if not Path(file).is_file():
        raise InputError(f"{option} {pair}: there is no file {file}")
    return task, file


def _split(option: str, pair: str, kind: str, tasks: set[str] | None = None) -> tuple[str, str]:
    """Task and value of a pair; the task must be one of ``tasks`` where they are given."""
    task, _, value = pair.partition("=")
    if not task or not value:
        raise InputError(f"{option} {pair}: TASK={kind} is expected")
    if tasks is not None and task not in tasks:
        raise InputError(f"{option} {pair}: no --trial measures {task}")
    return task, value
