"""Figures of a click or purchase head: how well it tells apart, ranks, and keeps its word. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model import metrics
from model.warmth import EARLIER, by_warmth

F64 = npt.NDArray[np.float64]


def figures(p: F64, truth: F64, users: npt.NDArray[np.int64] | None = None) -> dict[str, float]:
    """Figures of probabilities [n] for outcomes [n] in {0, 1}.

    n, auc (where there are both outcomes), log_loss, ece (15 equal-mass bins), predicted over observed, and the base
    rate; with users [n] also user_auc (mean AUC of the users who have both outcomes, by their number of events) and
    ndcg (mean over the same users of the NDCG of all their events in the order of p).
    """
    label = truth.astype(np.int64)
    found: dict[str, float] = {"n": len(p)}
    if 0 < label.sum() < len(label):
        found["auc"] = round(metrics.auc(p, label), 5)
    found |= {
        "log_loss": round(metrics.log_loss(np.stack([1 - p, p], axis=1), label), 5),
        "ece": round(metrics.ece(p, label), 5),
        "predicted_over_observed": round(float(p.sum() / max(1, label.sum())), 4),
        "base_rate": round(float(label.mean()), 5),
    }
    if users is not None:
        order = np.argsort(users, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
        both = [part for part in parts if 0 < label[part].sum() < len(part)]
        if both:
            sizes = [len(part) for part in both]
            user_auc = np.average([metrics.auc(p[part], label[part]) for part in both], weights=sizes)
            found["user_auc"] = round(float(user_auc), 5)
            found["ndcg"] = round(float(np.mean([ndcg(p[part], label[part]) for part in both])), 5)
    return found


def warmth_slices(p: F64, truth: F64, earlier: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Figures of probabilities [n] for outcomes [n] by how many events of the user came before, [n]: one slicing as
    ``model.assess.slices`` gives them, none where all users are alike or all outcomes are.

    Each slice: value, auc with its interval, gap to the whole's AUC, whether it is flagged (`metrics.lies_below`), and
    the flat `figures`. AUC is compared, for it does not depend on how many click; auc, interval and gap are None where
    a slice has one outcome only.
    """
    names, order = by_warmth(earlier)
    if len(order) < 2 or not 0 < truth.sum() < len(truth):
        return []
    whole, place = metrics.auc(p, truth.astype(np.int64)), np.array(names)
    return [
        {
            "by": EARLIER,
            "figure": "auc",
            "slices": [_slice(p[place == name], truth[place == name], whole, name) for name in order],
        }
    ]


def _slice(p: F64, truth: F64, whole: float, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"value": name, **figures(p, truth)}
    if not 0 < truth.sum() < len(truth):
        return found | {"auc": None, "interval": None, "gap": None, "flagged": False}
    low, high = metrics.auc_interval(p, truth)
    flagged = metrics.lies_below(len(p), (low, high), whole)
    ends = [round(low, 5), round(high, 5)]
    return found | {"interval": ends, "gap": round(found["auc"] - whole, 5), "flagged": flagged}


def ndcg(scores: F64, truth: npt.NDArray[np.int64]) -> float:
    """Normalised discounted cumulative gain of scores [n] for truth [n] in {0, 1}; events of one score share their
    places. NaN where nothing is relevant."""
    if not truth.any():
        return float("nan")
    discount = 1 / np.log2(np.arange(len(scores)) + 2)
    _, inverse, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    total = np.concatenate([[0.0], np.cumsum(discount)])
    shared = (total[ends] - total[ends - counts]) / counts
    return float((shared[inverse] * truth).sum() / discount[: int(truth.sum())].sum())
