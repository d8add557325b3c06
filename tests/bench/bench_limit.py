"""How near the packed encoder is to the machine's limit: its tokens per second against its matrix products alone.

    python -m tests.bench.bench_limit [--quick] [--artifact starter | --random] [--device cpu|cuda|auto] [--threads N]
        [--tokens N] [--chunk N] [--precision auto|float32] [--out FOLDER] [--no-picture]

The limit runs, for the same sub-batches on the same threads, each layer's four products (query-key-value, attention's
output, up, down) as they are served, in the same precision, and nothing else: no attention, activation, normalisation,
packing or pooling. Encoder, limit, the module that is trained (with torch's own threads) and, where products are not
served in float32, the encoder in float32 and its own limit (`float32`, `limit_float32`) take turns, in changing order,
on one full batch whose lengths are drawn as titles, reviews and messages have them. ``fraction_of_limit`` is the median
over rounds of encoder against limit by the clock; ``fraction_of_limit_cpu`` the same by CPU time, which other programs
on the machine disturb less. Writes limit.json and limit.png to --out; last line: one JSON object.

On a GPU the limit is the same products in bfloat16 as one CUDA graph, of the sub-batches as the encoder pads them. More
take turns: the encoder without graphs (`eager`), with GELU by tanh inside the product (`tanh_gelu`), and the library's
model on padded sub-batches (`padded`). Everything is timed until the device is idle, host work and copies included.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.artifact import resolve
from model.cpu_encoder import CHUNK_TOKENS_MAX, CpuEncoder
from model.cuda_encoder import CHUNK_TOKENS_MAX as CUDA_CHUNK_TOKENS_MAX
from model.encoder import EncoderConfig, PackedEncoder
from model.packing import chunks, even_chunks, pack
from model.products import Dense, fast_precision, fastest
from model.torch_scorer import TorchScorer
from tests.bench.limit_cuda import RANDOM, sides, timed, token_counts

# Share, median and spread (of the logarithm) of lengths in tokens: titles, reviews, messages of the data at hand.
MIX = ((0.4, 10, 0.35), (0.3, 30, 0.7), (0.3, 13, 0.4))
Side = tuple[float, float]  # seconds by the clock, and of CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of a smaller batch: about a minute")
    parser.add_argument("--artifact", default="starter", help="starter, or a folder")
    parser.add_argument("--random", action="store_true", help="random weights of the starter's shape, no artifact")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "auto"))
    parser.add_argument("--precision", default="auto", choices=("auto", "float32"), help="of products on a CPU")
    parser.add_argument("--chunk", type=int, default=CUDA_CHUNK_TOKENS_MAX, help="tokens of a sub-batch on a GPU")
    parser.add_argument("--no-picture", action="store_true", help="no limit.png, which needs matplotlib")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="cores to use")
    parser.add_argument("--tokens", type=int, default=0, help="tokens of the batch; 0: a full batch")
    parser.add_argument("--out", type=Path, default=Path(".millrace/bench"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    encoder, longest = loaded(args)
    rounds, tokens = (4, 4096) if args.quick else (9, 8192)
    if cuda:
        rounds, tokens = (9, 65536) if args.quick else (31, 65536)
    ids = draw(args.tokens or tokens, encoder.config, longest)
    device: dict[str, Any] = {"device": "cpu", "graphs": 0}
    if cuda:
        turns, served = sides(encoder, ids, longest, args.chunk)
        seen = in_turns(turns, rounds, timed)
        padded = sum(token_counts(ids, args.chunk))
        device = {"device": torch.cuda.get_device_name(), "graphs": served.graphs, "attention": served.attention}
        device |= {"chunk_tokens": args.chunk, "padding": round(1 - sum(map(len, ids)) / padded, 3)}
    else:
        precision = fast_precision() if args.precision == "auto" else torch.float32
        device["precision"] = str(precision).removeprefix("torch.")
        seen = measure(encoder, ids, args.threads, rounds, precision)
    result = summary(seen, ids, args.threads) | device
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "limit.json").write_text(json.dumps(result, indent=1))
    if not args.no_picture:
        picture(result, args.out / "limit.png")
    print(f"{args.out / 'limit.json'}: {result['fraction_of_limit']:.2f} of the limit", file=sys.stderr)
    print(json.dumps({name: value for name, value in result.items() if name != "rounds"}))


def loaded(args: argparse.Namespace) -> tuple[PackedEncoder, int]:
    """The encoder on CPU, and the most tokens of its texts."""
    if args.random:
        return PackedEncoder(RANDOM).eval(), RANDOM.positions
    scorer = TorchScorer(resolve(args.artifact), device="cpu")
    encoder = scorer.network.encoder
    if not isinstance(encoder, PackedEncoder):
        raise SystemExit(f"{args.artifact}: not of the BERT family, so there is no packed encoder to measure")
    return encoder, scorer.codec.spec.max_tokens


def draw(tokens: int, config: EncoderConfig, longest: int) -> list[Any]:
    """Random token ids of texts with the mixed lengths, ``tokens`` in all."""
    rng, chosen, ids = np.random.default_rng(7), random.Random(7), []
    while (left := tokens - sum(map(len, ids))) > 0:
        _, median, spread = chosen.choices(MIX, [share for share, _, _ in MIX])[0]
        length = int(np.clip(round(median * np.exp(rng.normal(0, spread))), 4, min(longest, max(left, 4))))
        ids.append(rng.integers(4, config.vocab_size, length).astype(np.int32))
    return ids


def measure(
    encoder: PackedEncoder, ids: Sequence[Any], threads: int, rounds: int, precision: torch.dtype
) -> dict[str, list[Side]]:
    def side(name: str, limit: str, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
        served = CpuEncoder(encoder, threads, dtype=dtype)
        return {
            limit: products(encoder.config, [len(i) for i in ids], threads, dtype),
            name: lambda: served.encode(ids),
        }

    turns = side("encoder", "limit", precision) | {"module": lambda: module_pass(encoder, ids)}
    if precision != torch.float32:
        turns |= side("float32", "limit_float32", torch.float32)
    for run in turns.values():
        run()

    def clocked(run: Callable[[], object]) -> Side:
        clock, cpu = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - clock, time.process_time() - cpu

    return in_turns(turns, rounds, clocked)


def in_turns(
    turns: dict[str, Callable[[], object]], rounds: int, clocked: Callable[[Callable[[], object]], Side]
) -> dict[str, list[Side]]:
    """Each side once a round, in changing order."""
    seen: dict[str, list[Side]] = {name: [] for name in turns}
    for n in range(rounds):
        for name in list(turns) if n % 2 else reversed(list(turns)):
            seen[name].append(clocked(turns[name]))
    return seen


def products(
    config: EncoderConfig, lengths: Sequence[int], threads: int, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """The layers' products alone, of the encoder's own sub-batches, shared by as many threads."""
    kind = fastest(config.hidden, config.intermediate) if dtype == torch.float32 else Dense
    sizes = [sum(lengths[i] for i in part) for part in even_chunks(lengths, threads, CHUNK_TOKENS_MAX)]
    shapes = [(config.hidden, 3 * config.hidden), (config.hidden, config.hidden)]
    shapes += [(config.hidden, config.intermediate), (config.intermediate, config.hidden)]

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns) * 0.02).to(dtype)

    layers = [[kind(matrix(o, i), torch.zeros(o, dtype=dtype)) for i, o in shapes] for _ in range(config.layers)]
    buffers = {size: [(matrix(size, i), matrix(size, o)) for i, o in shapes] for size in set(sizes)}
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def one(size: int) -> None:
        with torch.inference_mode():
            for layer in layers:
                for product, (x, out) in zip(layer, buffers[size], strict=True):
                    product(x, out)

    def run() -> None:
        torch.set_num_threads(1)
        try:
            list(pool.map(one, sizes))
        finally:
            torch.set_num_threads(threads)

    return run


def module_pass(encoder: PackedEncoder, ids: Sequence[Any]) -> None:
    with torch.inference_mode():
        for part in chunks([len(i) for i in ids], 192, 6144):
            encoder(pack([ids[i] for i in part]))


def summary(seen: dict[str, list[Side]], ids: Sequence[Any], threads: int) -> dict[str, Any]:
    tokens = sum(map(len, ids))
    rates = {name: sorted(tokens / clock for clock, _ in runs) for name, runs in seen.items()}
    fractions = [limit[0] / ours[0] for limit, ours in zip(seen["limit"], seen["encoder"], strict=True)]
    by_cpu = [limit[1] / ours[1] for limit, ours in zip(seen["limit"], seen["encoder"], strict=True)]
    return {
        "fraction_of_limit": round(float(np.median(fractions)), 3),
        "fraction_of_limit_spread": [round(min(fractions), 3), round(max(fractions), 3)],
        "fraction_of_limit_cpu": round(float(np.median(by_cpu)), 3),
        "fraction_of_limit_cpu_spread": [round(min(by_cpu), 3), round(max(by_cpu), 3)],
        "tokens_per_second": {name: round(float(np.median(rate))) for name, rate in rates.items()},
        "cpu_us_per_token": {
            name: round(float(np.median([cpu for _, cpu in runs])) / tokens * 1e6, 1) for name, runs in seen.items()
        },
        "cores_had": {name: round(float(np.median([c / t for t, c in runs])), 2) for name, runs in seen.items()},
        "texts": len(ids),
        "tokens": tokens,
        "threads": threads,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "rounds": {name: [[round(value, 6) for value in side] for side in runs] for name, runs in seen.items()},
    }


def picture(result: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (clock, cpu) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = list(result["rounds"])
    shown = [name.replace("_", "\n") for name in names]
    runs = [[result["tokens"] / side[0] for side in result["rounds"][name]] for name in names]
    clock.boxplot(runs, tick_labels=shown, whis=(0, 100))
    clock.set_ylim(0)
    clock.set_ylabel("tokens per second")
    clock.set_title(f"by the clock: {result['fraction_of_limit']:.2f} of the limit")
    cpu.bar(shown, [result["cpu_us_per_token"][name] for name in names], color="tab:gray")
    cpu.set_ylabel("microseconds of CPU a token")
    cpu.set_title(f"by CPU time: {result['fraction_of_limit_cpu']:.2f} of the limit")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
