"""Text to model input, one code for training and serving: normalise, tokenise, cut, hash n-grams."""

import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from model.errors import ArtifactError
from model.scoring import Ints, Prepared

# Control characters, invisible format characters and lone surrogates. Kept: whitespace (folded below) and, for
# emoji, the zero-width joiner and variation selectors.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ud800-\udfff]"
)
_UNIT = re.compile(r"[a-z0-9]+|\S")  # of the n-gram channel: a word of Latin letters or digits, else one character
_CHARACTERS_PER_TOKEN_MAX = 64  # bounds the work on a megabyte of text before it is tokenised
_WORD = 1 << 32  # words are numbered above all characters
_MIX = np.uint64(0x9E3779B97F4A7C15)
_EMPTY: Ints = np.zeros(0, np.int32)


def normalise(text: str, *, lower: bool = False) -> str:
    """Unicode NFKC without control characters, whitespace folded to single spaces, lower-cased on request.

    Idempotent; never raises. Emoji stay.
    """
    if not text.isprintable():
        text = _INVISIBLE.sub("", text)
    if text.isascii():
        return " ".join((text.lower() if lower else text).split())
    text = unicodedata.normalize("NFKC", text)
    if lower:
        # Lower-casing can leave a sequence that NFKC composes (and the reverse), hence the second pass.
        text = unicodedata.normalize("NFKC", text.lower())
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How texts become input. Stored in the artifact."""

    max_tokens: int = 128
    head_share: float = 0.75  # of a cut text's tokens, the share kept from its beginning, 0 to 1
    lower: bool = True
    gram_buckets: int = 0  # 0: no n-gram channel
    gram_orders: tuple[int, ...] = (1, 2, 3)
    gram_units_max: int = 512

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
        return [
            Prepared(self._cut(np.array(encoding.ids, np.int32)), grams_of(text, spec))
            for text, encoding in zip(clean, encodings, strict=True)
        ]

    def read_parts(self, text: str) -> list[tuple[int, int]]:
        """The spans of a text that are read at all: the whole, or head and tail of a very long one."""
        limit = _CHARACTERS_PER_TOKEN_MAX * self.spec.max_tokens
        if len(text) <= limit:
            return [(0, len(text))]
        head = int(limit * self.spec.head_share)
        return [(0, head), (len(text) + head - limit, len(text))]

    def pieces(self, text: str) -> tuple[str, list[tuple[int, int] | None]]:
        """The normalised text that is read, and for every id of ``prepare([text])`` its span there; None for the
        tokenizer's special tokens. For explanations: serving needs no spans."""
        clean = normalise(self._cut_text(text), lower=self.spec.lower)
        spans: list[tuple[int, int] | None] = list(self._tokenizer.encode(clean, add_special_tokens=False).offsets)
        if len(spans) > self._room:
            head = int(self._room * self.spec.head_share)
            spans = spans[:head] + spans[len(spans) + head - self._room :]
        return clean, [None] * len(self._prefix) + spans + [None] * len(self._suffix)

    def piece_id(self, *names: str) -> int | None:
        """The id of the first of these pieces that the vocabulary has."""
        found = (self._tokenizer.token_to_id(name) for name in names)
        return next((int(piece) for piece in found if piece is not None), None)

    def _cut_text(self, text: str) -> str:
        return " ".join(text[start:end] for start, end in self.read_parts(text))

    def _cut(self, ids: Ints) -> Ints:
        if len(ids) > self._room:
            head = int(self._room * self.spec.head_share)
            ids = np.concatenate([ids[:head], ids[len(ids) + head - self._room :]])
        return np.concatenate([self._prefix, ids, self._suffix])


def is_chinese(character: str) -> bool:
    """CJK ideographs, as BERT's normaliser splits them."""
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2FA1F or 0xF900 <= code <= 0xFAFF
    )


def grams_of(clean: str, spec: TextSpec) -> Ints:
    """Hashed n-grams of a normalised text: of characters in Chinese, of words elsewhere. Independent of the tokenizer,
    so that a cut vocabulary or another encoder leaves the channel as it is."""
    if not spec.gram_buckets:
        return _EMPTY
    found = _UNIT.findall(clean.lower())[: spec.gram_units_max]
    return hash_grams(_codes(found), spec.gram_buckets, spec.gram_orders)


def gram_places(clean: str, spec: TextSpec) -> list[tuple[int, list[tuple[int, int]]]]:
    """Every n-gram of a normalised text with repeats: its bucket, and the spans of its units. The buckets are those of
    ``grams_of``; for explanations."""
    if not spec.gram_buckets:
        return []
    ends = np.cumsum([0, *(len(character.lower()) for character in clean)])  # lower-casing can lengthen a character
    found = [match for match, _ in zip(_UNIT.finditer(clean.lower()), range(spec.gram_units_max), strict=False)]
    spans = [
        (int(np.searchsorted(ends, m.start(), "right")) - 1, int(np.searchsorted(ends, m.end(), "left"))) for m in found
    ]
    codes = _codes([match.group() for match in found])
    return [
        (int(hash_grams(codes[i : i + order], spec.gram_buckets, (order,))[0]), spans[i : i + order])
        for order in spec.gram_orders
        for i in range(len(codes) - order + 1)
    ]


def _codes(units: Sequence[str]) -> npt.NDArray[np.uint64]:
    return np.array([ord(u) if len(u) == 1 else zlib.crc32(u.encode()) | _WORD for u in units], np.uint64)


def hash_grams(units: npt.NDArray[np.uint64], buckets: int, orders: Sequence[int]) -> Ints:
    """Sorted distinct buckets of the n-grams of unit codes.

    ``buckets`` must be a power of two; with 0 the result is empty.
    """
    if not buckets or not len(units):
        return _EMPTY
    token = units.astype(np.uint64) + np.uint64(1)
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
