"""A bilingual vocabulary cut from a larger one: the word pieces seen, every Chinese character seen, emoji.

Rows of the old embedding matrix are kept where a piece stands in it; the rest begins as noise of that matrix's spread.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from model.text import normalise

UNKNOWN = "[UNK]"
SPECIAL = ["[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS_MAX = 5000
COUNT_MIN = 2


def wordpiece_tokenizer(pieces: Sequence[str], *, lower: bool) -> str:
    """tokenizer.json of a BERT-style tokenizer over SPECIAL and ``pieces`` (single Chinese characters)."""
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*SPECIAL, *pieces]))}
    tokenizer = Tokenizer(WordPiece(vocab=vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=64))
    tokenizer.normalizer = BertNormalizer(lowercase=lower, strip_accents=lower)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return tokenizer.to_str()


def is_chinese(character: str) -> bool:
    """CJK ideographs, as BERT's normaliser splits them."""
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2FA1F or 0xF900 <= code <= 0xFAFF
    )


def choose_pieces(texts: Iterable[str], old: Tokenizer, size: int) -> list[str]:
    """About ``size`` pieces for these texts: single ASCII characters and their continuations (no English word is
    unknown), Chinese characters and symbols by count, then the old tokenizer's pieces by count."""
    characters: Counter[str] = Counter()
    pieces: Counter[str] = Counter()
    for batch in _batches(texts, 512):
        clean = [normalise(text, lower=True) for text in batch]
        for text in clean:
            characters.update(c for c in text if not c.isascii())
        for encoding in old.encode_batch_fast(clean, add_special_tokens=False):
            pieces.update(old.id_to_token(i) or UNKNOWN for i in encoding.ids)
    ascii_marks = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    basics = ascii_marks + [f"##{c}" for c in ascii_marks if c.isalnum()]
    common = [c for c, n in characters.most_common() if n >= COUNT_MIN and unicodedata.category(c)[0] not in "CZ"]
    chinese = [c for c in common if is_chinese(c)][:CHARACTERS_MAX]
    symbols = [c for c in common if not is_chinese(c)][:600]
    glued = [f"##{c}" for c in symbols if not _stands_alone(c)]  # an emoji after another is a continuation
    first = list(dict.fromkeys([*basics, *chinese, *symbols, *glued]))
    known = set(first) | set(SPECIAL)
    rest = [p for p, n in pieces.most_common() if p not in known and n >= COUNT_MIN and not _single_chinese(p)]
    return first + rest[: max(0, size - len(first) - len(SPECIAL))]


def transfer_rows(pieces: Sequence[str], old: Tokenizer, rows: torch.Tensor, seed: int) -> torch.Tensor:
    """Embedding rows [len(SPECIAL + pieces), hidden] for ``wordpiece_tokenizer(pieces)``."""
    names = list(dict.fromkeys([*SPECIAL, *pieces]))
    generator = torch.Generator().manual_seed(seed)
    spread = float(rows.std())
    fresh = rows.mean(0) + torch.randn(len(names), rows.shape[1], generator=generator) * spread
    for i, name in enumerate(names):
        place = old.token_to_id(name)
        if place is not None:
            fresh[i] = rows[place]
    return fresh


def pieces_of(tokenizer_json: str) -> list[str]:
    """The pieces of a WordPiece tokenizer.json, by id."""
    vocabulary: dict[str, int] = json.loads(tokenizer_json)["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _single_chinese(piece: str) -> bool:
    bare = piece.removeprefix("##")
    return len(bare) == 1 and is_chinese(bare)


def _stands_alone(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def _batches(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
