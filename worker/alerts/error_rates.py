"""What the model's errors do to shares: from the configuration, else from what the artifact says of itself."""

from __future__ import annotations

import json
from typing import Any

from model.artifact import MANIFEST, resolve
from model.errors import ArtifactError
from worker.alerts.baseline import ErrorRates
from worker.config import Config
from worker.errors import ModelLoadError

_KEYS = ("p_negative_of_negatives", "p_negative_of_others")


def error_rates(config: Config) -> ErrorRates:
    """Mean p(negative) of negatives and of others: ``alerts.p_negative_of_…`` where both are given; else the mean over
    the manifest's ``sentiment`` figures that hold both (`millrace evaluate` measures them), by rows; else the model is
    believed. Reads the manifest alone. Raises `ModelLoadError` where the artifact cannot be read.
    """
    alerts = config.alerts
    if alerts.p_negative_of_negatives is not None and alerts.p_negative_of_others is not None:
        return ErrorRates(alerts.p_negative_of_negatives, alerts.p_negative_of_others)
    if config.model.artifact == "null":
        return ErrorRates()
    try:
        folder = resolve(config.model.artifact)
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (ArtifactError, OSError, ValueError) as error:
        raise ModelLoadError(f"alerts reads the model's error rates from its manifest: {error}") from error
    return from_metrics(manifest.get("metrics", []))


def from_metrics(metrics: list[dict[str, Any]]) -> ErrorRates:
    """Error rates of a manifest's figures; of a model that is believed where they hold none, or tell nothing apart."""
    rows = [row for row in metrics if row.get("task") == "sentiment" and all(key in row for key in _KEYS)]
    weight = sum(row["n"] for row in rows)
    if not weight:
        return ErrorRates()
    of_negatives, of_others = (sum(row[key] * row["n"] for row in rows) / weight for key in _KEYS)
    return ErrorRates(of_negatives, of_others) if of_others < of_negatives else ErrorRates()
