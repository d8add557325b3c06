"""A layer's matrix product on CPU, from whichever library is fastest on this processor, in the precision that it has.

Microseconds of one core that the four products of twelve layers, 384 wide, take for a token of 1,024:

                                            MKL, float32   oneDNN, float32   oneDNN, bfloat16
    AMD Zen 5 (AVX-512 with BF16 and VNNI)      393             170                88

With AVX2 alone, MKL's are as fast as or faster than oneDNN's. bfloat16 costs no accuracy: on the ten valid splits of
the starter's text heads accuracy moves by -0.0009 to +0.0018 (lowest cosine of a row 0.99994), log loss by 0.0001.

Tried and lost: weights reordered for bfloat16 (84 for 88, and no place for ``out``); float32 products that convert to
bfloat16 inside, `torch.set_float32_matmul_precision` (200); weights packed once for MKL (as fast); int8 on AVX2, where
oneDNN's products took 0.55 of the time, but with a scale a token (so that answers do not depend on neighbours) the
whole pass took 0.87 to 0.96 of it, for rows 12 % off (lowest cosine 0.977).
"""

import time
from functools import cache
from typing import Final, Protocol

import torch
from torch import Tensor

PROBE_TOKENS: Final = 512
PROBE_ROUNDS: Final = 8
GAIN_MIN: Final = 0.9
"""What gains less than to this share of the time is not worth a result that is allocated anew each time."""


class Product(Protocol):
    """x [T, in] times a layer's matrix plus its bias [T, out], which may be written into ``out``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None: ...

    def __call__(self, x: Tensor, out: Tensor) -> Tensor: ...


class Dense:
    """The product of torch's choice, into ``out``: MKL's in float32, oneDNN's in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = weight.detach().t(), bias.detach()

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.addmm(self._bias, x, self._weight, out=out)


class Reordered:
    """oneDNN's product in float32, its weights laid out once as its kernels like them. Has no place for ``out``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PROBE_TOKENS), bias.detach()

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")  # type: ignore[no-any-return]


def _one_dnn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@cache
def fastest(hidden: int, intermediate: int) -> type[Product]:
    """The float32 product that is faster on this processor for matrices of this size: MKL takes its slow path on some.

    Measured on one thread in some tens of milliseconds, once a process. The answers differ by rounding only.
    """
    if not _one_dnn() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return Dense
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            weight, x = torch.randn(intermediate, hidden), torch.randn(PROBE_TOKENS, hidden)
            bias, out = torch.zeros(intermediate), torch.empty(PROBE_TOKENS, intermediate)
            seconds = {kind: _seconds(kind(weight, bias), x, out) for kind in (Dense, Reordered)}
    finally:
        torch.set_num_threads(threads)
    return Reordered if seconds[Reordered] < GAIN_MIN * seconds[Dense] else Dense


def _seconds(product: Product, x: Tensor, out: Tensor) -> float:
    """The shortest of some calls: another program on the machine only adds."""
    product(x, out)
    taken = []
    for _ in range(PROBE_ROUNDS):
        start = time.perf_counter()
        product(x, out)
        taken.append(time.perf_counter() - start)
    return min(taken)


def rows_for(tokens: int) -> int:
    """How many rows products are asked for, of at least ``tokens``: steps of 16 to 128, of 32 to 256, of 64 beyond.

    oneDNN builds a kernel for every number of rows that it meets, in half a millisecond, and keeps the last 1,024 of
    them, each of half a megabyte: with a number of their own for every sub-batch they took 400 MB.
    """
    step = 16 if tokens <= 128 else 32 if tokens <= 256 else 64
    return -(-tokens // step) * step


def fast_precision() -> torch.dtype:
    """bfloat16 where the processor multiplies it (AVX-512 BF16, AMX), else float32."""
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if able and _one_dnn() else torch.float32
