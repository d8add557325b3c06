"""What is served on a GPU equals what is trained. Where there is none: its passes on CPU.

Needs nothing but torch, numpy and pytest, so that it runs on a machine that has little else.
"""

import copy
import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import model.cuda_encoder
import model.varlen
from model.cuda_encoder import CudaEncoder
from model.encoder import EncoderConfig, PackedEncoder
from model.flat import Layout, lay_out, padded
from model.fused_encoder import FusedEncoder
from model.packing import pack

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

POSITIONS = 48
CONFIGS = {
    "bert": EncoderConfig("packed", 300, 128, 3, 4, 256, POSITIONS),
    "bert-64": EncoderConfig("packed", 300, 256, 2, 4, 512, POSITIONS, activation="relu"),
    "xlm-roberta": EncoderConfig("packed", 300, 128, 3, 4, 256, POSITIONS + 2, 2, 1, 1e-5, "gelu_new"),
    "roberta-64": EncoderConfig("packed", 300, 128, 2, 2, 256, POSITIONS + 2, 2, 1, 1e-5, pooling="cls"),
}


@pytest.fixture(params=CONFIGS)
def encoder(request: pytest.FixtureRequest) -> PackedEncoder:
    return make(request.param)


def make(name: str) -> PackedEncoder:
    """Weights large enough to matter, attention's among them."""
    torch.manual_seed(5)
    encoder = PackedEncoder(CONFIGS[name]).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.04)
    return encoder


def texts(lengths: Sequence[int], seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 300, n).astype(np.int32) for n in lengths]


def mixed(n: int, seed: int = 1) -> list[Any]:
    return texts(np.random.default_rng(seed).integers(1, POSITIONS + 1, n).tolist(), seed)


def told_by(module: str, caplog: pytest.LogCaptureFixture) -> int:
    """Warnings of a module so far."""
    return sum(record.name == module and record.levelno == logging.WARNING for record in caplog.records)


def expected(encoder: PackedEncoder, ids: Sequence[Any]) -> Any:
    """The module's rows, float32 on CPU."""
    with torch.inference_mode():
        return encoder(pack(ids)).numpy()


def assert_near(rows: Any, reference: Any) -> None:
    """Within what bfloat16 allows."""
    assert rows.dtype == np.float32
    assert rows.shape == reference.shape
    norms = np.linalg.norm(reference, axis=1)
    cosines = (rows * reference).sum(1) / (np.linalg.norm(rows, axis=1) * norms)
    errors = np.linalg.norm(rows - reference, axis=1) / norms
    assert cosines.min() > 0.999, f"cosine {cosines.min()} at text {cosines.argmin()}"
    assert errors.max() < 2e-2, f"relative error {errors.max()} at text {errors.argmax()}"


def by_sequence(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> torch.Tensor:
    """What torch's attention over any lengths computes, sequence by sequence."""
    out = torch.full_like(q, torch.nan)
    for start, end in pairwise(cu_q.tolist()):
        assert 0 <= end - start <= max_q
        if end > start:
            one = (t[start:end].transpose(0, 1)[None] for t in (q, k, v))
            out[start:end] = torch.nn.functional.scaled_dot_product_attention(*one)[0].transpose(0, 1)
    return out


# --- passes, on CPU ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("ids", [texts([1]), mixed(13), texts(range(1, POSITIONS + 1))], ids=len)
def test_a_flat_pass_equals_the_module(encoder: PackedEncoder, ids: list[Any], exact: bool) -> None:
    total = sum(map(len, ids))
    layout = (None if exact else padded(len(ids), total, POSITIONS)) or Layout(total, len(ids))
    buffer = np.zeros(layout.size, np.int32)
    lay_out(ids, layout, POSITIONS, buffer)
    fused = FusedEncoder(encoder, torch.device("cpu"), torch.float32)
    rows = fused.flat(torch.from_numpy(buffer), layout, by_sequence, POSITIONS)
    assert len(rows) == layout.sequences
    np.testing.assert_allclose(rows[: len(ids)].numpy(), expected(encoder, ids), atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 100, 5000])
def test_a_grouped_pass_equals_the_module(encoder: PackedEncoder, chunk: int) -> None:
    ids = mixed(30)
    served = CudaEncoder(encoder, "cpu", chunk_tokens_max=chunk)
    assert (served.attention, served.graphs) == ("grouped", 0)
    np.testing.assert_allclose(served.encode(ids), expected(encoder, ids), atol=1e-4)


def test_half_precision_is_within_its_tolerance_on_cpu(encoder: PackedEncoder) -> None:
    ids = texts([*range(1, POSITIONS + 1)] * 2)
    assert_near(CudaEncoder(encoder, "cpu", torch.bfloat16).encode(ids), expected(encoder, ids))


def test_no_texts_are_no_rows_and_bad_ones_are_refused() -> None:
    served = CudaEncoder(make("bert"), "cpu")
    assert served.encode([]).shape == (0, 128)
    refuses(served)


def refuses(served: CudaEncoder) -> None:
    with pytest.raises(IndexError, match="vocabulary"):
        served.encode([*texts([3]), np.array([5, 300], np.int32)])
    with pytest.raises(ValueError, match="1 to 48"):
        served.encode(texts([3, POSITIONS + 1]))
    with pytest.raises(ValueError, match="1 to 48"):
        served.encode(texts([3, 0]))


# --- passes, on a GPU -------------------------------------------------------------------------------------------------


@gpu
def test_every_length_equals_the_module(encoder: PackedEncoder) -> None:
    served = CudaEncoder(encoder)
    assert served.attention == "varlen"
    for ids in (texts(range(1, POSITIONS + 1)), mixed(700), texts([1]), texts([POSITIONS] * 40), texts([1] * 300)):
        assert_near(served.encode(ids), expected(encoder, ids))


@gpu
def test_graphs_are_captured_and_answer_as_without(encoder: PackedEncoder) -> None:
    served, eager = CudaEncoder(encoder), CudaEncoder(encoder, graphs_max=0)
    for seed in range(6):  # the same shapes with other texts
        for n in (5, 30, 300):
            ids = mixed(n, seed)
            rows = served.encode(ids)
            assert_near(rows, expected(encoder, ids))
            assert_near(rows, eager.encode(ids))
    assert served.graphs >= 3
    assert eager.graphs == 0


@gpu
def test_many_sub_batches_are_each_in_their_place(encoder: PackedEncoder) -> None:
    ids = mixed(3000)
    served = CudaEncoder(encoder, chunk_tokens_max=512)
    reference = expected(encoder, ids)
    first = served.encode(ids)
    assert_near(first, reference)
    assert served.graphs > 0
    assert_near(served.encode(ids), reference)
    again = served.encode(ids)  # from here on every shape has its graph
    assert_near(again, reference)
    np.testing.assert_allclose(again, served.encode(ids), atol=1e-5)  # sums of a row come in any order, in float32
    short = mixed(10, 3)
    assert_near(served.encode(short), expected(encoder, short))
    larger = mixed(6000, 4)
    assert_near(served.encode(larger), expected(encoder, larger))


@gpu
def test_graphs_are_bounded() -> None:
    encoder = make("bert")
    served = CudaEncoder(encoder, graphs_max=2)
    for _ in range(4):
        for n in (5, 30, 100, 300):
            ids = mixed(n)
            assert_near(served.encode(ids), expected(encoder, ids))
    assert served.graphs == 2


@gpu
def test_rows_do_not_depend_on_neighbours(encoder: PackedEncoder) -> None:
    served = CudaEncoder(encoder)
    ids = mixed(200)
    alone = np.concatenate([served.encode([text]) for text in ids[:40]])
    assert_near(served.encode(ids)[:40], alone)


@gpu
def test_float32_on_a_gpu_is_grouped_and_near_exact(encoder: PackedEncoder) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        served = CudaEncoder(encoder, dtype=torch.float32)
        assert served.attention == "grouped"
        ids = mixed(200)
        np.testing.assert_allclose(served.encode(ids), expected(encoder, ids), atol=1e-4)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_what_does_not_fit_into_float16_is_served_in_what_it_fits(encoder: PackedEncoder) -> None:
    large = copy.deepcopy(encoder)
    with torch.no_grad():
        large.encoder.layer[0].output.LayerNorm.weight.mul_(1e6)
    served = CudaEncoder(large, "cpu", torch.float16)
    ids = mixed(20)
    np.testing.assert_allclose(served.encode(ids), expected(large, ids), rtol=1e-3, atol=1e-3)
    assert served.dtype is torch.float32


@gpu
def test_float16_equals_the_module(encoder: PackedEncoder) -> None:
    served = CudaEncoder(encoder, dtype=torch.float16)
    assert served.attention == "varlen"
    ids = mixed(200)
    assert_near(served.encode(ids), expected(encoder, ids))


@gpu
def test_without_attention_over_any_lengths_it_is_grouped(
    encoder: PackedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.varlen, "find_varlen", lambda: None)
    served = CudaEncoder(encoder, chunk_tokens_max=1000)
    assert served.attention == "grouped"
    ids = mixed(300)
    assert_near(served.encode(ids), expected(encoder, ids))
    assert served.encode([]).shape == (0, encoder.config.hidden)
    refuses(served)


@gpu
def test_an_attention_that_fails_is_told_and_grouped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*args: object) -> torch.Tensor:
        raise RuntimeError("USE_FLASH_ATTENTION was not enabled for build.")

    monkeypatch.setattr(model.varlen, "find_varlen", lambda: failing)
    assert CudaEncoder(make("bert")).attention == "grouped"
    assert told_by("model.varlen", caplog) == 1


@gpu
def test_bad_texts_are_refused_before_the_device_sees_them() -> None:
    encoder = make("bert")
    served = CudaEncoder(encoder, chunk_tokens_max=256)
    assert served.encode([]).shape == (0, 128)
    refuses(served)
    ids = mixed(50)
    assert_near(served.encode(ids), expected(encoder, ids))


@gpu
@pytest.mark.parametrize("name", ["bert", "xlm-roberta"])
def test_gelu_by_tanh_is_within_the_tolerance(name: str) -> None:
    encoder, ids = make(name), mixed(500)
    assert_near(CudaEncoder(encoder, tanh_gelu=True).encode(ids), expected(encoder, ids))


@gpu
@pytest.mark.parametrize("capturing", [False, True])
def test_full_memory_is_raised_and_the_next_call_works(monkeypatch: pytest.MonkeyPatch, capturing: bool) -> None:
    encoder = make("bert")
    served = CudaEncoder(encoder)
    ids = mixed(100)
    graphs = served._pipeline.graphs  # type: ignore[union-attr]
    compute = graphs._compute
    for _ in range(2 if capturing else 0):
        served.encode(ids)

    def full(buffer: torch.Tensor, layout: Layout) -> torch.Tensor:
        assert torch.cuda.is_current_stream_capturing() is capturing
        rows = compute(buffer, layout)
        torch.empty(1 << 50, dtype=torch.uint8, device=buffer.device)
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "_compute", full)
        with pytest.raises(torch.OutOfMemoryError):
            served.encode(ids)
    for _ in range(5):
        assert_near(served.encode(ids), expected(encoder, ids))
    assert served.graphs == (0 if capturing else 1)  # after a failed capture torch makes no others


@gpu
def test_a_scorer_on_a_gpu_answers_as_on_cpu(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    from model.torch_scorer import TorchScorer
    from tests.tiny_artifact import make_tiny_artifact

    folder = make_tiny_artifact(tmp_path / "tiny")
    scorer, reference = TorchScorer(folder, device="cuda"), TorchScorer(folder, device="cpu")
    assert isinstance(scorer._served, CudaEncoder)
    assert scorer._served.attention == "varlen"
    prepared = scorer.prepare(["please cancel my order", "退款快递", "", "a" * 500])
    assert_near(scorer.encode(prepared), reference.encode(prepared))
    assert scorer.encode([]).shape == (0, scorer.hidden)


# Last: if a failed capture harmed the process, every test after it would fail too.
@gpu
def test_a_capture_that_fails_is_told_once_and_computed_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = make("bert")
    served = CudaEncoder(encoder)
    compute = served._pipeline.graphs._compute  # type: ignore[union-attr]

    def not_capturable(buffer: torch.Tensor, layout: Layout) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().synchronize()  # which a capture forbids
        return compute(buffer, layout)

    monkeypatch.setattr(served._pipeline.graphs, "_compute", not_capturable)  # type: ignore[union-attr]
    ids = mixed(100)
    for _ in range(8):
        assert_near(served.encode(ids), expected(encoder, ids))
    assert told_by("model.cuda_graphs", caplog) == 1
    assert served.graphs == 0
    torch.cuda.empty_cache()
    healthy = CudaEncoder(encoder)  # the device has taken no harm
    for _ in range(5):
        assert_near(healthy.encode(ids), expected(encoder, ids))
    assert healthy.graphs == 1
