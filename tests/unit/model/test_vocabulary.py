"""The bilingual vocabulary keeps what it can of the old one."""

import torch
from tokenizers import Tokenizer

from model.text import TextCodec, TextSpec
from model.vocabulary import SPECIAL, choose_pieces, pieces_of, transfer_rows, wordpiece_tokenizer

OLD = wordpiece_tokenizer([*"abcdefgh", *[f"##{c}" for c in "abcdefgh"], "good", "bad", "##ge", "好"], lower=True)
TEXTS = ["good badge 好退款😀😀", "good 好退款😀", "badge! \ue000\ue000"]


def test_seen_pieces_chinese_and_emoji_are_chosen() -> None:
    pieces = choose_pieces(TEXTS, Tokenizer.from_str(OLD), 200)
    assert {"good", "bad", "##ge", "好", "退", "款", "😀", "##😀", "!", "z", "##z", "7"} <= set(pieces)
    assert "\ue000" not in pieces  # private use means nothing
    assert len(choose_pieces(TEXTS, Tokenizer.from_str(OLD), 120)) <= 120
    codec = TextCodec(wordpiece_tokenizer(pieces, lower=True), TextSpec())
    unknown = SPECIAL.index("[UNK]")
    assert all(unknown not in p.ids for p in codec.prepare([*TEXTS[:2], "An unseen English word: zygote42"]))


def test_known_rows_move_and_new_ones_look_alike() -> None:
    old = Tokenizer.from_str(OLD)
    rows = torch.randn(old.get_vocab_size(), 16, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    pieces = ["good", "退", "好"]
    moved = transfer_rows(pieces, old, rows, seed=1)
    names = pieces_of(wordpiece_tokenizer(pieces, lower=True))
    assert names == [*SPECIAL, *pieces]
    for name in ("[CLS]", "good", "好"):
        assert torch.equal(moved[names.index(name)], rows[old.token_to_id(name)])
    fresh = moved[names.index("退")]
    assert 0.05 < float((fresh - rows.mean(0)).std()) < 0.3
    assert torch.equal(moved, transfer_rows(pieces, old, rows, seed=1))
