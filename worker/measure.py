"""``millrace evaluate``: figures of one task on labelled files, with the head found where only its family is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import DataError
from model.evaluate import evaluate_files
from model.scoring import Scorer
from worker.errors import InputError
from worker.one_text import heads_of


def measure(scorer: Scorer, task: str, data: Sequence[Path], history: Sequence[Path]) -> dict[str, Any]:
    """Figures of ``task``: a head, ``click`` or ``purchase``, or a family (``intent``).

    Of a family, the one head is measured that knows all labels of the files. Raises `InputError` when none does.
    """
    heads = heads_of(scorer, task)
    if heads in ([], [task]):
        return _plain(evaluate_files(scorer, task, data, history))
    refusals = []
    for head in heads:
        try:
            return _plain(evaluate_files(scorer, head, data, history))
        except DataError as error:
            refusals.append(str(error))
    raise InputError(f"--task {task}: none of {', '.join(heads)} knows all labels of the files; {refusals[-1]}")


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures as JSON has them: numpy's numbers become Python's."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in figures.items()}
