"""A vocabulary cut down keeps what texts need, and the numbering stays sound."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from model.encoder import EncoderConfig, PackedEncoder
from model.errors import ModelError
from model.packing import pack
from model.text import TextCodec, TextSpec
from model.training.foreign import cut
from model.training.vocabulary import prune, wordpiece_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDPIECE = wordpiece_tokenizer(
    [*LETTERS, *[f"##{c}" for c in LETTERS], "good", "bad", "##ge", "rare", *"好坏退款慢", *"0123456789"], lower=True
)
TEXTS = ["good badge 好退款", "good 好退款", "bad good 好 badge"]


def unigram() -> str:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(c, -9.0) for c in [*LETTERS, *LETTERS.upper()]] + [("▁good", -5.0), ("▁bad", -5.0), ("▁seldom", -6.0)]
    pieces += [("好", -8.0), ("退款", -7.0), ("退", -9.0), ("慢", -9.0)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return str(tokenizer.to_str())


@pytest.mark.parametrize("tokenizer_json", [WORDPIECE, unigram()], ids=["wordpiece", "unigram"])
def test_texts_read_the_same_after_the_cut(tokenizer_json: str) -> None:
    smaller, kept = prune(tokenizer_json, TEXTS, 200, lower=True)
    old, new = Tokenizer.from_str(tokenizer_json), Tokenizer.from_str(smaller)
    assert new.get_vocab_size() == len(kept) < old.get_vocab_size()
    for text in TEXTS:
        assert new.encode(text).tokens == old.encode(text).tokens
        assert [kept[i] for i in new.encode(text).ids] == old.encode(text).ids
    names = set(new.get_vocab())
    assert not names & {"rare", "▁seldom"}  # not in the texts
    assert "慢" in names  # Chinese characters stay though unseen, while there is room


def test_no_english_word_is_unknown_after_the_cut() -> None:
    smaller, _ = prune(unigram(), TEXTS, 60, lower=True)
    new = Tokenizer.from_str(smaller)
    unknown = new.token_to_id("<unk>")
    assert unknown not in new.encode("an unseen word zygote").ids
    assert unknown in new.encode("é").ids
    assert new.get_vocab_size() <= 60


def test_a_size_too_small_keeps_the_special_pieces() -> None:
    _, kept = prune(WORDPIECE, TEXTS, 20, lower=True)
    assert len(kept) == 20
    assert {1, 2, 3} <= set(kept)  # unknown, begin, end


def test_other_kinds_of_vocabulary_are_refused_with_advice() -> None:
    with pytest.raises(ModelError, match="vocabulary: 0"):
        prune(str(Tokenizer(BPE()).to_str()), TEXTS, 100, lower=True)


def test_the_cut_encoder_answers_as_the_whole_one() -> None:
    torch.manual_seed(0)
    smaller, kept = prune(WORDPIECE, TEXTS, 90, lower=True)
    whole = PackedEncoder(EncoderConfig("packed", 120, 16, 3, 2, 32, 40)).eval()
    part = cut(whole, rows=kept, positions=24, layers=[]).eval()
    assert (part.config.vocab_size, part.config.positions, part.config.layers) == (len(kept), 24, 3)
    spec = TextSpec(max_tokens=24)
    old, new = (TextCodec(t, spec).prepare(TEXTS) for t in (WORDPIECE, smaller))
    with torch.inference_mode():
        a, b = whole(pack([p.ids for p in old])), part(pack([p.ids for p in new]))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_layers_are_taken_by_number() -> None:
    whole = PackedEncoder(EncoderConfig("packed", 20, 16, 4, 2, 32, 40))
    part = cut(whole, rows=[], positions=40, layers=[0, 3])
    for ours, theirs in ((0, 0), (1, 3)):
        torch.testing.assert_close(
            part.state_dict()[f"encoder.layer.{ours}.output.dense.weight"],
            whole.state_dict()[f"encoder.layer.{theirs}.output.dense.weight"],
        )
    with pytest.raises(ModelError, match="names 4"):
        cut(whole, rows=[], positions=40, layers=[4])
