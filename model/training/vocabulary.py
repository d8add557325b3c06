"""Vocabularies: cutting a pretrained tokenizer down to the pieces that matter, and a small one for tests.

A multilingual vocabulary is most of a small encoder's size (96 of 118 million weights in multilingual-e5-small), and a
shop's texts use a tenth of it. Rows of the pieces that stay are kept as they are.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from model.errors import ModelError
from model.text import is_chinese, normalise

UNKNOWN = "[UNK]"
SPECIAL = ["[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS_MAX = 5000  # Chinese characters that are kept though the texts do not show them
COUNT_MIN = 2
_MARKS = ("##", "▁")  # how WordPiece marks a continuation and a unigram vocabulary a beginning


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


def prune(tokenizer_json: str, texts: Iterable[str], size: int, *, lower: bool) -> tuple[str, list[int]]:
    """A tokenizer.json of about ``size`` pieces, and the old id of each new one.

    Kept, in this order until ``size`` is reached: special pieces and single ASCII characters (so that no English word
    is unknown), pieces that these texts use, by count, with every Chinese character among them, and Chinese
    characters common elsewhere. Raises ModelError for a tokenizer that is neither WordPiece nor unigram.
    """
    content = json.loads(tokenizer_json)
    names = _names(content["model"])
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counts: Counter[int] = Counter()
    for batch in _batches(texts, 512):
        clean = [normalise(text, lower=lower) for text in batch]
        for encoding in tokenizer.encode_batch_fast(clean, add_special_tokens=False):
            counts.update(encoding.ids)
    single = {i: _bare(name) for i, name in enumerate(names) if len(_bare(name)) == 1}
    basics = [i for i, c in single.items() if c.isascii() and not (lower and c.isupper())]
    bare_mark = [i for i, name in enumerate(names) if name in _MARKS]
    order = [*_special_ids(content, names), *bare_mark, *basics]
    order += [i for i, c in single.items() if counts[i] and is_chinese(c)]
    order += [i for i, n in counts.most_common() if n >= COUNT_MIN]
    order += [i for i, c in single.items() if is_chinese(c) and not counts[i]][:CHARACTERS_MAX]
    kept = sorted(list(dict.fromkeys(order))[:size])
    return _renumbered(content, names, kept), kept


def _names(model: dict[str, Any]) -> list[str]:
    if model.get("type") == "Unigram":
        return [name for name, _ in model["vocab"]]
    if model.get("type") == "WordPiece":
        return sorted(model["vocab"], key=model["vocab"].__getitem__)
    raise ModelError(
        f"a vocabulary of type {model.get('type')!r} cannot be cut; set `vocabulary: 0` in the recipe to keep it whole"
    )


def _special_ids(content: dict[str, Any], names: Sequence[str]) -> list[int]:
    ids = [token["id"] for token in content.get("added_tokens") or [] if token["id"] < len(names)]
    model = content["model"]
    ids.append(model["unk_id"] if model["type"] == "Unigram" else names.index(model["unk_token"]))
    for _, special in _processor_tokens(content):
        ids += special["ids"]
    return list(dict.fromkeys(ids))


def _processor_tokens(content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The special tokens that the post-processor adds. Raises ModelError for one that is no template."""
    processor = content.get("post_processor") or {"type": "TemplateProcessing", "special_tokens": {}}
    if processor["type"] != "TemplateProcessing":
        raise ModelError(
            f"a tokenizer with post-processor {processor['type']} cannot be cut; set `vocabulary: 0` in the recipe"
        )
    return list(processor["special_tokens"].items())


def _renumbered(content: dict[str, Any], names: Sequence[str], kept: Sequence[int]) -> str:
    new = {old: i for i, old in enumerate(kept)}
    model = content["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in kept]
        model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {names[old]: i for old, i in new.items()}
    content["added_tokens"] = [t | {"id": new[t["id"]]} for t in content.get("added_tokens") or [] if t["id"] in new]
    for _, special in _processor_tokens(content):
        special["ids"] = [new[old] for old in special["ids"]]
    return json.dumps(content, ensure_ascii=False)


def _bare(name: str) -> str:
    for mark in _MARKS:
        name = name.removeprefix(mark)
    return unicodedata.normalize("NFKC", name)


def _batches(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
