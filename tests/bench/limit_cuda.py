"""The sides of bench_limit on a GPU, and how they are timed: to the moment the device has nothing left to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from model.cuda_encoder import CudaEncoder
from model.encoder import EncoderConfig, PackedEncoder
from model.flat import bucket, runs
from model.packing import chunks, pack

RANDOM = EncoderConfig("packed", vocab_size=20000, hidden=384, layers=12, heads=12, intermediate=1536, positions=64)
"""The starter's shape."""
Sides = dict[str, Callable[[], object]]


def sides(encoder: PackedEncoder, ids: Sequence[Any], longest: int, chunk: int) -> tuple[Sides, CudaEncoder]:
    """What takes turns, and the encoder among it that is served. All are warm, and have their graphs."""
    served = CudaEncoder(encoder, longest=longest, chunk_tokens_max=chunk)
    eager = CudaEncoder(encoder, longest=longest, chunk_tokens_max=chunk, graphs_max=0)
    tanh = CudaEncoder(encoder, longest=longest, chunk_tokens_max=chunk, tanh_gelu=True)
    module = encoder.cuda()
    result: Sides = {
        "limit": products(encoder.config, token_counts(ids, chunk)),
        "encoder": lambda: served.encode(ids),
        "eager": lambda: eager.encode(ids),
        "tanh_gelu": lambda: tanh.encode(ids),
        "module": lambda: module_pass(module, ids),
        "padded": padded(encoder.config, ids, chunk),
    }
    for run in result.values():
        for _ in range(4):
            timed(run)
    return result, served


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of CPU, from an idle device to an idle device."""
    torch.cuda.synchronize()
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - cpu


def token_counts(ids: Sequence[Any], chunk: int) -> list[int]:
    """Tokens of the encoder's own sub-batches, as it pads them."""
    lengths = np.array([len(i) for i in ids], np.int64)
    return [bucket(int(lengths[first:last].sum())) for first, last in runs(lengths, chunk)]


def products(config: EncoderConfig, sizes: Sequence[int]) -> Callable[[], None]:
    """The layers' products alone, bfloat16, of sub-batches of these sizes, as one graph: nothing waits for the host."""
    shapes = [(config.hidden, 3 * config.hidden), (config.hidden, config.hidden)]
    shapes += [(config.hidden, config.intermediate), (config.intermediate, config.hidden)]
    on = {"device": "cuda", "dtype": torch.bfloat16}
    weights = [[torch.randn(o, i, **on).t() * 0.02 for i, o in shapes] for _ in range(config.layers)]
    buffers = {size: [(torch.randn(size, i, **on), torch.empty(size, o, **on)) for i, o in shapes] for size in sizes}

    def run() -> None:
        for size in sizes:
            for layer in weights:
                for (x, out), weight in zip(buffers[size], layer, strict=True):
                    torch.mm(x, weight, out=out)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def module_pass(module: PackedEncoder, ids: Sequence[Any]) -> None:
    """The module that is trained, float32, as it was served before it had an encoder for CUDA."""
    with torch.inference_mode():
        for part in chunks([len(i) for i in ids], 65536, 262144):
            module(pack([ids[i] for i in part], "cuda")).cpu().numpy()


def padded(config: EncoderConfig, ids: Sequence[Any], chunk: int) -> Callable[[], None]:
    """The library's model, bfloat16 and torch's attention, on padded sub-batches of near-equal length."""
    from transformers import BertConfig, BertModel

    shape = BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.positions,
    )
    model = BertModel(shape, add_pooling_layer=False).eval().to("cuda", torch.bfloat16)

    def run() -> None:
        with torch.inference_mode():
            rows = []
            for part in chunks([len(i) for i in ids], len(ids), chunk):
                longest = len(ids[part[0]])
                tokens = np.zeros((len(part), longest), np.int64)
                mask = np.zeros((len(part), longest), np.int64)
                for row, i in enumerate(part):
                    tokens[row, : len(ids[i])] = ids[i]
                    mask[row, : len(ids[i])] = 1
                where = torch.from_numpy(mask).cuda()
                x = model(input_ids=torch.from_numpy(tokens).cuda(), attention_mask=where).last_hidden_state.float()
                rows.append((x * where[:, :, None]).sum(1) / where.sum(1, keepdim=True))
            torch.cat(rows).cpu().numpy()

    return run
