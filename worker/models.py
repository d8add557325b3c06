"""The configured model, loaded for scoring, its errors turned into ours."""

from __future__ import annotations

from typing import Any

from model.errors import ArtifactError
from model.null import NullScorer
from model.scoring import Scorer, load_scorer
from worker.config import ModelConfig
from worker.errors import ModelLoadError
from worker.routing import Routing

_NEEDED_HEADS = ("sentiment", "category")


def load_model(config: ModelConfig, routing: Routing) -> Scorer:
    """The scorer of the configuration; ``null`` needs no torch. Raises `ModelLoadError`, also for missing heads."""
    if config.artifact == "null":
        return NullScorer()
    from model.artifact import resolve

    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    try:
        scorer = load_scorer(resolve(config.artifact), device=config.device)
    except ArtifactError as error:
        raise ModelLoadError(str(error)) from error
    missing = [head for head in (*_NEEDED_HEADS, *routing.heads) if head not in scorer.labels]
    if missing:
        raise ModelLoadError(
            f"artifact {config.artifact} has no head {', '.join(missing)}: choose one that has,"
            " or name other intent heads in worker/routing.yaml"
        )
    return scorer


def on_gpu(scorer: Scorer) -> bool:
    """Whether the scorer computes on a CUDA device: objectives are set for one."""
    return str(getattr(scorer, "device", "cpu")).startswith("cuda")


def click_model(scorer: Scorer, base_rate: float | None) -> Any:
    """Click head and its features: the artifact's, or counts alone where it has none."""
    try:
        from model.click import ClickHead, features
    except ImportError:
        return _Stub(), _stub_features
    return ClickHead.from_scorer(scorer), features


class _Stub:
    def click(self, f: Any) -> Any:
        return f[:, 0]

    purchase = click


def _stub_features(users: Any, items: Any, vectors: Any, times: Any, contexts: Any) -> Any:
    import numpy as np

    return np.full((len(vectors), 1), 0.1, np.float32)
