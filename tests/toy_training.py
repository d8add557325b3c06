"""A training toy that can be learned in a second: two small data sets, a one-layer body, a recipe with n-grams."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from unittest import mock

import torch
import yaml
from rich.console import Console
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from model.training import plan
from model.training import train as training
from model.training.trainer import Trainer
from model.training.vocabulary import SPECIAL, wordpiece_tokenizer
from tests.tiny_artifact import CHINESE, LETTERS

RECIPE = """
name: toy
seed: 3
body: BODY
vocabulary: 200
text: {max_tokens: 24, gram_buckets: 4096}
bag: {keep: 512, folds: 2, c: 1.0, targets: [[mood, sentiment]]}
training: {body_lr: 1.0e-3, embedding_lr: 5.0e-3, head_lr: 1.0e-2, batch_tokens: 200, passes_max: 6}
calibration_share: 0.2
heads: {sentiment: {labels: [negative, neutral, positive]}, intent.shop: {threshold: true}}
datasets:
  - {name: mood, file: mood.jsonl, labels: {sentiment: sentiment}, partial: [sentiment]}
  - {name: shop, file: shop.jsonl, labels: {intent.shop: intent}, outside: {intent.shop: [refund, track]}}
space: [{file: mood.jsonl, text: [text], rows: 100}]
evaluation: [{task: sentiment, file: mood.jsonl}, {task: sentiment, file: absent.jsonl}]
"""
WORDS = {"negative": "坏 差 bad", "positive": "好 喜欢 good", "refund": "退款 refund", "track": "快递 order"}
FILLER = ["我", "的", "了", "在", "是", "the", "a", "my", "it"]


def sentence(label: str, rng: random.Random) -> str:
    words = [rng.choice(WORDS[label].split()), *rng.choices(FILLER, k=5)]
    rng.shuffle(words)
    return " ".join(words)


def make_workshop(folder: Path) -> Path:
    """Put a recipe, two data files and a tiny body into ``folder`` and return it."""
    rng = random.Random(0)
    for name, field, labels in (
        ("mood", "sentiment", ("negative", "positive")),
        ("shop", "intent", ("refund", "track")),
    ):
        rows = [
            {"text": sentence(label, rng), field: label, "language": "zh" if i % 3 else "en"}
            for i, label in enumerate(labels * 150)
        ]
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8")
    make_body(folder / "body")
    write_recipe(folder)
    return folder


def make_body(folder: Path, hidden: int = 32, positions: int = 32) -> Path:
    """A tiny pretrained body, as Hugging Face's library saves one."""
    shape = {"hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=160, max_position_embeddings=positions, **shape)).save_pretrained(folder)
    tokenizer = Tokenizer.from_str(wordpiece_tokenizer([*LETTERS, *[f"##{c}" for c in LETTERS], *CHINESE], lower=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0]).save_pretrained(folder)
    return folder


def write_recipe(
    folder: Path, name: str = "recipe.yaml", teachers: Sequence[dict[str, Any]] = (), **settings: Any
) -> Path:
    """A recipe file in ``folder``, with these teachers and these settings of its training section changed."""
    content = yaml.safe_load(RECIPE.replace("BODY", str(folder / "body")))
    content["training"] |= settings
    content["teachers"] = list(teachers)
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def run(
    workshop: Path,
    out: Path,
    *,
    resume: bool = False,
    recipe: str = "recipe.yaml",
    tokens: int = 9000,
    report: bool = False,
    tell: IO[str] | None = None,
) -> Path:
    """Train as if so many tokens fitted into a minute, teachers' among them: the same steps on any machine. ``tell``:
    where the run's log goes."""
    console = Console(file=tell, width=400, quiet=tell is None)
    rate = tokens / (60 * plan.RESERVE)
    with mock.patch.object(Trainer, "measure", return_value=rate), mock.patch.object(plan, "half_is_faster") as faster:
        faster.return_value = False
        asked = {"resume": resume, "report": report}
        return training.train(workshop / recipe, workshop, out, minutes=1, console=console, **asked)
