"""The plan of a run: how many tokens fit into the minutes given, in which precision, and so every batch beforehand."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from model.errors import DataError, ModelError
from model.network import Network
from model.scoring import Floats
from model.training.corpus import Corpus
from model.training.made_from import MadeFrom
from model.training.objective import Answers
from model.training.recipe import Recipe
from model.training.schedule import draws_by_dataset, schedule
from model.training.trainer import Batches, Trainer
from model.training.valid import ValidRows

RESERVE = 0.97  # of the minutes given, the part that is planned for
_TRIAL_STEPS = 7


def draw_batches(recipe: Recipe, corpus: Corpus, tokens: float, console: Console) -> Batches:
    """Batches of training rows with about ``tokens`` tokens in all. Raises DataError for a data set without rows
    (those of weight 0 are not drawn from), and where the tokens do not suffice for one row."""
    training = recipe.training
    lengths = np.array([p.tokens for p in corpus.prepared])
    rows = [np.flatnonzero((corpus.dataset == d) & ~corpus.held) for d in range(len(recipe.datasets))]
    if not all(len(own) or not dataset.weight for own, dataset in zip(rows, recipe.datasets, strict=True)):
        raise DataError("a data set has no rows left to train on; give it more rows or leave it out of the recipe")
    draws = draws_by_dataset(
        [len(own) for own in rows],
        [float(lengths[own].mean()) if len(own) else 0.0 for own in rows],
        [dataset.weight for dataset in recipe.datasets],
        temperature=training.temperature,
        passes_max=training.passes_max,
        tokens=tokens,
    )
    if not any(draws):
        raise DataError(f"{tokens:.0f} tokens of training are too few for one row; give more tokens or minutes")
    passes = {d.name: round(n / len(own), 2) for d, n, own in zip(recipe.datasets, draws, rows, strict=True) if n}
    console.log(f"passes: {passes}")
    return schedule(
        rows,
        draws,
        lengths,
        batch_tokens=training.batch_tokens,
        window_batches=training.window_batches,
        seed=recipe.seed,
    )


def make_trainer(
    recipe: Recipe,
    network: Network,
    corpus: Corpus,
    values: Floats | None,
    *,
    out: Path,
    minutes: float,
    console: Console,
    answers: Answers | None = None,
    valid: Sequence[ValidRows] = (),
    resume: bool = False,
) -> Trainer:
    """A trainer for ``minutes``, which asks the ``valid`` rows now and then. The rate is measured once; tokens and
    precision are kept in the folder ``out`` for a run that goes on: with ``resume`` it has the minutes that it began
    with. Raises ModelError where that plan is of other data or another recipe."""
    path, made_from = out / "plan.json", MadeFrom.of(recipe, corpus.files)
    if resume and path.exists():
        plan = _read_plan(path, made_from)
    else:
        half = half_is_faster(next(network.parameters()).device)
        step = recipe.training.accumulate
        trial = draw_batches(recipe, corpus, 40 * step * recipe.training.batch_tokens, console)[: _TRIAL_STEPS * step]
        rate = Trainer(network, corpus, values, recipe, trial, half=half, answers=answers).measure()
        tokens = min(rate * minutes * 60 * RESERVE, recipe.training.tokens_max)
        plan = {"half": half, "tokens": tokens, "rate": rate, "minutes": minutes, "made_from": made_from.parts}
        fresh = path.with_suffix(".part")
        fresh.write_text(json.dumps(plan))
        os.replace(fresh, path)
        console.log(f"{rate:.0f} tokens a second in {'bfloat16' if half else 'float32'}")
    batches = draw_batches(recipe, corpus, plan["tokens"], console)
    trainer = Trainer(network, corpus, values, recipe, batches, half=plan["half"], answers=answers, valid=valid)
    console.log(
        f"{len(trainer.steps)} steps, {plan['tokens'] / 1e6:.2f} M tokens planned for {plan['minutes']:g} minutes"
    )
    return trainer


def _read_plan(path: Path, made_from: MadeFrom) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: no readable plan ({error}); give another --out") from error
    made_from.check(path, plan.get("made_from", {}))
    return plan


def half_is_faster(device: torch.device) -> bool:
    """Whether a matrix product of the encoder's size is faster in bfloat16: processors without it are 100 times slower,
    so it is asked of one product, not of training steps."""
    taken = []
    for kind in (torch.float32, torch.bfloat16):
        a, b = torch.ones(256, 384, dtype=kind, device=device), torch.ones(384, 384, dtype=kind, device=device)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            float((a @ b).sum())  # waits for the device
            best = min(best, time.perf_counter() - started)
        taken.append(best)
    return taken[1] < taken[0]
