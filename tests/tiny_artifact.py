"""A tiny artifact for tests: own small vocabulary with Chinese characters, random weights, all heads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.bag import GramBag
from model.encoder import EncoderConfig, build_encoder
from model.golden import save_with_golden
from model.network import Network
from model.text import TextSpec
from model.torch_scorer import tensors_from
from model.training.vocabulary import wordpiece_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ["the", "order", "cancel", "refund", "good", "bad", "card", "late", "my", "please", "thank", "movie", "guitar"]
CHINESE = "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生快递退款好差屏幕坏客服很喜欢"
PUNCTUATION = list(",.!?'-():;。、")
HEADS = {
    "sentiment": ["negative", "neutral", "positive"],
    "sentiment.finance": ["negative", "neutral", "positive"],
    "category": [f"category_{i}" for i in range(10)],
    "topic": [f"topic_{i}" for i in range(15)],
    "stars": ["1", "2", "3", "4", "5"],
    "emotion": ["angry", "fear", "happy", "neutral", "sad", "surprise"],
    "intent.shop": ["cancel_order", "track_order", "get_refund"] + [f"shop_{i}" for i in range(24)],
    "intent.banking": [f"banking_{i}" for i in range(77)],
    "intent.general": [f"general_{i}" for i in range(150)] + ["oos"],
}
COLUMNS = 8
BUCKETS = 1 << 10


def make_tiny_artifact(
    folder: Path, hidden: int = 32, layers: int = 2, seed: int = 0, sentiments: Sequence[str] = HEADS["sentiment"]
) -> Path:
    """Write a random but complete artifact into ``folder`` and return it. Same seed, same artifact."""
    heads = HEADS | {"sentiment": [*sentiments]}
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pieces = list(LETTERS) + [f"##{c}" for c in LETTERS] + WORDS + sorted(set(CHINESE)) + PUNCTUATION
    tokenizer_json = wordpiece_tokenizer(pieces, lower=True)
    vocabulary = len(json.loads(tokenizer_json)["model"]["vocab"])
    config = EncoderConfig("packed", vocabulary, hidden, layers, 4, 2 * hidden, 64)
    bag = GramBag.quantised(
        np.arange(BUCKETS) % 2 == 0,
        rng.normal(size=(BUCKETS // 2, COLUMNS)).astype(np.float32),
        np.ones(COLUMNS, np.float32),
        np.zeros(COLUMNS, np.float32),
        np.ones(BUCKETS // 2, np.float32),
    )
    network = Network(build_encoder(config), bag, {name: len(labels) for name, labels in heads.items()})
    tensors = tensors_from(network)
    tensors["space.mean"] = np.zeros(network.hidden, np.float32)
    tensors["space.projection"] = rng.normal(size=(network.hidden, 64)).astype(np.float32)
    manifest: dict[str, Any] = {
        "name": "tiny",
        "text": TextSpec(max_tokens=64, gram_buckets=BUCKETS).to_dict(),
        "encoder": config.to_dict(),
        "bag_columns": COLUMNS,
        "bag_grams": BUCKETS // 2,
        "heads": {
            name: {"labels": labels, "temperature": 1.0, "threshold": 0.02 if name.startswith("intent.") else None}
            for name, labels in heads.items()
        },
        "metrics": {},
        "data": {},
    }
    save_with_golden(folder, manifest, tensors, tokenizer_json)
    return folder
