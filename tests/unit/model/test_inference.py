"""What is served equals what is trained and the library: every family, every length, every batch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig, RobertaConfig, XLMRobertaConfig

from model.cpu_encoder import CHUNK_TOKENS_MAX, CpuEncoder
from model.encoder import PackedEncoder
from model.inference import InferenceEncoder, Workspace
from model.packing import even_chunks, pack
from model.products import Dense, Product, Reordered, fast_precision, fastest, rows_for
from model.training.foreign import convert, encoder_config

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 44,
}
ONE_TYPE = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
FAMILIES = {
    "bert": BertConfig(**SHAPE),
    "minilm": BertConfig(**SHAPE | {"num_hidden_layers": 4, "num_attention_heads": 8}),
    "roberta": RobertaConfig(**SHAPE, **ONE_TYPE),
    "xlm-roberta": XLMRobertaConfig(**SHAPE, **ONE_TYPE),
    "bert-relu": BertConfig(**SHAPE, hidden_act="relu"),
    "bert-silu": BertConfig(**SHAPE, hidden_act="silu"),
    "bert-tanh": BertConfig(**SHAPE, hidden_act="gelu_new"),
}
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, PackedEncoder]:
    """The library's model with weights large enough to matter, and ours with the same."""
    torch.manual_seed(3)
    model = AutoModel.from_config(FAMILIES[request.param]).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    encoder = convert(model).eval()
    assert isinstance(encoder, PackedEncoder)
    return model, encoder


def texts(lengths: list[int]) -> list[Any]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(4, 90, n).astype(np.int32) for n in lengths]


def library_rows(model: Any, ids: list[Any]) -> torch.Tensor:
    longest = max(map(len, ids))
    pad = model.config.pad_token_id or 0
    tokens = torch.tensor([[*map(int, row)] + [pad] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.inference_mode():
        x = model(input_ids=tokens, attention_mask=mask).last_hidden_state
    return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


@settings(max_examples=25)
@given(lengths=LENGTHS)
def test_equals_the_library_on_texts_of_any_length(pair: tuple[Any, PackedEncoder], lengths: list[int]) -> None:
    model, encoder = pair
    ids = texts(lengths)
    served = InferenceEncoder(encoder)(pack(ids), Workspace(encoder.config))
    torch.testing.assert_close(served, library_rows(model, ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [Dense, Reordered])
def test_equals_the_library_with_either_product(
    pair: tuple[Any, PackedEncoder], kind: type[Product], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.inference.fastest", lambda hidden, intermediate: kind)
    model, encoder = pair
    ids = texts([40, 17, 16, 16, 9, 3, 1])
    served = torch.from_numpy(CpuEncoder(encoder, threads=2).encode(ids))
    torch.testing.assert_close(served, library_rows(model, ids), atol=1e-5, rtol=0)


@settings(max_examples=25)
@given(lengths=LENGTHS)
def test_products_in_bfloat16_are_near_at_every_length(pair: tuple[Any, PackedEncoder], lengths: list[int]) -> None:
    model, encoder = pair
    ids = texts(lengths)
    served = torch.from_numpy(CpuEncoder(encoder, threads=2, dtype=torch.bfloat16).encode(ids))
    expected = library_rows(model, ids)
    assert served.dtype == torch.float32
    # 8 bits of precision at each of some ten roundings a layer, on rows whose entries are about 1.
    assert float((served - expected).norm(dim=1).max() / expected.norm(dim=1).min()) < 0.05


def test_the_precision_is_the_processors_and_the_product_the_faster_one() -> None:
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert fast_precision() == (torch.bfloat16 if able else torch.float32)
    before = torch.get_num_threads()
    assert fastest(64, 128) in (Dense, Reordered)
    assert torch.get_num_threads() == before


def test_products_come_in_few_sizes_and_little_is_added() -> None:
    sizes = {tokens: rows_for(tokens) for tokens in range(1, 2 * CHUNK_TOKENS_MAX)}
    assert all(0 <= rows - tokens < max(16, 0.25 * tokens) for tokens, rows in sizes.items())
    assert len(set(sizes.values())) < 50  # oneDNN keeps a kernel for each, of half a megabyte


def test_equals_the_library_at_every_length(pair: tuple[Any, PackedEncoder]) -> None:
    model, encoder = pair
    ids = texts(list(range(1, 41)))
    served = torch.from_numpy(CpuEncoder(encoder, threads=2).encode(ids))
    torch.testing.assert_close(served, library_rows(model, ids), atol=1e-5, rtol=0)


def test_first_token_pooling_equals_the_module() -> None:
    model = AutoModel.from_config(FAMILIES["bert"])
    encoder = PackedEncoder(encoder_config(model.config, pooling="cls")).eval()
    packed = pack(texts([3, 40, 3, 1]))
    with torch.inference_mode():
        expected = encoder(packed)
    served = InferenceEncoder(encoder)(packed, Workspace(encoder.config))
    torch.testing.assert_close(served, expected, atol=1e-6, rtol=0)


@settings(max_examples=15)
@given(lengths=LENGTHS, threads=st.integers(1, 3), tokens_max=st.integers(1, 200))
def test_rows_do_not_depend_on_threads_or_sub_batches(lengths: list[int], threads: int, tokens_max: int) -> None:
    torch.manual_seed(0)
    encoder = PackedEncoder(encoder_config(FAMILIES["bert"])).eval()
    ids, before = texts(lengths), torch.get_num_threads()
    served = CpuEncoder(encoder, threads, tokens_max).encode(ids)
    with torch.inference_mode():
        np.testing.assert_allclose(served, encoder(pack(ids)).numpy(), atol=1e-5)
    assert torch.get_num_threads() == before


def test_a_workspace_is_used_again_without_a_trace_of_the_batch_before() -> None:
    torch.manual_seed(0)
    encoder = PackedEncoder(encoder_config(FAMILIES["bert"])).eval()
    served, workspace = InferenceEncoder(encoder), Workspace(encoder.config)
    small = pack(texts([5, 2, 9]))
    first = served(small, workspace)
    served(pack(texts([40] * 20)), workspace)
    torch.testing.assert_close(served(small, workspace), first, atol=0, rtol=0)


def test_no_texts_are_no_rows() -> None:
    assert CpuEncoder(PackedEncoder(encoder_config(FAMILIES["bert"]))).encode([]).shape == (0, 32)


def test_what_goes_wrong_in_a_sub_batch_is_raised_and_the_next_call_works() -> None:
    served = CpuEncoder(PackedEncoder(encoder_config(FAMILIES["bert"])).eval(), threads=2)
    with pytest.raises(IndexError):
        served.encode([np.array([3, 10_000], np.int32), *texts([4])])
    assert np.isfinite(served.encode(texts([4, 7]))).all()


@given(st.lists(st.integers(1, 500), max_size=80), st.integers(1, 8), st.integers(1, 2000))
def test_even_chunks_hold_every_text_once_and_load_workers_alike(
    lengths: list[int], workers: int, tokens_max: int
) -> None:
    parts = even_chunks(lengths, workers, tokens_max)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(parts)
    assert len(parts) >= min(workers, len(lengths))
    sums = [sum(lengths[i] for i in part) for part in parts]
    longest = max(lengths, default=0)
    for total in sums:
        assert total <= tokens_max + longest
    if len(lengths) > len(parts):
        assert max(sums) - sum(sums) / len(sums) <= longest
