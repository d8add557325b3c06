"""What comparisons of trainings have in common: one body, as many tokens, the same valid rows, a paired interval.

The n-gram channel is left out of them: it is linear and no task shares it with another.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from rich.console import Console

from model.cpu_encoder import CpuEncoder
from model.data import read_labelled
from model.encoder import PackedEncoder
from model.network import Network
from model.scoring import Floats, Prepared
from model.training.corpus import Corpus, evenly
from model.training.export import encode
from model.training.lora import merge_lora
from model.training.made_from import MadeFrom
from model.training.optimiser import trained_parameters
from model.training.plan import draw_batches, half_is_faster
from model.training.recipe import Bag, Recipe, load_recipe
from model.training.trainer import Trainer
from model.training.workshop import FirstRows, Workshop, furnish, new_network

ROOT = Path(__file__).resolve().parents[2]
RESAMPLES = 2000
Result = dict[str, Any]  # what JSON holds, and arrays of bool


@dataclass(frozen=True)
class Judged:
    """Rows of a valid file that a task is judged on: texts and class numbers, int64 [n]."""

    task: str
    file: str
    texts: list[Prepared]
    truth: np.ndarray

    @property
    def name(self) -> str:
        """Task and file, for a task may be judged on several."""
        return f"{self.task} {self.file.split('.')[0]}"


@dataclass(frozen=True)
class Trained:
    """A network after its training (adapters merged), and what that took. ``memory_mb``: what training took at its peak
    beside the network: gradients, the optimiser's moments, activations."""

    network: Network
    parameters: int
    tokens: int
    seconds: float
    memory_mb: float


def ended(main: Callable[[], int | None]) -> NoReturn:
    """Run a comparison as a program: one that is stopped by hand says that it can go on."""
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


def common_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """What every comparison takes; ``out``: its folder under .millrace."""
    data = os.environ.get("MILLRACE_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--recipe", type=Path, default=ROOT / "model" / "training" / "starter.yaml")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--out", type=Path, default=ROOT / ".millrace" / out)
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[], help="layers of the body to keep; default: the recipe's"
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one seed, few tokens: whether it runs, not what it shows")


def furnished(args: argparse.Namespace, console: Console) -> tuple[Recipe, Workshop]:
    """The recipe as the command line has it, without n-grams, and its workshop; with ``--quick`` heads begin at random,
    for to fit them takes as long as a short training."""
    if args.threads:
        torch.set_num_threads(args.threads)
    recipe = load_recipe(args.recipe)
    warm_rows = 0 if args.quick else recipe.warm_rows
    recipe = replace(recipe, bag=Bag(), layers=args.layers or recipe.layers, warm_rows=warm_rows)
    args.out.mkdir(parents=True, exist_ok=True)
    return recipe, replace(furnish(recipe, args.data, args.out, console), first=FirstRows(rows_of_network))


def judged_rows(recipe: Recipe, shop: Workshop, data: Path, most: int) -> list[Judged]:
    """At most ``most`` evenly spread rows of each valid file that is there, without those that are out of scope."""
    found = []
    for trial in recipe.evaluation:
        path, names = trial.path(data), shop.corpus.heads.get(trial.task)
        if names is None or not path.exists():
            continue
        rows = [row for row in read_labelled([path], recipe.columns_of(trial)) if row.label in names]
        rows = [rows[i] for i in evenly(np.arange(len(rows)), most)]  # to the end: files may be sorted by class
        truth = np.array([names.index(row.label) for row in rows])
        found.append(Judged(trial.task, trial.file, shop.codec.prepare([row.text for row in rows]), truth))
    return found


def train(
    recipe: Recipe,
    shop: Workshop,
    tokens: float,
    console: Console,
    *,
    corpus: Corpus | None = None,
    told: Callable[[float], object] = lambda share: None,
) -> Trained:
    """A network trained on about ``tokens`` tokens. ``corpus``: to train on another one than that of the heads' first
    weights; ``told`` hears which share of the steps is done. Raises DivergedError and ModelError."""
    corpus = corpus or shop.corpus
    network, _ = new_network(recipe, shop, warm=True)
    memory = Memory()
    batches = draw_batches(recipe, corpus, tokens, console)
    trainer = Trainer(network, corpus, None, recipe, batches, half=half_for(next(network.parameters()).device))
    seen, began = 0, time.perf_counter()
    for report in trainer.run(len(trainer.steps)):
        seen += report.tokens
        told(report.step / len(trainer.steps))
    seconds = time.perf_counter() - began
    parameters = sum(p.numel() for p in trained_parameters(network).values())
    merge_lora(network)
    return Trained(network.eval(), parameters, seen, seconds, memory.peak_mb())


@cache
def half_for(device: torch.device) -> bool:
    """Asked once, for all sides of a comparison to be computed alike."""
    return half_is_faster(device)


class Memory:
    """The most memory that was taken beyond what was taken at the beginning: of the GPU, or of the process."""

    def __init__(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 1e6
            return
        ctypes.CDLL(None).malloc_trim(0)  # what earlier trainings freed is no room for this one
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status_mb("VmRSS")

    def peak_mb(self) -> float:
        peak = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else _status_mb("VmHWM")
        return peak - self._before


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def rows_of_network(network: Network, texts: list[Prepared]) -> Floats:
    """Encoded rows [n, hidden] of a network without adapters; on CPU as a worker does it, in half the time."""
    encoder = network.encoder
    if next(network.parameters()).is_cuda or not isinstance(encoder, PackedEncoder):
        return encode(network, texts)
    return CpuEncoder(encoder).encode([text.ids for text in texts])


def answers(network: Network, judged: Sequence[Judged]) -> dict[str, np.ndarray]:
    """By name of what is judged: bool [n], which rows were answered rightly."""
    encoded = rows_of_network(network, [text for one in judged for text in one.texts])
    ends = np.cumsum([len(one.texts) for one in judged])
    parts = zip(judged, np.split(encoded, ends[:-1]), strict=True)
    return {one.name: _right(network, one, rows) for one, rows in parts}


def _right(network: Network, judged: Judged, encoded: Floats) -> np.ndarray:
    layer = network.head(judged.task)
    weight, bias = layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()
    logits = network.read(judged.task, encoded) @ weight.T + bias
    present = np.unique(judged.truth)  # a file of two sentiments is judged on two
    return np.asarray(present[logits[:, present].argmax(1)] == judged.truth)


def remembered(path: Path, measure: Callable[[], Result]) -> Result:
    """A result from its file, measured and written there where it is not yet. Rights are arrays of bool again."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(measure(), default=lambda bits: {"bits": "".join("01"[int(bit)] for bit in bits)}))
    found: Result = json.loads(
        path.read_text(), object_hook=lambda o: np.array(list(o["bits"])) == "1" if o.keys() == {"bits"} else o
    )
    return found


def write(path: Path, text: str) -> None:
    """Whole or not at all: a kill leaves no half of a result."""
    fresh = path.with_suffix(".part")
    fresh.write_text(text)
    os.replace(fresh, path)


def digest(recipe: Recipe, shop: Workshop, judged: Iterable[Judged], *settings: object) -> str:
    """Of all that a training's result rests on, but the code: recipe, data, rows that it is judged on, kind of device
    and the ``settings`` of the comparison."""
    parts = [sorted(MadeFrom.of(recipe, shop.corpus.files).parts.items()), *settings, torch.cuda.is_available()]
    content = hashlib.sha256(repr(parts).encode())
    for one in judged:
        content.update(one.name.encode() + one.truth.tobytes() + b"".join(text.ids.tobytes() for text in one.texts))
    return content.hexdigest()[:12]


def rows_of(corpus: Corpus, keep: np.ndarray) -> Corpus:
    """Only some of a corpus's rows; ``keep``: bool [rows]."""
    rows = np.flatnonzero(keep)
    return replace(
        corpus,
        prepared=[corpus.prepared[row] for row in rows],
        labels=corpus.labels[rows],
        weights=corpus.weights[rows],
        dataset=corpus.dataset[rows],
        held=corpus.held[rows],
        origin=np.arange(len(rows)),
        groups=corpus.groups[rows],
        texts=[corpus.texts[row] for row in rows],
    )


def fewer_labels(corpus: Corpus, share: float, seed: int) -> Corpus:
    """The corpus with only ``share`` of the training rows, each with what was made from it; a larger share has those,
    too. Calibration rows stay."""
    if share >= 1:
        return corpus
    numbers = np.array([number_of(p.ids.tobytes(), seed) for p in corpus.prepared])
    return rows_of(corpus, corpus.held | (numbers[corpus.origin] < share))


def number_of(text: bytes, seed: int) -> float:
    """A text's number in [0, 1). By another hash than the one that holds calibration rows back: by the same one the
    rows with the smallest numbers would all be held, and a hundredth of the labels would be none at all."""
    digest = hashlib.blake2b(text, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64


def resampled(gaps: Sequence[np.ndarray]) -> np.ndarray:
    """Means of each task's differences [seeds, rows] when seeds and rows are drawn again, [tasks, RESAMPLES].

    Seeds are drawn for all tasks alike, rows for each task; both sides of a difference have the same. A single seed
    tells nothing of what another would give.
    """
    seeds = len(gaps[0])
    share = np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    return np.stack([(drawn(i, gap.shape[1]) @ gap.T * share).sum(1) for i, gap in enumerate(gaps)])


@cache
def drawn(task: int, rows: int) -> np.ndarray:
    """The share of each row among as many rows drawn with replacement, [RESAMPLES, rows]."""
    return np.random.default_rng([1, task]).multinomial(rows, np.full(rows, 1 / rows), RESAMPLES) / rows


def interval(means: np.ndarray) -> tuple[float, float]:
    """Both ends of the 95 % interval of resampled means."""
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
