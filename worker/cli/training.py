"""The commands that make a model: train, tune, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli.base import FILE, FOLDER, PATH, common, json_option

if TYPE_CHECKING:
    from worker.config import Config

recipe_option = click.option("--recipe", type=FILE, required=True, help="Heads, data sets and settings, one YAML file.")
data_option = click.option("--data", type=FOLDER, required=True, help="Folder of the data files that the recipe names.")
report_option = click.option(
    "--report/--no-report", default=True, show_default=True, help="End with report.html and report.json in --out."
)


@click.command()
@recipe_option
@data_option
@click.option("--out", type=PATH, required=True, help="Folder for checkpoints, logs and the artifact.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Bound of the training; 60 if not said.")
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, show_default=True, help="CPU threads; 0 leaves it to torch."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="By default model.device; cuda: or not at all."
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard events to tb in --out.")
@report_option
@click.option("--onto", type=FOLDER, help="Add the recipe's heads to this artifact and leave the rest as it is.")
@common
def train(
    config: Config,
    recipe: Path,
    data: Path,
    out: Path,
    minutes: float | None,
    threads: int,
    device: str | None,
    resume: bool,
    tensorboard: bool,
    report: bool,
    onto: Path | None,
) -> None:
    """Train an artifact for all tasks of a recipe.

    Data files are checked whole before training begins. A run that was stopped, even by kill -9, goes on with
    --resume to the result that it would have had; Ctrl-C loses nothing. With --onto only the recipe's heads, and its
    click head, are fitted, in one go: of the recipe, heads, data sets, calibration, trials and the click section count.

    The artifact is measured on the recipe's valid files: in short in its manifest, in full in the report.

    \b
    millrace train --recipe model/training/starter.yaml --data ../data --out runs/one --minutes 90
    millrace train --recipe urgency.yaml --data . --onto model/starter --out runs/urgency
    millrace train --recipe clicks.yaml --data logs --onto model/starter --out runs/tonight
    """
    from rich.console import Console

    from model.training.train import train as run
    from model.training.train import use_device

    use_device(device or config.model.device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    if onto is not None:
        from model.training.newhead import add_heads
        from worker.errors import InputError

        if minutes is not None or resume or tensorboard:
            raise InputError("--minutes, --resume and --tensorboard do nothing with --onto; leave them out")
        add_heads(recipe, data, onto, out / "artifact", tell=click.echo, report=report)
        return
    asked = {"resume": resume, "tensorboard": tensorboard, "report": report}
    run(recipe, data, out, minutes=minutes or 60.0, console=Console(markup=False), **asked)


@click.command()
@recipe_option
@data_option
@click.option("--out", type=FOLDER, required=True, help="Folder of the training run.")
@report_option
@common
def export(config: Config, recipe: Path, data: Path, out: Path, report: bool) -> None:
    """Write the artifact of a training run as its last checkpoint has it, finished or not.

    \b
    millrace export --recipe model/training/starter.yaml --data ../data --out runs/one
    """
    from rich.console import Console

    from model.training.train import train as run

    run(recipe, data, out, minutes=0, resume=True, console=Console(markup=False), further=False, report=report)


@click.command()
@recipe_option
@data_option
@click.option("--out", type=PATH, required=True, help="Folder of the study; a later call goes on with it.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Trials in all, those done before included.",
)
@click.option(
    "--tokens", type=click.IntRange(min=1), default=300_000, show_default=True, help="Tokens that each trial trains on."
)
@json_option
@common
def tune(config: Config, recipe: Path, data: Path, out: Path, trials: int, tokens: int, json_: bool) -> None:
    """Search the settings under `search:` of a recipe with Optuna, within a bounded number of trials.

    Each trial trains from the start and is judged by its loss on calibration rows, never on a valid file.

    \b
    millrace tune --recipe recipe.yaml --data ../data --out runs/study --trials 30
    """
    from rich.console import Console

    from model.training.tune import tune as search
    from worker.cli import tables

    found = search(recipe, data, out, trials=trials, tokens=tokens, console=Console(stderr=True, markup=False))
    tables.show(found, tables.figures_table, json_=json_)


TRAINING_COMMANDS = (train, tune, export)
