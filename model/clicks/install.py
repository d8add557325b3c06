"""The click head into an artifact: fitted on a recipe's logs, measured, and put in the place of the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import structlog

from model.artifact import Artifact
from model.clicks.dataset import ClickData
from model.clicks.evaluate import DELAYS_S, answered, delayed_figures
from model.clicks.fit import fit
from model.clicks.head import ClickHead
from model.clicks.headlines import headline_figures
from model.clicks.log import Log
from model.clicks.settings import ClickSettings
from model.scoring import load_scorer

_log = structlog.get_logger(__name__)


def fit_into(folder: Path, settings: ClickSettings, data: ClickData) -> None:
    """Fit the heads on the texts' vectors of the artifact in ``folder``, measure them on the valid impressions where
    there are any, and save. Texts and all other heads stay as they are. Raises ArtifactError."""
    scorer = load_scorer(folder)
    fitted = fit(data.clicks.encoded(scorer), data.purchases, settings)
    section = fitted.section | {"files": dict(data.files), "source": settings.source}
    head = ClickHead.from_tensors(fitted.tensors.__getitem__)
    if data.valid is not None:
        section |= _valid_figures(data.valid.encoded(scorer), head, len(data.clicks.label), settings)
        _log.info("click head", **section["valid"])
    if data.headlines is not None:
        section["headlines"] = headline_figures(scorer, *data.headlines)
        _log.info("headlines", **section["headlines"])
    if "purchase_held_out" in section:
        _log.info("purchase head, held out", **section["purchase_held_out"])
    artifact = Artifact.load(folder).add(fitted.tensors, "click", section)
    _log.info("artifact saved", folder=str(folder), version=artifact.manifest["version"])


def _valid_figures(log: Log, head: ClickHead, history: int, settings: ClickSettings) -> dict[str, Any]:
    """Progressive figures of the events after the first ``history`` ones: of clicks at once (sliced by the user's
    earlier events, too) and at each delay, and of conversions as late as the settings say, where the log tells any."""
    new = np.arange(len(log.label)) >= history
    log = log.standing_for(settings.negative_rate, ~new)
    delays_s = sorted({*DELAYS_S, settings.delay_s} - {0.0})
    told = answered(log, head, "click", new)
    found: dict[str, Any] = {
        "valid": told.figures(),
        "valid_slices": told.slices(),
        "valid_delays": delayed_figures(log, head, "click", new, delays_s),
    }
    if (log.converted[new] == 1).any():
        found["valid_conversion"] = answered(log, head, "conversion", new, settings.delay).figures()
    return found
