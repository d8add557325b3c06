"""The n-gram channel of a training run: fitted once, read back when the run goes on."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from model.bag import GramBag
from model.errors import DataError
from model.network import LinearColumns
from model.scoring import Floats
from model.training.corpus import Corpus
from model.training.linear import BagTarget, LinearFit, fit_bag, target_columns
from model.training.made_from import MadeFrom
from model.training.recipe import Recipe


def linear_channel(
    recipe: Recipe, corpus: Corpus, out: Path, console: Console, *, resume: bool = False
) -> tuple[GramBag | None, Floats | None, dict[str, LinearColumns]]:
    """The n-gram channel, fitted into the folder ``out`` or read back from there, its out-of-fold values for every row
    [rows, columns] and each head's columns; nothing when the recipe has no targets. One that was made from other
    data or another recipe is fitted anew; with ``resume`` it raises ModelError. Raises DataError for a target whose
    rows have one label only."""
    settings = recipe.bag
    if not settings.targets:
        return None, None, {}
    targets = [_target(recipe, corpus, *pair) for pair in settings.targets]
    path, made_from = out / "bag.safetensors", MadeFrom.of(recipe, corpus.files)
    if path.exists():
        written = _written(path)
        if resume:
            made_from.check(path, written)
        if written == made_from.parts:
            return *_read_bag(path, recipe), target_columns(targets)
        path.unlink()
    started = time.monotonic()
    fit = fit_bag(
        corpus.prepared,
        ~corpus.held,
        targets,
        buckets=recipe.text.gram_buckets,
        keep=settings.keep,
        folds=settings.folds,
        c=settings.c,
        origin=corpus.origin,
    )
    console.log(f"n-gram channel fitted in {time.monotonic() - started:.0f} s: {_linear_report(corpus, fit, targets)}")
    tensors = {name: value.numpy() for name, value in fit.bag.state_dict().items()}
    fresh = path.with_suffix(".part")  # a run that is killed now must not leave half a file behind
    save_file(tensors | {"values": fit.values}, fresh, metadata={"made_from": json.dumps(made_from.parts)})
    os.replace(fresh, path)
    return fit.bag, fit.values, target_columns(targets)


def _target(recipe: Recipe, corpus: Corpus, dataset: str, head: str) -> BagTarget:
    d = [spec.name for spec in recipe.datasets].index(dataset)
    column = corpus.names.index(head)
    rows = np.flatnonzero((corpus.dataset == d) & (corpus.labels[:, column] >= 0))
    labels = corpus.labels[rows, column]
    if len(np.unique(labels[~corpus.held[rows]])) < 2:
        raise DataError(
            f"bag.targets: [{dataset}, {head}]: the rows to learn from have fewer than two labels of {head}; there is "
            "nothing to tell apart. Give rows of more labels, or leave the target out"
        )
    if head in recipe.datasets[d].partial:
        occurring, labels = np.unique(labels, return_inverse=True)
        return BagTarget(head, rows, labels, tuple(occurring.tolist()))
    known = tuple(range(len(corpus.heads[head])))
    return BagTarget(head, rows, labels, known, balanced=bool(recipe.datasets[d].balance))


def _written(path: Path) -> Mapping[str, str]:
    """What a channel says that it was made from; nothing where it is damaged."""
    try:
        with safe_open(path, framework="np") as handle:
            found: Mapping[str, str] = json.loads((handle.metadata() or {}).get("made_from", "{}"))
            return found
    except SafetensorError:
        return {}


def _read_bag(path: Path, recipe: Recipe) -> tuple[GramBag, Floats]:
    tensors = load_file(path)
    values = tensors.pop("values")
    bag = GramBag(recipe.text.gram_buckets, *tensors["weight"].shape)
    bag.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return bag, values


def _linear_report(corpus: Corpus, fit: LinearFit, targets: list[BagTarget]) -> str:
    """Accuracy of the linear machines alone, out of fold and on the calibration rows."""
    parts = []
    for target, (first, _) in zip(targets, target_columns(targets).values(), strict=True):
        scores = fit.values[target.rows][:, first : first + target.columns]
        guess = (scores[:, 0] > 0).astype(int) if target.count == 2 else scores.argmax(1)
        right, held = guess == target.classes, corpus.held[target.rows]
        shares = [f"{own.mean():.3f}" if len(own) else "no rows" for own in (right[~held], right[held])]
        parts.append(f"{target.head} {'/'.join(shares)}")
    return ", ".join(parts)
