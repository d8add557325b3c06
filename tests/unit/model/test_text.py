"""Text to input: the same in training and serving, for any string."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ArtifactError
from model.text import TextCodec, TextSpec, grams_of, hash_grams, normalise
from model.training.vocabulary import wordpiece_tokenizer

PIECES = [*"abcdefghij", *[f"##{c}" for c in "abcdefghij"], *"好坏退款快递", "😀", "good"]
TOKENIZER = wordpiece_tokenizer(PIECES, lower=True)
UNKNOWN, CLS, SEP = 1, 2, 3
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)


@settings(max_examples=300)
@given(ANY_TEXT, st.booleans())
def test_normalise_is_idempotent_and_never_raises(text: str, lower: bool) -> None:
    once = normalise(text, lower=lower)
    assert normalise(once, lower=lower) == once


@given(ANY_TEXT)
def test_prepare_never_raises_and_keeps_its_bounds(text: str) -> None:
    codec = TextCodec(TOKENIZER, TextSpec(max_tokens=16, gram_buckets=256))
    (prepared,) = codec.prepare([text])
    assert 2 <= prepared.tokens <= 16
    assert prepared.ids[0] == CLS
    assert prepared.ids[-1] == SEP
    assert ((prepared.grams >= 0) & (prepared.grams < 256)).all()
    assert (np.diff(prepared.grams) > 0).all()


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("ＡＢＣ　１２３", "ABC 123"),
        ("a\x00b\x07c", "abc"),
        ("  two \t\n lines\u2028end ", "two lines end"),
        ("好👍🏽👨‍👩‍👧", "好👍🏽👨‍👩‍👧"),
        ("\ufeffzero\u200bwidth", "zerowidth"),
        ("half \ud83d surrogate", "half surrogate"),
    ],
)
def test_normalise_examples(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


def test_chinese_is_single_characters_and_emoji_are_known() -> None:
    codec = TextCodec(TOKENIZER, TextSpec(max_tokens=16))
    ids = codec.prepare(["退款好😀"])[0].ids
    assert UNKNOWN not in ids
    assert len(ids) == 6


def test_long_texts_keep_head_and_tail() -> None:
    codec = TextCodec(TOKENIZER, TextSpec(max_tokens=10, head_share=0.75))
    whole = codec.prepare(["a b c d e f g h"])[0].ids
    cut = codec.prepare(["a b c d e f g h i j a b"])[0].ids
    assert len(whole) == len(cut) == 10
    assert cut[1:7].tolist() == whole[1:7].tolist()
    assert cut[7:9].tolist() == codec.prepare(["a b"])[0].ids[1:3].tolist()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_whatever_the_share_a_cut_text_has_as_many_tokens_as_are_allowed(share: float) -> None:
    codec = TextCodec(TOKENIZER, TextSpec(max_tokens=10, head_share=share))
    text = "a b c d e f g h i j a b"
    ids, (clean, spans) = codec.prepare([text])[0].ids, codec.pieces(text)
    assert len(ids) == len(spans) == 10
    kept = [clean[start:end] for start, end in filter(None, spans)]
    assert kept == [*text.split()[: int(8 * share)], *text.split()[12 - 8 + int(8 * share) :]]
    assert ids[1:-1].tolist() == [codec.prepare([word])[0].ids[1] for word in kept]


def test_a_megabyte_is_cut_before_the_tokenizer_sees_it() -> None:
    codec = TextCodec(TOKENIZER, TextSpec(max_tokens=16, gram_buckets=1 << 20, gram_units_max=512))
    (prepared,) = codec.prepare(["好" * 1_000_000])
    assert prepared.tokens == 16
    assert len(prepared.grams) == 3  # one distinct n-gram of each order


def test_grams_depend_on_order_and_are_distinct_by_length() -> None:
    ab, ba = (hash_grams(np.array(ids, np.uint64), 1 << 20, (1, 2)) for ids in ([5, 6], [6, 5]))
    assert len(ab) == len(ba) == 3
    assert len(set(ab) & set(ba)) == 2  # the two single units
    assert not len(hash_grams(np.array([1, 2], np.uint64), 0, (1, 2)))


def test_grams_are_of_characters_in_chinese_and_of_words_elsewhere() -> None:
    spec = TextSpec(gram_buckets=1 << 20, gram_orders=(1,))
    assert len(grams_of("退款 refund", spec)) == 3
    assert set(grams_of("refund", spec)) < set(grams_of("退款Refund!", spec))  # case does not matter, nor the border
    assert not set(grams_of("refunds", spec)) & set(grams_of("refund", spec))


def test_a_broken_tokenizer_is_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        TextCodec("{}", TextSpec())
    with pytest.raises(ArtifactError, match="max_tokens"):
        TextCodec(TOKENIZER, TextSpec(max_tokens=3))
