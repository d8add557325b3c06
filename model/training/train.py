"""Training an artifact: ``python -m model.training.train --recipe RECIPE --data DIR --out DIR --minutes M [--resume]``.

Vocabulary, n-gram channel, plan, joint training, calibration, export, click head, figures, model card, report: the long
steps leave their result in ``--out``, so that a run that was stopped goes on from there with ``--resume``.
"""

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from model.clicks.dataset import ClickData
from model.clicks.install import fit_into
from model.errors import ModelError
from model.network import Network
from model.training.export import export
from model.training.finish import finish
from model.training.interrupt import Interrupt
from model.training.lora import merge_lora
from model.training.objective import Answers
from model.training.optimiser import trained_parameters
from model.training.plan import make_trainer
from model.training.recipe import Recipe, load_recipe
from model.training.teachers import taught_answers
from model.training.trainer import Trainer
from model.training.watch import METRICS, Watch
from model.training.workshop import Workshop, furnish, new_network

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 120


@dataclass(frozen=True)
class Run:
    """What a training run works with."""

    recipe: Recipe
    out: Path
    console: Console
    resume: bool  # what lies in ``out`` is this run's own


def train(
    recipe_path: Path,
    data: Path,
    out: Path,
    *,
    minutes: float,
    resume: bool,
    console: Console,
    tensorboard: bool = False,
    further: bool = True,
    report: bool = True,
) -> Path:
    """Train and export; the artifact's folder. ``minutes`` bounds the joint training; ``tensorboard`` asks for
    its events whatever the recipe says; without ``further`` the last checkpoint is exported as it is; ``report``: see
    ``finish``. Ctrl-C is a KeyboardInterrupt once the step in hand is in the checkpoint. Raises ModelError."""
    recipe = load_recipe(recipe_path)
    if tensorboard:
        recipe = replace(recipe, training=replace(recipe.training, tensorboard=True))
    run = Run(recipe, out, console, resume)
    clicks = recipe.click and ClickData.read(recipe.click, data)
    _prepare_out(out / CHECKPOINT, resume=resume, needed=not further)
    shop = furnish(recipe, data, out, console, resume=resume)
    folds = recipe.training.teacher_folds if recipe.teachers else 1
    each = minutes / (folds * (len(recipe.teachers) + 1))  # the network itself has as long as all folds of a teacher

    def learn(own: Recipe, part: Workshop, folder: Path) -> Network:
        return _learned(Run(own, folder, console, resume), part, each, None, further=True)[0]

    answers = taught_answers(recipe, shop, out, console, learn) if recipe.teachers and further else None
    network, machines = _learned(run, shop, each * folds, answers, further=further)
    merge_lora(network)
    folder = export(
        recipe, network.eval(), shop.corpus, machines, shop.codec, shop.tokenizer_json, shop.spread, out / "artifact"
    )
    if recipe.click and clicks:
        fit_into(folder, recipe.click, clicks)
    finish(recipe, data, folder, tell=console.log, report=report, curves=out / METRICS)
    return folder


def _learned(
    run: Run, shop: Workshop, minutes: float, answers: Answers | None, *, further: bool
) -> tuple[Network, dict[str, Tensor]]:
    """A network trained to its end, from the run's checkpoint on where there is one, and its linear machines."""
    recipe, checkpoint = run.recipe, run.out / CHECKPOINT
    resuming = checkpoint.exists()
    network, machines = new_network(recipe, shop, warm=not resuming)
    trainer = make_trainer(
        recipe,
        network,
        shop.corpus,
        shop.values,
        out=run.out,
        minutes=minutes,
        console=run.console,
        answers=answers,
        valid=shop.valid,
        resume=run.resume,
    )
    if resuming:
        trainer.load(checkpoint)
        run.console.log(f"{run.out.name}: resumed at step {trainer.step}")
    if further:
        _loop(run, trainer, checkpoint)
        trainer.save(checkpoint)
    return network, machines


def _prepare_out(checkpoint: Path, *, resume: bool, needed: bool) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if not resume and (checkpoint.exists() or any(checkpoint.parent.glob("teacher-*/*.safetensors"))):
        raise ModelError(f"{checkpoint.parent} holds a run already: go on with --resume, or give another --out")
    if needed and not checkpoint.exists():
        raise ModelError(f"there is no {checkpoint} to export; train first, or give the --out of a run")


def _loop(run: Run, trainer: Trainer, checkpoint: Path) -> None:
    """Train to the end with a progress bar, a line of smoothed losses now and then, and checkpoints by time."""
    smoothed: dict[str, float] = {}
    started = saved = time.monotonic()
    first, total = trainer.step, len(trainer.steps)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    watch = Watch(run.out, done=trainer.step, tensorboard=run.recipe.training.tensorboard)
    with watch, Interrupt() as interrupt, Progress(*columns, console=run.console) as progress:
        bar = progress.add_task("", total=total, completed=trainer.step)
        for report in trainer.run(total):
            watch.note(report)
            for name, loss in report.losses.items():
                smoothed[name] = loss if name not in smoothed else 0.97 * smoothed[name] + 0.03 * loss
            progress.update(
                bar, completed=report.step, description=f"loss {sum(smoothed.values()) / len(smoothed):.3f}"
            )
            if report.step % 50 == 0:
                parts = " ".join(f"{name} {loss:.3f}" for name, loss in smoothed.items())
                run.console.log(f"step {report.step}/{total}: {parts}")
            if interrupt.asked or time.monotonic() - saved > CHECKPOINT_SECONDS:
                trainer.save(checkpoint)
                saved = time.monotonic()
            if interrupt.asked:
                run.console.log(f"stopped at step {report.step} of {total}; go on with --resume")
                raise KeyboardInterrupt
    trained = sum(p.numel() for p in trained_parameters(trainer.network).values())
    whole = sum(p.numel() for p in trainer.network.parameters())
    spent_s = time.monotonic() - started
    run.console.log(f"trained {trained} of {whole} parameters, {total - first} steps in {spent_s:.0f} s")


def use_device(device: str) -> None:
    """Keep this process to the processor (``cpu``), or insist on a GPU (``cuda``); ``auto`` takes one where there is
    one. Raises ModelError."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("torch sees no CUDA device; use --device auto")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when an artifact was written, 2 with a message when not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m model.training.train", description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).parents[2]
    data = Path(os.environ.get("MILLRACE_DATA", root.parent / "shared" / "data"))
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("starter.yaml"))
    parser.add_argument("--data", type=Path, default=data, help="folder of the data files that the recipe names")
    parser.add_argument(
        "--out", type=Path, default=root / ".millrace" / "starter", help="folder for checkpoints and artifact"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="bound of the joint training")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="cuda: fail without a GPU")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to tb in --out")
    parser.add_argument("--no-report", action="store_true", help="leave out report.html and report.json in --out")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console(markup=False)  # labels and file names may look like markup
    try:
        use_device(args.device)
        train(
            args.recipe,
            args.data,
            args.out,
            minutes=args.minutes,
            resume=args.resume,
            console=console,
            tensorboard=args.tensorboard,
            report=not args.no_report,
        )
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
