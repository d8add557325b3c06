"""Teachers: networks trained before, each without one fold of the rows, whose answers for that fold become targets.

A teacher asked about rows that it has learned by heart repeats their labels, wrong ones too; asked about rows that it
has not seen, it says what those labels are worth (cross-fitting: Dao, Kamei, Haehn, Mackey 2021, "Knowledge
Distillation as Semiparametric Inference"). Teachers may have other bodies than the network, in other languages, and
then read the rows with tokenizers of their own; what they agree on no single one of them knows.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.nn import functional

from model.errors import DataError, ModelError
from model.network import Network
from model.scoring import Floats
from model.training.corpus import Corpus
from model.training.export import encode
from model.training.loss import NO_LABEL
from model.training.made_from import MadeFrom
from model.training.objective import Answers
from model.training.recipe import Recipe, Teacher
from model.training.workshop import Workshop, with_body

Learn = Callable[[Recipe, Workshop, Path], Network]
"""Trains a network of a recipe in a workshop, with checkpoints in a folder."""

_ANSWERS = "answers.safetensors"


def taught_answers(recipe: Recipe, shop: Workshop, out: Path, console: Console, learn: Learn) -> Answers:
    """Train the recipe's teachers, ``training.teacher_folds`` networks each, in folders of ``out``, and give their mean
    answers for every training row. What a folder holds already is not asked again, if it was made from the same data
    and the same recipe. Raises ModelError and DataError."""
    corpus, folds = shop.corpus, recipe.training.teacher_folds
    fold = np.random.default_rng(recipe.seed).integers(0, folds, len(corpus.prepared))[corpus.origin]
    total = {head: np.zeros((len(fold), len(labels)), np.float32) for head, labels in corpus.heads.items()}
    count = {head: np.zeros(len(fold), np.int64) for head in corpus.heads}
    for t, teacher in enumerate(recipe.teachers):
        paths = [out / f"teacher-{t}-{k}" / _ANSWERS for k in range(folds)]
        own = None if all(path.exists() for path in paths) else _workshop(teacher, recipe, shop)
        for k, path in enumerate(paths):
            taught = _recipe(recipe, teacher, 1 + t * folds + k)
            made_from = MadeFrom.of(taught, corpus.files)
            if own is not None and not path.exists():
                path.parent.mkdir(exist_ok=True)
                there = corpus.held | ~np.isin(corpus.dataset, _own(recipe, teacher))
                part = replace(own, corpus=replace(own.corpus, held=there | (fold == k)))
                network = learn(taught, part, path.parent).eval()
                _save(path, _answers(network, part, np.flatnonzero((fold == k) & ~there)), made_from)
            _add(_read(path, made_from), total, count)
        console.log(f"teacher {t}: " + ", ".join(_right(corpus, total, count)))
    return {head: _mean(corpus, head, total[head], count[head]) for head in corpus.heads}


def _own(recipe: Recipe, teacher: Teacher) -> list[int]:
    return [d for d, spec in enumerate(recipe.datasets) if not teacher.datasets or spec.name in teacher.datasets]


def _workshop(teacher: Teacher, recipe: Recipe, shop: Workshop) -> Workshop:
    return with_body(shop, teacher.body, recipe.text.max_tokens) if teacher.body else shop


def _recipe(recipe: Recipe, teacher: Teacher, number: int) -> Recipe:
    """The recipe of one network of a teacher: a seed of its own, and only the teacher's data sets are drawn from. What
    of it is not the teacher's affair does not count as a change."""
    datasets = [
        spec if d in _own(recipe, teacher) else replace(spec, weight=0.0) for d, spec in enumerate(recipe.datasets)
    ]
    training = replace(teacher.training or recipe.training, taught_share=0.0)
    body, seed = teacher.body or recipe.body, recipe.seed + number
    return replace(recipe, body=body, seed=seed, datasets=datasets, teachers=[], training=training)


def _answers(network: Network, shop: Workshop, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
    """By head, the labelled ones among the rows and the probabilities for them, under two names."""
    corpus, device = shop.corpus, next(network.parameters()).device
    values = None if shop.values is None else shop.values[rows]  # those that training saw, which are out of fold
    encoded = torch.from_numpy(encode(network, [corpus.prepared[row] for row in rows], values)).to(device)
    found: dict[str, npt.NDArray[np.generic]] = {}
    for column, head in enumerate(corpus.heads):
        own = np.flatnonzero(corpus.labels[rows, column] != NO_LABEL)
        if not len(own):
            continue
        allowed = np.stack([corpus.allowed[d][head] for d in corpus.dataset[rows[own]]])
        with torch.inference_mode():
            logits = network.logits(head, encoded[torch.from_numpy(own).to(device)]).float()
            logits = logits.masked_fill(~torch.from_numpy(allowed).to(device), float("-inf"))
            found[f"{head}.answers"] = functional.softmax(logits, dim=1).half().cpu().numpy()
        found[f"{head}.rows"] = rows[own]
    return found


def _save(path: Path, found: dict[str, npt.NDArray[np.generic]], made_from: MadeFrom) -> None:
    fresh = path.with_suffix(".part")  # a run that is killed now must not leave half a file behind
    save_file(found, fresh, metadata={"made_from": json.dumps(made_from.parts)})
    os.replace(fresh, path)


def _read(path: Path, made_from: MadeFrom) -> Mapping[str, Any]:
    try:
        with safe_open(path, framework="np") as handle:
            made_from.check(path, json.loads((handle.metadata() or {}).get("made_from", "{}")))
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ModelError(f"{path}: no readable answers ({error}); remove the file and go on with --resume") from error


def _add(found: Mapping[str, Any], total: dict[str, Floats], count: dict[str, npt.NDArray[np.int64]]) -> None:
    for head in total:
        if f"{head}.rows" in found:
            total[head][found[f"{head}.rows"]] += found[f"{head}.answers"]
            count[head][found[f"{head}.rows"]] += 1


def _mean(corpus: Corpus, head: str, total: Floats, count: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    labelled = (corpus.labels[:, corpus.names.index(head)] != NO_LABEL) & ~corpus.held
    if missing := int((labelled & (count == 0)).sum()):
        raise DataError(f"no teacher has answered {missing} rows of {head}: they are another run's; give another --out")
    return (total / np.maximum(count, 1)[:, None]).astype(np.float16)


def _right(corpus: Corpus, total: dict[str, Floats], count: dict[str, npt.NDArray[np.int64]]) -> list[str]:
    """By head, the accuracy of the answers so far, on rows that no teacher had seen."""
    shown = []
    for column, head in enumerate(corpus.heads):
        own = (corpus.labels[:, column] >= 0) & (count[head] > 0)
        if own.any():
            shown.append(f"{head} {(total[head][own].argmax(1) == corpus.labels[own, column]).mean():.3f}")
    return shown
