"""What a network in training answers on rows of the valid files. It is watched only: nothing is chosen by it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model import metrics
from model.assess.evaluate import STREAM_TASKS
from model.data import read_labelled
from model.network import Network
from model.scoring import Prepared
from model.text import TextCodec
from model.training.corpus import evenly
from model.training.export import encode
from model.training.recipe import Recipe

Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class ValidRows:
    """Rows of one valid file, n of them, whose label the head knows.

    name: the task's, with the file's where a task has several. truth: int64 [n], classes of the head. among: int64, the
    classes that occur in the whole file, as evaluation guesses among them. levels: float64 [classes] of a head whose
    labels are numbers, else empty.
    """

    name: str
    head: str
    texts: Sequence[str]
    prepared: Sequence[Prepared]
    truth: npt.NDArray[np.int64]
    among: npt.NDArray[np.int64]
    levels: npt.NDArray[np.float64]

    def read_by(self, codec: TextCodec) -> "ValidRows":
        """The same rows as another tokenizer reads them."""
        return replace(self, prepared=codec.prepare(self.texts))


def valid_rows(recipe: Recipe, heads: Mapping[str, Sequence[str]], data: Path, codec: TextCodec) -> list[ValidRows]:
    """Of every valid file of the recipe that is there at most ``training.valid_rows`` rows, evenly spread; ``heads``:
    their labels. Raises DataError as ``read_labelled``."""
    trials = [t for t in recipe.evaluation if t.task not in STREAM_TASKS and t.path(data).exists()]
    several = Counter(trial.task for trial in trials)
    found = []
    for trial in trials:
        labels, path = heads[trial.task], trial.path(data)
        rows = [row for row in read_labelled([path], recipe.columns_of(trial)) if row.label in labels]
        if not rows:
            continue
        every = np.array([labels.index(row.label) for row in rows], np.int64)
        chosen = evenly(np.arange(len(rows)), recipe.training.valid_rows)
        texts = [rows[i].text for i in chosen]
        levels = [float(label) for label in labels] if recipe.heads[trial.task].kind == "score" else []
        found.append(
            ValidRows(
                name=trial.task if several[trial.task] == 1 else f"{trial.task} on {path.name.partition('.')[0]}",
                head=trial.task,
                texts=texts,
                prepared=codec.prepare(texts),
                truth=every[chosen],
                among=np.unique(every),
                levels=np.array(levels, np.float64),
            )
        )
    return found


def valid_figures(network: Network, valid: Sequence[ValidRows]) -> Figures:
    """By name: accuracy and macro_f1, and mae of a head of numbers, as the network is now, before any calibration. It
    must be in evaluation mode; nothing of it changes, and no random number is drawn."""
    return {rows.name: _figures(network, rows) for rows in valid}


def _figures(network: Network, rows: ValidRows) -> dict[str, float]:
    device = next(network.parameters()).device
    encoded = torch.from_numpy(encode(network, list(rows.prepared))).to(device)
    with torch.inference_mode():
        logits = network.logits(rows.head, encoded).double().cpu()
    guess = rows.among[logits.numpy()[:, rows.among].argmax(1)]
    figures = {
        "accuracy": metrics.accuracy(rows.truth, guess),
        "macro_f1": metrics.macro_f1(rows.truth, guess, logits.shape[1]),
    }
    if len(rows.levels):
        expected = torch.softmax(logits, 1).numpy() @ rows.levels
        figures["mae"] = float(np.abs(expected - rows.levels[rows.truth]).mean())
    return {name: round(value, 5) for name, value in figures.items()}
