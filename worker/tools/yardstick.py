"""What a batch and a token cost on this machine with the configured model: for ``millrace plan``."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from model.scoring import Scorer
from worker.config import Config
from worker.scoring.models import load_model, on_gpu
from worker.scoring.routing import load_routing
from worker.tools.plan import Costs

SIZES: Final = (1, 4, 16, 64, 128)
"""Texts in a pass."""
ROUNDS: Final = 3
TEXT: Final = "The parcel came a day late, but the sound is warmer than I expected. 包装很仔细，质量也对得起这个价格"


def weights_mb(scorer: Scorer) -> float:
    """The weights of a model in memory: float32, however few bits the artifact's file keeps. 0 of the null model."""
    network = getattr(scorer, "network", None)
    return 0.0 if network is None else 4 * sum(value.numel() for value in network.state_dict().values()) / 2**20


def measure(scorer: Scorer) -> Costs:
    """Encode a few batches and draw the line through their medians. Takes some seconds on two cores."""
    tokens, seconds = [], []
    for size in SIZES:
        prepared = scorer.prepare([f"{TEXT} {n}" for n in range(size)])
        took = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            rows = scorer.encode(prepared)
            scorer.vectors(rows)
            scorer.classify("sentiment", rows)
            took.append(time.perf_counter() - start)
        tokens.append(sum(text.tokens for text in prepared))
        seconds.append(float(np.median(took[1:])))  # the first pass of a size also makes room for it
    slope, start_s = np.polyfit(tokens, seconds, 1, w=1 / np.sqrt(np.array(tokens)))
    return Costs(
        batch_ms=round(max(float(start_s), 0.0) * 1e3, 3) + 1.0,  # the heads of all events, about a millisecond
        token_us=round(max(float(slope), 0.0) * 1e6, 3),
        weights_mb=weights_mb(scorer),
    )


def costs_here(config: Config) -> tuple[Costs, bool]:
    """Costs of the configured model, and whether it runs on a GPU. Raises `ModelLoadError` and `ConfigError`."""
    scorer = load_model(config.model, load_routing(config.worker.routing))
    return measure(scorer), on_gpu(scorer)
