"""The 4-bit file, written here byte by byte, gives the weights that it holds."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from model.errors import ModelError
from model.packing import pack
from model.training.packed4 import read_packed4

HIDDEN, LAYERS, HEADS, INTERMEDIATE, POSITIONS, TYPES = 32, 2, 2, 64, 16, 2
PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁good", -3.0), ("好", -4.0)]


def q4(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Blocks of 32 weights, and what they stand for."""
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 7).astype(np.float16)
    nibbles = np.clip(np.rint(blocks / scale.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = np.concatenate([scale.view(np.uint8), nibbles[:, :16] | nibbles[:, 16:] << 4], axis=1)
    return packed.tobytes(), ((nibbles.astype(np.float32) - 8) * scale.astype(np.float32)).reshape(values.shape)


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "emb.word": (len(PIECES), HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (TYPES, HIDDEN),
        "emb.ln.w": (HIDDEN,),
        "emb.ln.b": (HIDDEN,),
    }
    for n in range(LAYERS):
        for name in ("q", "k", "v", "ao"):
            found |= {f"l{n}.{name}.w": (HIDDEN, HIDDEN), f"l{n}.{name}.b": (HIDDEN,)}
        found |= {f"l{n}.fi.w": (INTERMEDIATE, HIDDEN), f"l{n}.fi.b": (INTERMEDIATE,)}
        found |= {f"l{n}.fo.w": (HIDDEN, INTERMEDIATE), f"l{n}.fo.b": (HIDDEN,)}
        for name in ("aln", "oln"):
            found |= {f"l{n}.{name}.w": (HIDDEN,), f"l{n}.{name}.b": (HIDDEN,)}
    return found


def write(path: Path) -> dict[str, np.ndarray]:
    """A tiny file of the format; the weights in it by name."""
    rng, weights, parts = np.random.default_rng(0), {}, []
    for name, shape in shapes().items():
        value = rng.normal(scale=0.3, size=shape).astype(np.float32)
        quantised = len(shape) == 2 and name not in ("emb.pos", "emb.type")
        raw, weights[name] = q4(value) if quantised else (value.tobytes(), value)
        parts.append((name, int(quantised), value.size, raw))
    blob = "".join(piece for piece, _ in PIECES).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece, _ in PIECES)])
    head = b"E5S1" + struct.pack("<i7i", 1, HIDDEN, LAYERS, HEADS, INTERMEDIATE, len(PIECES), POSITIONS, TYPES)
    head += struct.pack("<fi", 1e-12, 32) + struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob))
    head += ends.astype("<u4").tobytes() + np.array([s for _, s in PIECES], "<f4").tobytes() + blob
    head += struct.pack("<iI", 0, 0) + struct.pack("<i", len(parts))
    directory = sum(2 + len(name) + 21 for name, *_ in parts)
    at = len(head) + directory
    for name, kind, numbers, raw in parts:
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, numbers, at, len(raw))
        at += len(raw)
    path.write_bytes(head + b"".join(raw for *_, raw in parts))
    return weights


def test_weights_and_pieces_come_out_as_written(tmp_path: Path) -> None:
    weights = write(tmp_path / "tiny.bin")
    read = read_packed4(tmp_path / "tiny.bin")
    state = read.encoder.state_dict()
    for name, ours in (
        ("emb.word", "embeddings.word_embeddings.weight"),
        ("l1.fi.w", "encoder.layer.1.intermediate.dense.weight"),
        ("l0.aln.b", "encoder.layer.0.attention.output.LayerNorm.bias"),
    ):
        np.testing.assert_array_equal(state[ours].numpy(), weights[name])
    tokenizer = Tokenizer.from_str(read.tokenizer_json)
    assert tokenizer.encode("good 好").tokens == ["<s>", "▁good", "▁", "好", "</s>"]
    assert tokenizer.encode("good").ids == [0, 5, 2]
    with torch.inference_mode():
        assert read.encoder(pack([np.array([0, 5, 2], np.int32)])).shape == (1, HIDDEN)


def test_another_or_a_cut_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "tiny.bin")
    raw = (tmp_path / "tiny.bin").read_bytes()
    for content, word in ((b"GGUF" + raw[4:], "begin with"), (raw[:300], "damaged"), (raw[:-200], "damaged")):
        (tmp_path / "bad.bin").write_bytes(content)
        with pytest.raises(ModelError, match=word):
            read_packed4(tmp_path / "bad.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        read_packed4(tmp_path / "none.bin")
