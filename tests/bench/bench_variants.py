"""The recipe's options beside the recipe as it is: task weights, experts, what is trained, optimisers, augmentation.

    python -m tests.bench.bench_variants [--quick] [--only NAME ...] [--tokens N] [--seeds N] [--share S]

Each variant (tests/bench/variants.py) is trained on the same body, rows and number of tokens from the same first
weights, once a seed, and judged on the same rows of the valid files; its difference to what it is compared with comes
with a paired bootstrap over rows and seeds. Adapters and frozen layers are compared with training everything, all else
with the recipe. Back-translation needs models: --translators ZH_EN EN_ZH.

What is chosen by these figures is chosen on the valid files: they flatter the winner a little, and with so many
comparisons one task in twenty lies outside its interval by chance. Test splits are not looked at.

Each training's result is a file in --out/runs the moment it ends, so the same command goes on after Ctrl-C or a kill,
and one with more --seeds or other --only trains only what is missing. Writes variants.json (for `millrace report
--variants`) after each, variants.png at the end; last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from model.data import Example
from model.errors import DivergedError
from model.training.corpus import Corpus, build_corpus
from model.training.examples import read_corpus
from model.training.recipe import Recipe
from model.training.workshop import Workshop
from tests.bench.paired import (
    Judged,
    Result,
    answers,
    common_arguments,
    digest,
    ended,
    fewer_labels,
    furnished,
    interval,
    judged_rows,
    remembered,
    resampled,
    rows_of,
    train,
    write,
)
from tests.bench.variants import NAMES, Translators, Variant, chosen, recipe_of, variants
from tests.bench.variants_view import picture, table

QUIET = Console(quiet=True)
FIGURES = ("parameters", "tokens", "seconds", "memory_mb")  # of a training
Run = Result  # FIGURES, and under `right` by name of what is judged: bool [rows]


@dataclass(frozen=True)
class Bench:
    """What every training of the comparison works with."""

    args: argparse.Namespace
    recipe: Recipe
    shop: Workshop
    rows: list[list[Example]]
    judged: list[Judged]
    translators: Translators | None
    console: Console


def main(argv: Sequence[str] | None = None) -> int:
    args, console = arguments(argv), Console(stderr=True)
    recipe, shop = furnished(args, console)
    translators = Translators(*args.translators, args.codes and tuple(args.codes)) if args.translators else None
    bench = Bench(
        args,
        recipe,
        shop,
        read_corpus(recipe, args.data, lambda told: None),
        judged_rows(recipe, shop, args.data, args.rows),
        translators,
        console,
    )
    wanted = chosen(variants(recipe, shop.encoder.config.layers), args.only)
    todo = [variant for variant in wanted if translators or not variant.translated]
    result = compare(bench, todo)
    if left := [variant.name for variant in wanted if variant not in todo]:
        console.print(f"left out: {', '.join(left)} (--translators ZH_EN EN_ZH)")
    console.print(table(result))
    print(json.dumps(result))
    return 1 if result["failed"] else 0


def compare(bench: Bench, todo: Sequence[Variant]) -> dict[str, Any]:
    """Train and judge what has no result yet, seed by seed, so that a run cut short has all variants on fewer seeds."""
    runs: dict[tuple[str, int], Run] = {}
    failed: dict[str, str] = {}
    result: dict[str, Any] = {}
    columns = (
        TextColumn("trainings"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    plan = [(seed, variant) for seed in range(bench.args.seeds) for variant in todo]
    with Progress(*columns, console=bench.console) as progress:
        bar = progress.add_task("", total=len(plan))
        for i, (seed, variant) in enumerate(plan):
            progress.update(bar, completed=i, description=f"{variant.name}, seed {seed}")
            try:
                runs[variant.name, seed] = run_of(
                    bench, variant, seed, lambda share, i=i: progress.update(bar, completed=i + share)
                )
            except DivergedError as error:
                failed[variant.name] = str(error)
                bench.console.log(f"{variant.name}, seed {seed}: {error}")
            else:  # a file as stderr shows no bar
                own = runs[variant.name, seed]
                mean = np.mean([right.mean() for right in own["right"].values()])
                bench.console.log(f"{variant.name}, seed {seed}: mean {mean:.3f}, {own['seconds']:.0f} s")
            result = summary(bench, todo, runs) | {"failed": failed}
            write(bench.args.out / "variants.json", json.dumps(result, indent=1))
        progress.update(bar, completed=len(plan), description="")
    picture(result, bench.args.out / "variants.png")
    return result


def run_of(bench: Bench, variant: Variant, seed: int, told: Callable[[float], object]) -> Run:
    """One training's result, from its file where it was made before; ``told`` hears which share of the steps is done.
    Raises DivergedError."""
    recipe = replace(bench.recipe, seed=bench.recipe.seed + seed)
    changed = recipe_of(variant, recipe, bench.rows, bench.translators)
    known = digest(changed, bench.shop, bench.judged, bench.args.tokens, bench.args.share)
    path = bench.args.out / "runs" / f"{variant.name}-{seed}-{known}.json"
    return remembered(path, lambda: measured(bench, recipe, changed, seed, told))


def measured(bench: Bench, recipe: Recipe, changed: Recipe, seed: int, told: Callable[[float], object]) -> Run:
    """Train the changed recipe and judge it."""
    share = bench.args.share
    start = fewer_labels(without_templates(bench.shop.corpus, changed), share, seed)
    corpus = start  # heads begin by the rows as they came, whatever is made of them: all variants begin alike
    if [dataset.augment for dataset in changed.datasets] != [dataset.augment for dataset in recipe.datasets]:
        made = build_corpus(changed, bench.rows, bench.shop.codec, bench.args.out / "augmented")
        corpus = fewer_labels(made, share, seed)
    trained = train(changed, replace(bench.shop, corpus=start), bench.args.tokens, QUIET, corpus=corpus, told=told)
    right = answers(trained.network, bench.judged)
    figures = {name: round(getattr(trained, name), 3) for name in FIGURES}
    return figures | {"right": right}


def without_templates(corpus: Corpus, recipe: Recipe) -> Corpus:
    """The corpus without the rows of generated data sets that the recipe does not draw from: first weights are fitted
    on what is there, drawn or not."""
    gone = [d for d, dataset in enumerate(recipe.datasets) if dataset.templates and not dataset.weight]
    return rows_of(corpus, ~np.isin(corpus.dataset, gone)) if gone else corpus


def summary(bench: Bench, todo: Sequence[Variant], runs: Mapping[tuple[str, int], Run]) -> dict[str, Any]:
    """Figures by variant, over the seeds that it has; a difference over those that the other side has, too."""
    args = bench.args
    return {
        "metric": "accuracy",
        "tokens": args.tokens,
        "share": args.share,
        "rows": {one.name: len(one.truth) for one in bench.judged},
        "device": "cuda" if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads",
        "variants": [entry(variant, runs) for variant in todo if any(name == variant.name for name, _ in runs)],
    }


def entry(variant: Variant, runs: Mapping[tuple[str, int], Run]) -> dict[str, Any]:
    own = {seed: run for (name, seed), run in runs.items() if name == variant.name}
    theirs = {seed: run for (name, seed), run in runs.items() if name == variant.against}
    tasks = {name: float(np.mean([run["right"][name].mean() for run in own.values()])) for name in first(own)["right"]}
    seconds, tokens = (sum(run[name] for run in own.values()) for name in ("seconds", "tokens"))
    figures: dict[str, Any] = {
        "name": variant.name,
        "group": variant.group,
        "what": variant.what,
        "seeds": len(own),
        "parameters": int(first(own)["parameters"]),
        "seconds": round(seconds / len(own), 1),
        "tokens_per_second": round(tokens / seconds),
        "memory_mb": round(min(run["memory_mb"] for run in own.values())),  # a process's first training pays for more
        "mean": round(float(np.mean([*tasks.values()])), 4),
        "tasks": {name: round(value, 4) for name, value in tasks.items()},
    }
    shared = sorted(own.keys() & theirs.keys())
    if variant.name == variant.against or not shared:
        return figures
    pairs = [(own[seed]["right"], theirs[seed]["right"]) for seed in shared]
    gaps = [np.stack([a[name].astype(float) - b[name] for a, b in pairs]) for name in tasks]
    drawn, means = resampled(gaps), np.stack([gap.mean(1) for gap in gaps])  # [tasks, RESAMPLES], [tasks, seeds]
    return figures | {
        "against": variant.against,
        "difference": difference(means.mean(), drawn.mean(0)),
        "by_seed": [round(float(gap), 4) for gap in means.mean(0)],
        "differences": {name: difference(m.mean(), d) for name, m, d in zip(tasks, means, drawn, strict=True)},
    }


def first(runs: Mapping[int, Run]) -> Run:
    return next(iter(runs.values()))


def difference(mean: float, means: np.ndarray) -> list[float]:
    """A mean difference and the ends of its interval, from resampled ones."""
    return [round(value, 4) for value in (float(mean), *interval(means))]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_arguments(parser, "bench-variants")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("--tokens", type=float, default=120_000, help="of each training")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.0, help="of the labels that is trained on")
    parser.add_argument("--rows", type=int, default=400, help="rows of each valid file at most")
    parser.add_argument("--translators", nargs=2, metavar=("ZH_EN", "EN_ZH"), help="folders or hub names")
    parser.add_argument("--codes", nargs=2, metavar=("ZH", "EN"), help="of the languages, for models of many")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.tokens, args.rows = 1, 5_000, 40
    return args


if __name__ == "__main__":
    ended(main)
