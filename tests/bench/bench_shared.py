"""One shared model against one model per task: same size, same body, same total steps, same rows, same seeds.

    python -m tests.bench.bench_shared [--quick] [--tokens N] [--seeds N] [--shares 1.0 0.1] [--layers 0 1 ...]

For each seed and each share of the labels: one network with all heads on N tokens, and for every head a network of the
same size on the rows that carry its labels, N tokens over all of them together. Both are judged on the same rows of the
valid files; the difference of the mean accuracy comes with a paired bootstrap over seeds and rows. Then the other half
of the claim: what a stream's texts cost to encode once for all of its heads, against once a head. The n-gram channel is
left out: it is linear and shared by nobody.

What one seed and share gave is a file in --out/runs the moment it is there, so the same command goes on after Ctrl-C or
a kill. Writes sharing.json (for `millrace report --sharing`) and sharing.png to --out; last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from model.network import Network
from model.training.corpus import Corpus
from model.training.export import encode
from model.training.loss import NO_LABEL
from model.training.plan import draw_batches
from model.training.recipe import Recipe
from model.training.workshop import Workshop
from tests.bench.paired import (
    Judged,
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

STREAMS = {
    "reviews": ("sentiment", "category", "stars", "topic", "emotion"),
    "service": ("intent.shop", "intent.banking", "intent.general"),
}
Right = dict[str, np.ndarray]  # by head: bool [rows], whether each judged row was answered rightly


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    console = Console(stderr=True)
    recipe, shop = furnished(args, console)
    judged = dict[str, Judged]()  # a task by the first of its files
    for one in judged_rows(recipe, shop, args.data, args.rows):
        judged.setdefault(one.task, one)
    began = time.monotonic()
    right = dict[tuple[float, int], dict[str, Right]]()
    for seed in range(args.seeds):  # outermost, so that a run cut short has all shares on fewer seeds
        for share in args.shares:
            seeded = replace(recipe, seed=recipe.seed + seed)
            known = digest(seeded, shop, judged.values(), args.tokens, share)
            measure = partial(compare, seeded, shop, judged, share, seed, args.tokens, console)
            right[share, seed] = remembered(args.out / "runs" / f"share-{share:g}-{seed}-{known}.json", measure)
    result = summary(right, args)
    path = args.out / "sharing.json"
    write(path, json.dumps(result, indent=1))  # before what may fail or be stopped yet
    result |= {"encoder_work": encoder_work(shop, judged), "seconds": round(time.monotonic() - began)}
    write(path, json.dumps(result, indent=1))
    picture(result, args.out / "sharing.png")
    console.print(table(result))
    print(json.dumps(result))


def compare(
    recipe: Recipe,
    shop: Workshop,
    judged: Mapping[str, Judged],
    share: float,
    seed: int,
    tokens: float,
    console: Console,
) -> dict[str, Right]:
    """Right answers of the shared model and of the single ones."""
    some = replace(shop, corpus=fewer_labels(shop.corpus, share, seed))
    console.log(f"share {share:g}, seed {seed}: shared")
    found = answers(train(recipe, some, tokens, console).network, [*judged.values()])
    shared = {head: found[one.name] for head, one in judged.items()}
    spent = tokens_by_head(recipe, some.corpus, tokens)
    single = {}
    for head, one in judged.items():
        console.log(f"share {share:g}, seed {seed}: {head} alone, {spent[head]:.0f} tokens")
        own_recipe, own_shop = alone(recipe, some, head)
        network = train(own_recipe, own_shop, spent[head], console).network
        single[head] = answers(network, [one])[one.name]
    return {"shared": shared, "single": single}


def alone(recipe: Recipe, shop: Workshop, head: str) -> tuple[Recipe, Workshop]:
    """Recipe and workshop of one head: the data sets that say something about it, their other labels left out."""
    corpus, column = shop.corpus, shop.corpus.names.index(head)
    part = rows_of(corpus, corpus.labels[:, column] != NO_LABEL)
    kept = np.unique(part.dataset)
    part = replace(
        part,
        heads={head: corpus.heads[head]},
        labels=part.labels[:, [column]],
        weights=part.weights[:, [column]],
        dataset=np.searchsorted(kept, part.dataset),
        allowed=[{head: corpus.allowed[d][head]} for d in kept],
    )
    datasets = [recipe.datasets[d] for d in kept]
    return replace(recipe, heads={head: recipe.heads[head]}, datasets=datasets), replace(shop, corpus=part)


def tokens_by_head(recipe: Recipe, corpus: Corpus, tokens: float) -> dict[str, float]:
    """The tokens that a joint run spends on each head's rows, a row with several labels shared between its heads."""
    quiet = Console(quiet=True)
    rows = np.concatenate(list(draw_batches(recipe, corpus, tokens, quiet)))
    lengths = np.array([corpus.prepared[row].tokens for row in rows])
    labelled = corpus.labels[rows] != NO_LABEL
    each = lengths[:, None] * labelled / np.maximum(labelled.sum(1, keepdims=True), 1)
    return dict(zip(corpus.names, each.sum(0).tolist(), strict=True))


def summary(right: Mapping[tuple[float, int], dict[str, Right]], args: argparse.Namespace) -> dict[str, Any]:
    """Figures by share of the labels: mean accuracies over tasks and seeds, their difference by seed and its interval
    over seeds and rows."""
    points, shares = [], []
    for share in args.shares:
        runs = [right[share, seed] for seed in range(args.seeds)]
        heads = list(runs[0]["shared"])
        for head in heads:
            ours, theirs = (float(np.mean([run[kind][head].mean() for run in runs])) for kind in ("shared", "single"))
            figures = {"shared": round(ours, 4), "single": round(theirs, 4)}
            points.append({"task": head, "share": share, "seeds": args.seeds} | figures)
        gaps = [np.stack([run["shared"][h].astype(float) - run["single"][h] for run in runs]) for h in heads]
        low, high = interval(resampled(gaps).mean(0))
        own = [p for p in points if p["share"] == share]
        shares.append(
            {
                "share": share,
                "shared": round(float(np.mean([p["shared"] for p in own])), 4),
                "single": round(float(np.mean([p["single"] for p in own])), 4),
                "difference_interval": [round(low, 4), round(high, 4)],
                "by_seed": [round(float(gap), 4) for gap in np.mean([gap.mean(1) for gap in gaps], axis=0)],
            }
        )
    return {"points": points, "shares": shares, "metric": "accuracy", "seeds": args.seeds, "tokens": args.tokens}


def encoder_work(shop: Workshop, judged: Mapping[str, Judged]) -> dict[str, dict[str, float]]:
    """By stream: heads that a text gets, encoder passes a text with one encoder and with one a task, and the measured
    time of the one over that of the other. Only streams with two judged heads or more: one head shares no pass."""
    work = {}
    network = Network(shop.encoder.eval(), None, {name: len(labels) for name, labels in shop.corpus.heads.items()})
    for stream, heads in STREAMS.items():
        emitted = [head for head in heads if head in judged]
        if len(emitted) < 2:
            continue
        texts = [row for head in emitted for row in judged[head].texts[:64]]
        once, each = [], []
        for _ in range(3):  # interleaved, for the machine is noisy
            once.append(spent(network, texts, emitted, passes=1))
            each.append(spent(network, texts, emitted, passes=len(emitted)))
        ratio = float(np.median(np.array(once) / np.array(each)))
        work[stream] = {"heads": len(emitted), "passes": 1 / len(emitted), "time": round(ratio, 3)}
    return work


def spent(network: Network, texts: Sequence[Any], heads: Sequence[str], *, passes: int) -> float:
    began = time.perf_counter()
    for _ in range(passes):
        encoded = torch.from_numpy(encode(network, list(texts)))
    with torch.inference_mode():
        for head in heads:
            network.logits(head, encoded)
    return time.perf_counter() - began


def table(result: Mapping[str, Any]) -> Any:
    from rich.table import Table

    shown = Table("labels", "task", "shared", "single", "gain", title="shared model against one model per task")
    for point in result["points"]:
        gain = point["shared"] - point["single"]
        style = "green" if gain >= 0 else "red"
        shown.add_row(
            f"{point['share']:.0%}",
            point["task"],
            f"{point['shared']:.3f}",
            f"{point['single']:.3f}",
            f"[{style}]{gain:+.3f}",
        )
    for whole in result["shares"]:
        low, high = whole["difference_interval"]
        gain = f"{whole['shared'] - whole['single']:+.3f} ({low:+.3f} to {high:+.3f})"
        shown.add_row(
            f"{whole['share']:.0%}", "mean", f"{whole['shared']:.3f}", f"{whole['single']:.3f}", gain, style="bold"
        )
    return shown


def picture(result: Mapping[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shares = [whole["share"] for whole in result["shares"]]
    figure, axes = plt.subplots(1, len(shares), figsize=(5 * len(shares), 4.2), squeeze=False, sharey=True)
    for axis, share in zip(axes[0], shares, strict=True):
        own = [point for point in result["points"] if point["share"] == share]
        at = np.arange(len(own))
        axis.barh(at - 0.2, [p["shared"] for p in own], 0.38, label="shared", color="#2a78b8")
        axis.barh(at + 0.2, [p["single"] for p in own], 0.38, label="one model per task", color="#b8b8b8")
        axis.set_yticks(at, [p["task"] for p in own])
        axis.set_title(f"{share:.0%} of the labels")
        axis.set_xlabel("accuracy")
    axes[0][0].legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    common_arguments(parser, "bench-shared")
    parser.add_argument("--tokens", type=float, default=400_000, help="tokens of a shared run; single ones share them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.1], help="of the labels")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each valid file at most")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.tokens, args.rows = 1, 40_000, 200
    return args


if __name__ == "__main__":
    ended(main)
