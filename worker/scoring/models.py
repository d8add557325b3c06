"""The configured model, loaded for scoring, its errors turned into ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Final

import structlog

from model.clicks.head import ClickHead
from model.errors import ArtifactError
from model.null import NullScorer
from model.scoring import Scorer, load_scorer
from worker.config import Config, ModelConfig
from worker.errors import ConfigError, ModelLoadError
from worker.scoring.routing import SHIPPED, Routing
from worker.scoring.sentiment import sentiment_places

NAMES_SHOWN: Final = 5
_NEEDED_HEADS: Final = ("sentiment", "category")

_log = structlog.get_logger(__name__)


def load_model(config: ModelConfig, routing: Routing) -> Scorer:
    """The scorer of the configuration; ``null`` needs no torch. Intents that it tells and the routing lacks are warned
    of.

    Raises what `check_heads` raises, and `ModelLoadError` for an artifact that cannot be used.
    """
    scorer = _load(config)
    check_heads(scorer.labels, config.artifact, routing)
    if missing := routing.unlisted(scorer.labels):
        _log.warning(
            "intents without an entry in the routing: their messages get no reply",
            routing=routing.source,
            queue=routing.default,
            intents=len(missing),
            names=first_few(missing),
        )
    return scorer


def _load(config: ModelConfig) -> Scorer:
    if config.artifact == "null":
        return NullScorer()
    from model.artifact import resolve

    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    try:
        return load_scorer(resolve(config.artifact), device=config.device, precision=config.precision)
    except ArtifactError as error:
        raise ModelLoadError(str(error)) from error


def check_heads(labels: Mapping[str, Sequence[str]], artifact: str, routing: Routing) -> None:
    """Raises `ModelLoadError` for heads that are missing or do not answer what the contract asks, `ConfigError` for
    intents of one's own routing that none of its heads tells.

    Such an entry is misspelt or stale, and without a word its messages would go to the default queue. It is refused,
    as the file is written for the model that is configured beside it; entries are held against all of ``heads``
    together, so heads may share them. The shipped table is not: it is nobody's mistake where a model has other intents.
    """
    missing = [head for head in (*_NEEDED_HEADS, *routing.heads) if head not in labels]
    if missing:
        raise ModelLoadError(
            f"artifact {artifact} has no head {', '.join(missing)}: choose one that has,"
            " or name other intent heads in a file of your own (worker.routing)"
        )
    try:
        sentiment_places(labels["sentiment"])
    except ModelLoadError as error:
        raise ModelLoadError(f"artifact {artifact}: {error}") from error
    if routing.source != SHIPPED and (unknown := routing.unknown(labels)):
        near = get_close_matches(unknown[0], routing.unlisted(labels), 1)
        raise ConfigError(
            f"worker.routing {routing.source}: {first_few(unknown)}: no intent of {', '.join(routing.heads)} in the"
            f" artifact {artifact}. Mend the spelling{f' (is it {near[0]}?)' if near else ''}, or take the entry out"
        )


def first_few(names: Sequence[str]) -> str:
    """Names for a message, not all of many."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


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
