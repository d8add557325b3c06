"""Real texts with the real model's answers, scored once and kept in the temporary folder.

A pool is a bounded, seeded sample of ``reviews_zh``, ``weibo_emotion`` and ``finance_tone_en`` (train and valid), each
text with its true class, the model's probability of negative, and its fingerprint. No row of it is written into the
project.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.artifact import STARTER
from model.scoring import load_scorer
from worker.privacy.fingerprint import fingerprint

SOURCES = ("reviews_zh", "weibo_emotion", "finance_tone_en")
NEGATIVE = {"negative", "angry", "sad", "fear"}
POSITIVE = {"positive", "happy"}
BATCH = 64
MAX_TEXT = 200
"""Characters of a text that are scored: long reviews say in their first lines what they say."""


@dataclass(frozen=True)
class Pool:
    """Texts of one source by true class.

    p_negative: float64 [n], the model's; negative, positive: bool [n], the truth; texts: list of n; prints: their
    fingerprints.
    """

    source: str
    p_negative: npt.NDArray[np.float64]
    negative: npt.NDArray[np.bool_]
    positive: npt.NDArray[np.bool_]
    texts: list[str]
    prints: list[str]

    @property
    def seen(self) -> tuple[float, float]:
        """Mean p(negative) of negatives and of all others: the model's soft confusion."""
        return float(self.p_negative[self.negative].mean()), float(self.p_negative[~self.negative].mean())


def load_pools(data: Path, per_source: int, seed: int = 0) -> list[Pool]:
    """One pool a source, from the cache when this model has scored the same sample before."""
    scorer = None
    pools = []
    version = json.loads((STARTER / "manifest.json").read_bytes())["version"]
    for source in SOURCES:
        kept = Path(tempfile.gettempdir()) / f"millrace-alert-pool-{version}-{source}-{per_source}-{seed}.npz"
        texts, labels = _sample(data, source, per_source, seed)
        if kept.is_file():
            with np.load(kept) as file:
                p_negative = file["p_negative"]
        else:
            scorer = scorer or load_scorer(STARTER, device="cpu")
            column = list(scorer.labels["sentiment"]).index("negative")
            parts = []
            order = np.argsort([len(text) for text in texts])
            for start in range(0, len(texts), BATCH):
                batch = [texts[i] for i in order[start : start + BATCH]]
                parts.append(scorer.classify("sentiment", scorer.encode(scorer.prepare(batch)))[:, column])
            p_negative = np.empty(len(texts))
            p_negative[order] = np.concatenate(parts)
            np.savez(kept, p_negative=p_negative)
        negative = np.array([label in NEGATIVE for label in labels])
        positive = np.array([label in POSITIVE for label in labels])
        pools.append(Pool(source, p_negative, negative, positive, texts, [fingerprint(text) for text in texts]))
    return pools


def _sample(data: Path, source: str, count: int, seed: int) -> tuple[list[str], list[str]]:
    rows = dict(_rows(data, source))
    texts = sorted(rows)
    chosen = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[i] for i in chosen], [rows[texts[i]] for i in chosen]


def _rows(data: Path, source: str) -> Iterator[tuple[str, str]]:
    for split in ("train", "valid"):
        with gzip.open(data / f"{source}.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["text"].strip():
                    yield row["text"][:MAX_TEXT], row.get("sentiment") or row["emotion"]
