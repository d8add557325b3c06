"""Hyperparameter search: the settings under ``search:`` of a recipe, by Optuna, within a bounded number of trials.

A trial trains a fresh network on a fixed number of tokens and is judged by its mean loss over the tasks on calibration
rows, each task's loss in units of the first trial's, so that no task counts more for having more classes. Valid files
are never looked at. The study lies in ``--out`` and a later call goes on with it. A trial whose losses are no longer
numbers has failed, and the search goes on: that such settings do not work is what it wanted to know. To Optuna such a
trial is pruned, which its sampler takes for worse than any measured; one in Optuna's own state FAIL it would forget.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.errors import DataError, DivergedError, ModelError
from model.training.corpus import evenly
from model.training.made_from import MadeFrom, file_digests
from model.training.objective import Objective
from model.training.plan import draw_batches, half_is_faster
from model.training.recipe import Recipe, load_recipe
from model.training.settings import Training, build_training
from model.training.trainer import Trainer
from model.training.workshop import Workshop, furnish, new_network

_ROWS_MAX = 4096  # calibration rows that a trial is judged on
STUDY = "study.db"
_FAILED = "failed"


def tune(recipe_path: Path, data: Path, out: Path, *, trials: int, tokens: float, console: Console) -> dict[str, Any]:
    """Run the study up to ``trials`` trials in all; the best settings, their loss, how many trials were made and how
    many of them failed.

    Raises DataError for a recipe without a usable ``search:``, ModelError when optuna is not installed, when the study
    in ``out`` is of other data, another recipe or other ``tokens``, and when every trial failed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ModelError("a search needs optuna; pip install 'millrace[train]'") from error
    recipe = load_recipe(recipe_path)
    space = _space(recipe, str(recipe_path))
    out.mkdir(parents=True, exist_ok=True)
    tried = {f"search.{key}": repr(spec) for key, spec in space.items()} | {"--tokens": f"{tokens:g}"}
    made_from = MadeFrom({**MadeFrom.of(recipe, file_digests(recipe, data)).parts, **tried})
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell of every trial beside the bar
    study = optuna.create_study(study_name=recipe.name, storage=f"sqlite:///{out / STUDY}", load_if_exists=True)
    if study.trials:
        made_from.check(out / STUDY, study.user_attrs.get("made_from", {}))
    study.set_user_attr("made_from", dict(made_from.parts))
    # Its random stream begins with the call: by the recipe's seed alone, one that goes on would try the same again.
    study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.trials))
    shop = furnish(replace(recipe, evaluation=[]), data, out, console)
    finished = len(_done(study)) + len(_failed(study))
    columns = (
        TextColumn("trials"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=trials, completed=finished)

        def judged(trial: Any) -> float:
            chosen = {key: _suggest(trial, key, spec) for key, spec in space.items()}
            try:
                losses = held_losses(_with(recipe, chosen), shop, tokens, console)
            except DivergedError as error:
                trial.set_user_attr(_FAILED, str(error))
                console.log(f"trial {trial.number} failed: {error}")
                raise optuna.TrialPruned(str(error)) from error
            trial.set_user_attr("losses", losses)
            return _relative(losses, study)

        def told(study: Any, trial: Any) -> None:
            best = f"best {study.best_value:.4f}" if _done(study) else "all failed"
            progress.update(bar, advance=1, description=best)

        study.optimize(judged, n_trials=max(0, trials - finished), callbacks=[told])
    done, failed = _done(study), _failed(study)
    if not done:
        raise ModelError(f"all {len(failed)} trials failed, the last one so: {failed[-1].user_attrs[_FAILED]}")
    best = study.best_trial
    return {
        "trials": len(done) + len(failed),
        "failed": len(failed),
        "best": best.value,
        "settings": best.params,
        "losses": best.user_attrs["losses"],
    }


def held_losses(recipe: Recipe, shop: Workshop, tokens: float, console: Console) -> dict[str, float]:
    """Mean losses by task on calibration rows after training a fresh network on about ``tokens`` tokens. Raises
    DivergedError."""
    network, _ = new_network(recipe, shop, warm=True)
    half = half_is_faster(next(network.parameters()).device)
    batches = draw_batches(recipe, shop.corpus, tokens, console)
    trainer = Trainer(network, shop.corpus, shop.values, recipe, batches, half=half)
    for _ in trainer.run(len(trainer.steps)):
        pass
    rows = evenly(np.flatnonzero(shop.corpus.held), _ROWS_MAX)
    objective = Objective(network.eval(), shop.corpus, shop.values, recipe, half=half)
    losses = objective.held_losses(rows)
    if not all(map(math.isfinite, losses.values())):
        raise DivergedError(f"after training the losses on calibration rows are {losses}; search lower rates")
    return losses


def _done(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def _failed(study: Any) -> list[Any]:
    """The trials whose losses broke down; one that was stopped or killed is neither done nor failed, but made again."""
    return [trial for trial in study.trials if _FAILED in trial.user_attrs]


def _relative(losses: Mapping[str, float], study: Any) -> float:
    """Mean over tasks of the loss in units of the study's first trial."""
    first = next((t.user_attrs["losses"] for t in study.trials if "losses" in t.user_attrs), dict(losses))
    return float(np.mean([loss / max(first[name], 1e-9) for name, loss in losses.items()]))


def _space(recipe: Recipe, where: str) -> dict[str, dict[str, Any]]:
    """The search space, checked: setting of ``training`` to a range (low, high, log) or a list of choices."""
    if not recipe.search:
        raise DataError(
            f"{where}: nothing to search for; add for instance "
            "`search: {body_lr: {low: 5.0e-5, high: 4.0e-4, log: true}}`"
        )
    known = {f.name for f in fields(Training)} - {"lora"}
    for key, spec in recipe.search.items():
        if key not in known:
            raise DataError(f"{where}: search.{key} cannot be searched; what can: {', '.join(sorted(known))}")
        ranged = isinstance(spec, Mapping) and {"low", "high"} <= set(spec) <= {"low", "high", "log"}
        listed = isinstance(spec, Mapping) and set(spec) == {"choices"} and isinstance(spec["choices"], list)
        if not ranged and not (listed and spec["choices"]):
            raise DataError(f"{where}: search.{key}: give low and high (and log: true), or choices: [...]")
        values = [spec["low"], spec["high"]] if ranged else spec["choices"]
        for value in values:  # as if a trial had it, which would end the study
            _with(recipe, {key: value}, f"{where}: search")
        if ranged and not all(isinstance(value, int | float) for value in values):
            raise DataError(f"{where}: search.{key}: low and high are for numbers; give choices: [...]")
        if ranged and not spec["low"] < spec["high"]:
            raise DataError(f"{where}: search.{key}: low must be below high")
        if ranged and spec.get("log") and not spec["low"]:
            raise DataError(f"{where}: search.{key}: with log: true low must be above 0")
    return {key: dict(spec) for key, spec in recipe.search.items()}


def _suggest(trial: Any, key: str, spec: Mapping[str, Any]) -> Any:
    if "choices" in spec:
        return trial.suggest_categorical(key, spec["choices"])
    if isinstance(spec["low"], int) and isinstance(spec["high"], int):
        return trial.suggest_int(key, spec["low"], spec["high"], log=bool(spec.get("log")))
    return trial.suggest_float(key, spec["low"], spec["high"], log=bool(spec.get("log")))


def _with(recipe: Recipe, chosen: Mapping[str, Any], where: str = "search") -> Recipe:
    content = {f.name: getattr(recipe.training, f.name) for f in fields(Training) if f.name != "lora"} | dict(chosen)
    checked = build_training(content, where)
    return replace(recipe, training=replace(checked, lora=recipe.training.lora))
