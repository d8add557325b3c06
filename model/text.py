"""Text to model input, one code for training and serving: normalise, tokenise, cut, hash n-grams."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from model.errors import ArtifactError
from model.scoring import Ints, Prepared

# Control characters, invisible format characters and lone surrogates. Kept: whitespace (folded below) and, for
# emoji, the zero-width joiner and variation selectors.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ud800-\udfff]"
)
_SPACE = re.compile(r"\s+")
_CHARACTERS_PER_TOKEN_MAX = 64  # bounds the work on a megabyte of text before it is tokenised
_MIX = np.uint64(0x9E3779B97F4A7C15)
_EMPTY: Ints = np.zeros(0, np.int32)


def normalise(text: str, *, lower: bool = False) -> str:
    """Unicode NFKC without control characters, whitespace folded to single spaces, lower-cased on request.

    Idempotent; never raises. Emoji stay.
    """
    text = _INVISIBLE.sub("", text)
    text = unicodedata.normalize("NFKC", text)
    if lower:
        # Lower-casing can leave a sequence that NFKC composes (and the reverse), hence the second pass.
        text = unicodedata.normalize("NFKC", text.lower())
    return _SPACE.sub(" ", text).strip()


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How texts become input. Stored in the artifact."""

    max_tokens: int = 128
    head_share: float = 0.75  # of a cut text's tokens, the share kept from its beginning
    lower: bool = True
    gram_buckets: int = 0  # 0: no n-gram channel
    gram_orders: tuple[int, ...] = (1, 2, 3)
    gram_tokens_max: int = 512

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"gram_orders": list(self.gram_orders)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "TextSpec":
        return cls(**(dict(content) | {"gram_orders": tuple(content["gram_orders"])}))


class TextCodec:
    """Turns texts into ``Prepared`` with a ``tokenizer.json``."""

    def __init__(self, tokenizer_json: str, spec: TextSpec) -> None:
        """Raises ArtifactError when the tokenizer cannot be read."""
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise ArtifactError(f"tokenizer.json cannot be read ({error}); fetch the model folder again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.spec = spec
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        start = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), 0)
        self._prefix = np.array(full[:start], np.int32)
        self._suffix = np.array(full[start + len(bare) :], np.int32)
        self._room = spec.max_tokens - len(self._prefix) - len(self._suffix)
        if self._room < 2:
            raise ArtifactError(f"max_tokens {spec.max_tokens} leaves no room for text; raise it")

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        """Normalise, tokenise, hash and cut. Never raises on any string."""
        spec = self.spec
        clean = [normalise(self._cut_text(text), lower=spec.lower) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [self._one(np.array(encoding.ids, np.int32)) for encoding in encodings]

    def _cut_text(self, text: str) -> str:
        limit = _CHARACTERS_PER_TOKEN_MAX * self.spec.max_tokens
        if len(text) <= limit:
            return text
        head = int(limit * self.spec.head_share)
        return text[:head] + " " + text[head - limit :]

    def _one(self, ids: Ints) -> Prepared:
        spec = self.spec
        grams = hash_grams(ids[: spec.gram_tokens_max], spec.gram_buckets, spec.gram_orders)
        if len(ids) > self._room:
            head = int(self._room * spec.head_share)
            ids = np.concatenate([ids[:head], ids[head - self._room :]])
        return Prepared(np.concatenate([self._prefix, ids, self._suffix]), grams)


def hash_grams(ids: Ints, buckets: int, orders: Sequence[int]) -> Ints:
    """Sorted distinct buckets of the n-grams of token ids: characters in Chinese, word pieces in English.

    ``buckets`` must be a power of two; with 0 the result is empty.
    """
    if not buckets or not len(ids):
        return _EMPTY
    token = ids.astype(np.uint64) + np.uint64(1)
    parts = []
    for order in orders:
        if len(token) < order:
            break
        code = np.full(len(token) - order + 1, order, np.uint64)
        for k in range(order):  # uint64 arithmetic wraps: that is the hash
            code = (code ^ token[k : k + len(code)]) * _MIX
            code ^= code >> np.uint64(29)
        parts.append(code)
    hashed = np.concatenate(parts) & np.uint64(buckets - 1)
    return np.unique(hashed).astype(np.int32)
