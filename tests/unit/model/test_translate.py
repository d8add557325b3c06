"""Translation on a tiny model with random weights: what is said is nonsense, how it is said must be right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from model.data import Example
from model.errors import DataError, ModelError
from model.training import extra
from model.training.augmentation import Augmentation, BackTranslation
from model.training.extra import extra_rows
from model.training.recipe import Dataset, Head, Recipe
from model.training.translate import BATCH, TOKENS_MAX, Translator
from model.training.vocabulary import wordpiece_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
POSITIONS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Marian model of 64 positions whose vocabulary is letters, and `zz` for a language."""
    folder = tmp_path_factory.mktemp("marian")
    pieces = ["zz", *LETTERS, *[f"##{c}" for c in LETTERS]]
    tokenizer = Tokenizer.from_str(wordpiece_tokenizer(pieces, lower=True))
    words = tokenizer.get_vocab()
    pad, end = words["[PAD]"], words["[SEP]"]
    special = {"pad_token": "[PAD]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(11)
    shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16}
    tokens = {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": pad, "forced_eos_token_id": end}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = MarianConfig(
        vocab_size=len(words), max_position_embeddings=POSITIONS, init_std=1.0, **shape, **heads, **tokens
    )
    model = MarianMTModel(config)
    model.final_logits_bias[0, end] = 4  # without it random weights come to no end
    model.generation_config = GenerationConfig(num_beams=4, **tokens)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def translator(folder: Path) -> Translator:
    return Translator(str(folder), device="cpu")


def test_every_text_has_its_own_translation_whatever_its_batch(translator: Translator) -> None:
    texts = [LETTERS[i % 26] * (1 + i % 7) + " " + LETTERS[i % 5] for i in range(BATCH + 9)]
    together = translator.translate(texts)
    assert len(together) == len(texts)
    assert len(set(together)) > 1
    assert together == translator.translate(texts)
    assert together[::-1] == translator.translate(texts[::-1])
    for i in (0, 6, 30, BATCH + 8):
        assert translator.translate([texts[i]]) == [together[i]]
    assert translator.translate([]) == []
    assert translator.translate(["", " \n"]) == ["", ""]


def test_lengths_are_bounded(translator: Translator) -> None:
    assert TOKENS_MAX > POSITIONS  # here the model's positions bind
    long = "a b c " * 20_000
    (result,) = translator.translate([long])
    assert len(result.replace(" ", "")) <= POSITIONS
    assert translator.fits(["a b c", long, "a " * (POSITIONS - 2), "a " * (POSITIONS - 1)]) == [
        True,
        False,
        True,
        False,
    ]


def test_a_translation_without_an_end_is_empty(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    a, end = (translator._tokenizer.get_vocab()[token] for token in ("a", "[SEP]"))
    bound = 2 * 4 + 16  # of `a b` and the tokens around it
    ended, cut = [end, *[a] * (bound - 1), end, end], [end, *[a] * bound, end]  # the latter's end was forced
    monkeypatch.setattr(translator._model, "generate", lambda **_: torch.tensor([ended, cut]))
    assert translator.translate(["a b", "b a"]) == [" ".join("a" * (bound - 1)), ""]


def test_a_language_is_forced_where_it_is_named(folder: Path) -> None:
    (result,) = Translator(str(folder), ["en", "zz"], device="cpu").translate(["a b"])
    assert result.startswith("zz")
    with pytest.raises(ModelError, match="knows no language 'fr'"):
        Translator(str(folder), ["en", "fr"], device="cpu")


@pytest.mark.parametrize("damage", ["absent", "no weights", "half the weights", "not a translator"])
def test_a_model_that_cannot_be_had_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "model"
    if damage != "absent":
        broken.mkdir()
        for path in folder.iterdir():
            (broken / path.name).write_bytes(path.read_bytes())
    weights = broken / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    if damage == "half the weights":
        weights.write_bytes(weights.read_bytes()[:2000])
    if damage == "not a translator":
        (broken / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match=r"translation model '.*model' cannot be loaded \(.+\); give a folder"):
        Translator(str(broken), device="cpu")


def asking(there: str, back: str) -> tuple[Recipe, list[Example], np.ndarray, np.ndarray]:
    settings = Augmentation(copies=0, back_translation=BackTranslation(there, back, share=0.5))
    recipe = Recipe("toy", "none", {"mood": Head()}, [Dataset("own", file="x", augment=settings)])
    examples = [Example(f"{LETTERS[i % 26]} {LETTERS[i % 7]} b", {"mood": "good"}) for i in range(40)]
    free = np.arange(40) % 4 != 0
    return recipe, examples, np.zeros(40, np.int64), free


def test_back_translations_are_made_of_free_rows_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "LENGTH_RATIO_MAX", 100)  # random weights ramble
    asked = asking(str(folder), str(folder))
    made = extra_rows(*asked, keep=tmp_path / "augmented")
    assert 2 <= len(made) <= 25
    assert all(asked[3][row] for row, _ in made)
    assert all(text.strip() for _, text in made)
    assert made == extra_rows(*asked)  # made anew, the same
    monkeypatch.setattr("model.training.translate.Translator.__init__", _never)
    assert made == extra_rows(*asked, keep=tmp_path / "augmented")
    others = [Example(example.text + " c", example.labels) for example in asked[1]]
    with pytest.raises(AssertionError, match="loaded"):  # other rows: the file is of no use
        extra_rows(asked[0], others, *asked[2:], keep=tmp_path / "augmented")


def _never(*_: object) -> None:
    raise AssertionError("loaded")


def test_what_went_astray_is_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asking(str(folder), str(folder))
    answers = {"a a b": "", "b b b": "b" * 50, "c c b": "c c b"}  # nothing, rambling, the text itself
    monkeypatch.setattr(Translator, "translate", lambda _, texts: [answers.get(t, t + " x") for t in texts])
    made = extra_rows(*asked)
    assert made
    assert all(text.endswith(" x") for _, text in made)


def test_what_the_way_back_would_not_read_whole_is_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = " b" * POSITIONS

    def translate(_: Translator, texts: list[str]) -> list[str]:
        return [text.removesuffix(long) + (long if text < "m" else " x") for text in texts]

    monkeypatch.setattr(extra, "LENGTH_RATIO_MAX", 100)
    monkeypatch.setattr(Translator, "translate", translate)
    made = extra_rows(*asking(str(folder), str(folder)))
    assert made
    assert all(text >= "m" for _, text in made)


def test_a_model_that_is_not_there_stops_training_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        extra_rows(*asking(str(tmp_path / "nowhere"), str(tmp_path / "nowhere")))
    damaged = tmp_path / "back_translations.0.jsonl"
    damaged.write_text("{half")
    with pytest.raises(DataError, match=r"back_translations\.0\.jsonl:1"):
        extra_rows(*asking("a", "b"), keep=tmp_path)
