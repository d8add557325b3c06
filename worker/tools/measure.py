"""``millrace evaluate``: figures of one task on labelled files, with the head found where only its family is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.assess.detail import assess_files
from model.assess.evaluate import evaluate_files
from model.data import Columns
from model.errors import DataError
from model.scoring import Scorer
from worker.errors import InputError
from worker.tools.one_text import heads_of


def measure(
    scorer: Scorer,
    task: str,
    data: Sequence[Path],
    history: Sequence[Path],
    *,
    columns: Columns | None = None,
    among: Sequence[str] = (),
    fields: Sequence[str] = (),
    detail: bool = False,
    delays_s: Sequence[float] = (),
) -> dict[str, Any]:
    """Figures of ``task``: a head, ``click`` or ``purchase``, or a family (``intent``).

    Of a family, the one head is measured that knows all labels of the files. ``columns``: where these have text and
    label, if not where the head's training data had them. ``among``: guess among these labels, not those that occur.
    ``fields`` (slices by these) or ``detail``: with intervals, classes, confusion and slices, as ``assess_files`` gives
    them. ``delays_s``: for clicks, as if they were known so late, too. Raises `InputError` when no head of a family
    fits, DataError otherwise.
    """

    def figures(head: str) -> dict[str, Any]:
        asked: dict[str, Any] = {"columns": columns, "among": among or None, "delays_s": delays_s}
        if fields or detail:
            return assess_files(scorer, head, data, history, fields=fields, **asked)
        return evaluate_files(scorer, head, data, history, **asked)

    heads = heads_of(scorer, task)
    if heads in ([], [task]):
        return figures(task)
    refusals = []
    for head in heads:
        try:
            return figures(head)
        except DataError as error:
            refusals.append(str(error))
    raise InputError(f"--task {task}: none of {', '.join(heads)} knows all labels of the files; {refusals[-1]}")
