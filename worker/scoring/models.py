"""The configured model, loaded for scoring, its errors turned into ours."""

from __future__ import annotations

from model.clicks.head import ClickHead
from model.errors import ArtifactError
from model.null import NullScorer
from model.scoring import Scorer, load_scorer
from worker.config import Config, ModelConfig
from worker.errors import ModelLoadError
from worker.scoring.routing import Routing

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
        scorer = load_scorer(resolve(config.artifact), device=config.device, precision=config.precision)
    except ArtifactError as error:
        raise ModelLoadError(str(error)) from error
    missing = [head for head in (*_NEEDED_HEADS, *routing.heads) if head not in scorer.labels]
    if missing:
        raise ModelLoadError(
            f"artifact {config.artifact} has no head {', '.join(missing)}: choose one that has,"
            " or name other intent heads in worker/scoring/routing.yaml"
        )
    return scorer


def on_gpu(scorer: Scorer) -> bool:
    """Whether the scorer computes on a CUDA device: objectives are set for one."""
    return str(getattr(scorer, "device", "cpu")).startswith("cuda")


def click_head(scorer: Scorer, config: Config) -> ClickHead:
    """The artifact's click head; one from counts alone where it has none.

    Raises `ModelLoadError` when it was fitted for other time scales than the configuration's.
    """
    try:
        return ClickHead.from_scorer(scorer, config.model.click_base_rate, config.profiles.scales_s)
    except ArtifactError as error:
        raise ModelLoadError(str(error)) from error
