"""Events per second of the worker against what people would use instead: same events, same weights, same broker.

    python -m tests.bench.bench_peers [--quick] [--only NAME ...] [--rounds N] [--events N] [--precision float32]
        [--as-they-come] [--out FOLDER]

The starter's encoder and tokenizer are written as a Hugging Face folder, the events of bench_worker.py preloaded into
an in-process broker of its own, and every contender reads them from the beginning, each as a fresh process, in changing
order, round after round, to the end: ours takes clicks first when all wait, so a part of the events would be other
events than theirs. One event at a time is as fast at the beginning as at the end, and reads the first quarter. Medians
are compared. Nine events of ten are clicks, as shops have them and more; the rest are
reviews and messages in equal parts. ``repeating``: item texts are Zipf-distributed, reviews and messages unique;
``warm``: the same, and ours has worked off as many events of the stream before, so that its cache holds what a worker
in service has seen, while theirs, who have none, are as fast as before; ``unique``: no text comes twice. ``--clicks
0.6`` is the mix of bench_worker.py. Contenders encode one text an event and write one small record; ours also reads
states, asks every head, and writes scores, opinions and folds.

  faust_one     one event at a time in a Faust agent
  faust_take    Faust's ``take`` of 256 within 0.2 s, then padded batches of 32
  quixstreams   a sink that gathers to the checkpoint (``commit_every`` 256), then padded batches of 32
  infinity      a consumer in front of infinity's engine in its process, 512 texts under way, its batches of 32
  litserve      a consumer in front of a LitServe server, 512 requests under way, its batches of 64
  offline       no stream: Hugging Face over all texts sorted by length, the ceiling of padded work

Tuned for them: every padded batch is sorted by length among what was gathered (infinity sorts for itself), attention
is ``sdpa``, the precision is the one that ours takes on this processor (``--precision float32``: all in float32;
``--as-they-come``: theirs in float32, as they load it unless told otherwise), threads are the machine's cores, models
run in inference mode, two gatherings are always under way where a server encodes, infinity runs without its HTTP layer
and without BetterTransformer, which transformers no longer supports. Batches are of 32, infinity's default. Nobody but
us has a cache: none of them brings one that is in memory. Start-up and the first batch are left out everywhere; for
ours, the first tenth of the events.

Installs tests/bench/peers.txt into .venv-peers once. Writes peers.json and peers.png to --out; last line: one JSON
object, ``ratios`` being ours ÷ theirs, ``failed`` naming contenders that did not run, which are left out, and why.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

from model.artifact import resolve
from model.encoder import PackedEncoder
from model.products import fast_precision
from model.torch_scorer import TorchScorer
from schemas.topics import EVENTS_CLICK, EVENTS_REVIEW, EVENTS_SERVICE, INPUTS
from tests.bench.bench_worker import committed_rate, preloaded
from worker.demo.embedded import EmbeddedRedis, embedded_config

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("faust_one", "faust_take", "quixstreams", "infinity", "litserve", "offline")
KINDS = ("repeating", "warm", "unique")
START_TIMEOUT_S = 240.0  # for imports and loading, on a machine that does other things too
SLOWEST = 5.0
"""Events a second below which a contender is left out."""
console = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 2,000 events each: five to ten minutes")
    parser.add_argument("--only", nargs="*", choices=PEERS, default=PEERS, help="contenders beside ours")
    parser.add_argument("--artifact", default="starter", help="starter, or a folder")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--events", type=int, default=0, help="of each run: 12,000, with --quick 2,000")
    parser.add_argument("--clicks", type=float, default=0.9, help="share of events that are clicks")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32"), help="of ours and theirs")
    parser.add_argument("--as-they-come", action="store_true", help="theirs in float32, whatever ours takes")
    parser.add_argument("--out", type=Path, default=Path(".millrace/bench"))
    args = parser.parse_args()
    mp.set_start_method("spawn")
    rounds, count = args.rounds or (1 if args.quick else 3), args.events or (2000 if args.quick else 12000)
    mix = {EVENTS_CLICK: args.clicks, EVENTS_REVIEW: (1 - args.clicks) / 2, EVENTS_SERVICE: (1 - args.clicks) / 2}
    args.out.mkdir(parents=True, exist_ok=True)
    python = environment()
    ours_in = "float32" if args.precision == "float32" else str(fast_precision()).removeprefix("torch.")
    theirs_in = "float32" if args.as_they_come else ours_in
    folder = export(args.artifact, args.out / "peers-model", theirs_in)
    model = {"artifact": args.artifact, "precision": args.precision}
    rates: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    failed: dict[str, str] = {}

    def told(kind: str, n: int, name: str, rate: float) -> None:
        rates[kind].setdefault(name, []).append(round(rate, 1))
        console.log(f"{kind}, round {n + 1}: {name} {rate:.1f} events/s")

    for kind in ("repeating", "unique"):
        for n in range(rounds):
            # Anew each round: what ours reads more of in the warm run would be there for the next.
            with preloaded(count, kind == "unique", mix) as broker:
                for name in ("ours", *args.only) if n % 2 == 0 else (*reversed(args.only), "ours"):
                    if name in failed:
                        continue
                    try:
                        rate = (
                            ours(model, broker.bootstrap, count)
                            if name == "ours"
                            else theirs(python, name, broker.bootstrap, folder, count)
                        )
                    except RuntimeError as error:
                        if name == "ours":
                            raise
                        failed[name] = str(error)
                        console.log(f"{kind}, round {n + 1}: {name} is left out: {error}", style="red")
                        continue
                    told(kind, n, name, rate)
                    if kind == "repeating" and name != "ours":
                        rates["warm"].setdefault(name, []).append(round(rate, 1))
                if kind == "repeating":
                    told("warm", n, "ours", ours(model, broker.bootstrap, count, broker.more))
    precisions = {"ours": ours_in, "theirs": theirs_in}
    result = summary(rates, rounds, count) | {"clicks": args.clicks, "precision": precisions, "failed": failed}
    (args.out / "peers.json").write_text(json.dumps(result, indent=1))
    picture(result, args.out / "peers.png")
    print(json.dumps(result))


def environment() -> Path:
    """The peers' Python, installed on first use."""
    home = ROOT / ".venv-peers"
    python, listed = home / "bin/python", ROOT / "tests/bench/peers.txt"
    mark = home / ".installed"
    if not mark.exists() or mark.stat().st_mtime < listed.stat().st_mtime:
        console.log(f"making {home}: once, some minutes")
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-r", listed]
        subprocess.run(install, check=True, stdout=sys.stderr)
        mark.touch()
    return python


def export(artifact: str, folder: Path, precision: str) -> Path:
    """The artifact's encoder and tokenizer as a Hugging Face folder of a BertModel, to be run in ``precision``."""
    scorer = TorchScorer(resolve(artifact), device="cpu")
    encoder = scorer.network.encoder
    if not isinstance(encoder, PackedEncoder) or encoder.config.position_offset:
        raise SystemExit(f"{artifact}: only encoders of BERT's shape can be given to the peers")
    shape, longest = encoder.config, scorer.codec.spec.max_tokens
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": shape.types,
        "layer_norm_eps": shape.eps,
        "hidden_act": shape.activation,
        "dtype": precision,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text((resolve(artifact) / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = {"pad_token": ("[PAD]", "<pad>", "</s>"), "unk_token": ("[UNK]", "<unk>")}
    pieces |= {"cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>")}
    special = {role: next(p for p in names if scorer.codec.piece_id(p) is not None) for role, names in pieces.items()}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    tensors = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def ours(model: dict[str, str], bootstrap: str, count: int, more: Callable[[], None] | None = None) -> float:
    with EmbeddedRedis() as redis:
        kafka = {"group_prefix": f"bench-{time.monotonic_ns()}"}
        config = embedded_config(bootstrap, redis, kafka=kafka, model=model, observe={"log_level": "warning"})
        return float(committed_rate(config, count, more=more)["events_per_second"])


def theirs(python: Path, name: str, bootstrap: str, folder: Path, count: int) -> float:
    """Raises RuntimeError with what it wrote when the contender fails."""
    command: list[str | Path] = [python, ROOT / "tests/bench/peers.py", name, "--bootstrap", bootstrap]
    read = count // 4 if name == "faust_one" else count
    command += ["--model", folder, "--topics", ",".join(INPUTS), "--events", str(read)]
    command += ["--threads", str(torch.get_num_threads())]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    quiet = clean | {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=quiet, text=True, start_new_session=True
    )
    try:
        printed, complaint = process.communicate(timeout=START_TIMEOUT_S + read / SLOWEST)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{name} did not finish within {error.timeout:.0f} s") from error
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # and the server that it may have started
        except ProcessLookupError:
            console.log(f"{name} has ended with all it started", style="dim")
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{name} failed:\n{complaint[-3000:]}")
    seen = json.loads(lines[-1])
    return float(seen["events"] / seen["seconds"])


def summary(rates: dict[str, dict[str, list[float]]], rounds: int, count: int) -> dict[str, Any]:
    ratios = {
        kind: {
            name: round(median(found["ours"]) / max(median(values), 1e-9), 2)
            for name, values in found.items()
            if name != "ours"
        }
        for kind, found in rates.items()
    }
    events = {
        kind: {name: {"median": median(v), "spread": [min(v), max(v)]} for name, v in found.items()}
        for kind, found in rates.items()
    }
    return {"ratios": ratios, "events_per_second": events, "rounds": rounds, "events": count}


def picture(result: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(KINDS), figsize=(11, 3.8), layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        seen = result["events_per_second"][kind]
        names = sorted(seen, key=("ours", *PEERS).index)
        middle = [seen[name]["median"] for name in names]
        errors = [[abs(seen[name]["median"] - seen[name]["spread"][side]) for name in names] for side in (0, 1)]
        axis.barh(names, middle, xerr=errors, color=["tab:blue", *["tab:gray"] * (len(names) - 1)], capsize=3)
        axis.invert_yaxis()
        axis.set_xlabel("events per second")
        axis.set_title(f"{kind} texts")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
