"""Training an artifact: ``python -m model.train --recipe RECIPE --data DIR --out DIR --minutes M [--resume]``.

Vocabulary, n-gram channel, plan, joint training, calibration, export, click head, model card: the long steps leave
their result in ``--out``, so that a run that was stopped goes on from there with ``--resume``.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from model.bag import GramBag
from model.clickfit import fit_into
from model.corpus import Corpus, build_corpus, read_corpus
from model.data import Example
from model.encoder import PackedEncoder, PaddedEncoder
from model.errors import DataError, ModelError
from model.export import export, write_card
from model.foreign import load_foreign, resize_vocabulary, resolve_body
from model.linear import BagTarget, LinearFit, fit_bag
from model.network import Network, linear_weights
from model.recipe import Recipe, load_recipe
from model.schedule import draws_by_dataset, schedule
from model.scoring import Floats
from model.text import TextCodec, TextSpec
from model.trainer import Batches, Trainer
from model.vocabulary import choose_pieces, transfer_rows, wordpiece_tokenizer

CHECKPOINT_SECONDS = 120
BAG_HEAD_SCALE = 1.5  # a head begins as its linear machine, in units of that machine's spread
_RESERVE = 0.97  # of the minutes given, the part that is planned for


@dataclass(frozen=True)
class Run:
    """What a training run works with."""

    recipe: Recipe
    data: Path
    out: Path
    console: Console


def train(recipe_path: Path, data: Path, out: Path, *, minutes: float, resume: bool, console: Console) -> Path:
    """Train and export; the artifact's folder. ``minutes`` bounds the joint training. Raises ModelError."""
    run = Run(load_recipe(recipe_path), data, out, console)
    _prepare_out(out, resume)
    torch.manual_seed(run.recipe.seed)  # the heads' first weights
    rows = read_corpus(run.recipe, data)
    encoder, codec, tokenizer_json = _body(run, rows)
    corpus = build_corpus(run.recipe, rows, codec)
    console.log(f"{len(corpus.prepared)} rows, {sum(p.tokens for p in corpus.prepared)} tokens, {len(rows)} data sets")
    bag, values, first_column = _linear(run, corpus)
    network = Network(encoder, bag, {name: len(labels) for name, labels in corpus.heads.items()})
    machines = linear_weights(network, first_column)
    with torch.no_grad():
        for head, machine in machines.items():  # training starts at the linear machine, not below it
            network.head(head).weight += BAG_HEAD_SCALE * machine
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    trainer = _plan(run, network, corpus, values, minutes)
    checkpoint = out / "checkpoint.safetensors"
    if resume and checkpoint.exists():
        trainer.load(checkpoint)
        console.log(f"resumed at step {trainer.step}")
    _loop(run, trainer, checkpoint)
    trainer.save(checkpoint)
    folder = export(run.recipe, network.eval(), corpus, machines, codec, tokenizer_json, data, out / "artifact")
    if run.recipe.click_scales_s:
        fit_into(folder, data, tuple(run.recipe.click_scales_s))
    write_card(run.recipe, folder)
    console.log(f"artifact in {folder}")
    return folder


def _prepare_out(out: Path, resume: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    old = out / "checkpoint.safetensors"
    if old.exists() and not resume:
        raise ModelError(f"{old} is there already: go on with --resume, or give another --out")


def _body(run: Run, rows: list[list[Example]]) -> tuple[PackedEncoder | PaddedEncoder, TextCodec, str]:
    """The pretrained encoder, with a vocabulary of its own when the recipe asks for one."""
    recipe = run.recipe
    foreign = load_foreign(resolve_body(recipe.body))
    if not recipe.vocabulary:
        spec = TextSpec.from_dict(recipe.text.to_dict() | {"lower": foreign.lower})
        return foreign.encoder, TextCodec(foreign.tokenizer_json, spec), foreign.tokenizer_json
    old = Tokenizer.from_str(foreign.tokenizer_json)
    old.no_truncation()
    old.no_padding()
    pieces = choose_pieces((example.text for part in rows for example in part), old, recipe.vocabulary)
    tokenizer_json = wordpiece_tokenizer(pieces, lower=True)
    table = foreign.encoder.state_dict()["embeddings.word_embeddings.weight"]
    encoder = resize_vocabulary(foreign.encoder, transfer_rows(pieces, old, table, recipe.seed), recipe.text.max_tokens)
    return encoder, TextCodec(tokenizer_json, recipe.text), tokenizer_json


def _linear(run: Run, corpus: Corpus) -> tuple[GramBag | None, Floats | None, dict[str, int]]:
    """The n-gram channel, fitted or read back, and its out-of-fold values for every row."""
    settings = run.recipe.bag
    if not settings.targets:
        return None, None, {}
    targets = [_target(run.recipe, corpus, *pair) for pair in settings.targets]
    path = run.out / "bag.safetensors"
    if path.exists():
        return _read_bag(path, len(corpus.prepared), targets, run.recipe)
    started = time.monotonic()
    fit = fit_bag(
        corpus.prepared,
        ~corpus.held,
        targets,
        buckets=run.recipe.text.gram_buckets,
        keep=settings.keep,
        folds=settings.folds,
        c=settings.c,
    )
    run.console.log(
        f"n-gram channel fitted in {time.monotonic() - started:.0f} s: {_linear_report(corpus, fit, targets)}"
    )
    tensors = {name: value.numpy() for name, value in fit.bag.state_dict().items()}
    save_file(tensors | {"values": fit.values}, path)
    return fit.bag, fit.values, fit.first_column


def _target(recipe: Recipe, corpus: Corpus, dataset: str, head: str) -> BagTarget:
    d = [spec.name for spec in recipe.datasets].index(dataset)
    column = corpus.names.index(head)
    rows = np.flatnonzero((corpus.dataset == d) & (corpus.labels[:, column] >= 0))
    labels = corpus.labels[rows, column]
    if recipe.datasets[d].partial and head in recipe.datasets[d].partial:  # number the classes that occur
        labels = np.unique(labels, return_inverse=True)[1]
        return BagTarget(head, rows, labels, int(labels.max()) + 1)
    return BagTarget(head, rows, labels, len(corpus.heads[head]), balanced=bool(recipe.datasets[d].balance))


def _read_bag(
    path: Path, rows: int, targets: list[BagTarget], recipe: Recipe
) -> tuple[GramBag, Floats, dict[str, int]]:
    tensors = load_file(path)
    values = tensors.pop("values")
    if len(values) != rows or values.shape[1] != sum(t.columns for t in targets):
        raise ModelError(f"{path} was made from other data or another recipe; give another --out")
    bag = GramBag(recipe.text.gram_buckets, *tensors["weight"].shape)
    bag.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    starts = np.cumsum([0] + [t.columns for t in targets])
    return bag, values, {t.head: int(s) for t, s in zip(targets, starts, strict=False)}


def _linear_report(corpus: Corpus, fit: LinearFit, targets: list[BagTarget]) -> str:
    """Accuracy of the linear machines alone, out of fold and on the calibration rows."""
    parts = []
    for target in targets:
        scores = fit.values[target.rows][:, fit.first_column[target.head] :][:, : target.columns]
        guess = (scores[:, 0] > 0).astype(int) if target.count == 2 else scores.argmax(1)
        right, held = guess == target.classes, corpus.held[target.rows]
        parts.append(f"{target.head} {right[~held].mean():.3f}/{right[held].mean():.3f}")
    return ", ".join(parts)


def _batches(run: Run, corpus: Corpus, tokens: float) -> Batches:
    recipe, training = run.recipe, run.recipe.training
    lengths = np.array([p.tokens for p in corpus.prepared])
    rows = [np.flatnonzero((corpus.dataset == d) & ~corpus.held) for d in range(len(recipe.datasets))]
    if not all(len(own) for own in rows):
        raise DataError("a data set has no rows left to train on; give it more rows or leave it out of the recipe")
    draws = draws_by_dataset(
        [len(own) for own in rows],
        [float(lengths[own].mean()) for own in rows],
        [dataset.weight for dataset in recipe.datasets],
        temperature=training.temperature,
        passes_max=training.passes_max,
        tokens=tokens,
    )
    passes = {d.name: round(n / len(own), 2) for d, n, own in zip(recipe.datasets, draws, rows, strict=True)}
    run.console.log(f"passes: {passes}")
    return schedule(rows, draws, lengths, batch_tokens=training.batch_tokens, seed=recipe.seed)


def _plan(run: Run, network: Network, corpus: Corpus, values: Floats | None, minutes: float) -> Trainer:
    """Measure the rate once, fix the number of tokens and the precision, and keep both for a resumed run."""
    path = run.out / "plan.json"
    if path.exists():
        plan = json.loads(path.read_text())
    else:
        trial = _batches(run, corpus, 40 * run.recipe.training.batch_tokens)[:7]
        rates = {
            half: Trainer(network, corpus, values, run.recipe, trial, half=half).measure(trial)
            for half in (False, True)
        }
        half = rates[True] > rates[False]
        plan = {"half": half, "tokens": rates[half] * minutes * 60 * _RESERVE, "rates": rates, "minutes": minutes}
        path.write_text(json.dumps(plan))
        run.console.log(f"tokens a second: float32 {rates[False]:.0f}, bfloat16 {rates[True]:.0f}")
    batches = _batches(run, corpus, plan["tokens"])
    run.console.log(f"{len(batches)} steps, {plan['tokens'] / 1e6:.2f} M tokens planned")
    return Trainer(network, corpus, values, run.recipe, batches, half=plan["half"])


def _loop(run: Run, trainer: Trainer, checkpoint: Path) -> None:
    """Train to the end with a progress bar, a line of smoothed losses now and then, and checkpoints by time."""
    smoothed: dict[str, float] = {}
    saved = time.monotonic()
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=run.console) as progress:
        bar = progress.add_task("", total=len(trainer.batches), completed=trainer.step)
        for step, losses in trainer.run(len(trainer.batches)):
            for name, loss in losses.items():
                smoothed[name] = loss if name not in smoothed else 0.97 * smoothed[name] + 0.03 * loss
            progress.update(bar, completed=step, description=f"loss {sum(smoothed.values()) / len(smoothed):.3f}")
            if step % 50 == 0:
                parts = " ".join(f"{name} {loss:.3f}" for name, loss in smoothed.items())
                run.console.log(f"step {step}/{len(trainer.batches)}: {parts}")
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                trainer.save(checkpoint)
                saved = time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when an artifact was written, 2 with a message when not."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).parents[1]
    data = Path(os.environ.get("MILLRACE_DATA", root.parent / "shared" / "data"))
    parser.add_argument("--recipe", type=Path, default=root / "model" / "starter.yaml")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data files that the recipe names")
    parser.add_argument(
        "--out", type=Path, default=root / ".millrace" / "starter", help="folder for checkpoints and artifact"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="bound of the joint training")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console()
    try:
        train(args.recipe, args.data, args.out, minutes=args.minutes, resume=args.resume, console=console)
    except ModelError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, markup=True)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
