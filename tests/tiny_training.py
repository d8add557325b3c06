"""A network of random weights and a corpus of random rows, for tests of single training steps."""

from typing import Any

import numpy as np
import torch

from model.encoder import EncoderConfig, build_encoder
from model.experts import ExpertsConfig
from model.network import Network
from model.scoring import Prepared
from model.training.corpus import Corpus
from model.training.fairness import NO_GROUP
from model.training.loss import NO_LABEL
from model.training.recipe import Dataset, Head, Recipe
from model.training.settings import Training
from model.training.trainer import Trainer
from model.training.valid import ValidRows

HEADS = {"mood": ["bad", "good", "neutral"], "intent.shop": ["cancel", "track"], "stars": ["1", "2", "3"]}
CONFIG = EncoderConfig("packed", vocab_size=40, hidden=16, layers=2, heads=2, intermediate=32, positions=12)


def make_corpus(rows: int = 24, held: int = 6, seed: int = 0) -> Corpus:
    """Every training row is labelled for one head, in turn; the last ``held`` rows are calibration rows."""
    rng = np.random.default_rng(seed)
    labels = np.full((rows, len(HEADS)), NO_LABEL, np.int64)
    for row in range(rows):
        head = row % len(HEADS)
        labels[row, head] = rng.integers(len(list(HEADS.values())[head]))
    no_grams = np.zeros(0, np.int32)
    prepared = [Prepared(rng.integers(1, 40, rng.integers(3, 9)).astype(np.int32), no_grams) for _ in range(rows)]
    return Corpus(
        heads=HEADS,
        prepared=prepared,
        labels=labels,
        weights=np.ones(labels.shape, np.float32),
        dataset=np.zeros(rows, np.int64),
        held=np.arange(rows) >= rows - held,
        allowed=[{head: np.ones(len(names), bool) for head, names in HEADS.items()}],
        origin=np.arange(rows),
        groups=np.where(np.arange(rows) % 5 == 4, NO_GROUP, np.arange(rows) // 3 % 2),
        group_names=["en", "zh"],
        texts=[f"text {row}" for row in range(rows)],
    )


def make_network(experts: ExpertsConfig | None = None, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(build_encoder(CONFIG), None, {head: len(labels) for head, labels in HEADS.items()}, experts)


def make_recipe(**settings: Any) -> Recipe:
    """A recipe whose training section has these settings; no dropout unless asked for."""
    heads = {head: Head(labels, kind="score" if head == "stars" else "classes") for head, labels in HEADS.items()}
    training = Training(**{"dropout": 0.0, "warm_up": 0.0} | settings)
    return Recipe("tiny", "none", heads, [Dataset("rows", file="rows.jsonl", groups="language")], training=training)


def make_valid(corpus: Corpus) -> list[ValidRows]:
    """Eight rows of each head: the corpus's first ones, whatever their own labels."""
    rng = np.random.default_rng(1)
    return [
        ValidRows(
            name=head,
            head=head,
            texts=corpus.texts[:8],
            prepared=corpus.prepared[:8],
            truth=rng.integers(2, size=8),
            among=np.arange(2),
            levels=np.array([float(label) for label in labels] if head == "stars" else []),
        )
        for head, labels in HEADS.items()
    ]


def make_trainer(batches: list[list[int]], network: Network | None = None, **settings: Any) -> Trainer:
    steps, corpus = [np.array(batch) for batch in batches], make_corpus()
    recipe, valid = make_recipe(**settings), make_valid(corpus)
    return Trainer(network or make_network(), corpus, None, recipe, steps, half=False, valid=valid)
