"""A penalty on the gap between named groups of rows, to be added to the training objective.

Each group's mean loss is held against the mean over all rows, as in "equal error" penalties on group risks (Krueger et
al. 2021, V-REx, square the deviations of environment risks; Williamson and Menon 2019, "Fairness risk measures").
Squaring both sides would also be served by making the better groups worse; so by default only groups above the mean
count, and the mean is a constant of the step: nothing is gained by raising it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

NO_GROUP = -1
ROWS_MIN = 4  # a smaller group's mean in one batch is mostly chance


def gap_penalty(
    losses: Tensor,
    groups: Tensor,
    names: Sequence[str],
    *,
    strength: float = 1.0,
    both_sides: bool = False,
    rows_min: int = ROWS_MIN,
) -> Tensor:
    """``strength`` times the mean over the groups present of (group mean loss - overall mean loss)², a scalar.

    losses: float [n], one row's loss each, with gradient. groups: int64 [n], index into ``names``, or NO_GROUP for rows
    of no named group, which count in the overall mean only. Only groups above the overall mean are counted, and the
    mean is constant, so the gradient only ever lowers a worse group's loss; with ``both_sides`` all groups count
    and the mean is differentiated too. Groups with fewer than ``rows_min`` rows in the batch are passed over. Zero
    (differentiable) when nothing is left to compare. Raises ValueError for shapes, group ids or strength out of range.
    """
    _check(losses, groups, names)
    if strength < 0:
        raise ValueError(f"strength {strength} is negative: it would widen the gap")
    if not len(losses):
        return losses.sum()
    means, counts = _means(losses, groups, len(names))
    present = counts >= max(1, rows_min)
    if not bool(present.any()):
        return losses.sum() * 0.0
    whole = losses.mean()
    gaps = means[present] - (whole if both_sides else whole.detach())
    return strength * (gaps if both_sides else gaps.clamp_min(0.0)).pow(2).mean()


def group_losses(losses: Tensor, groups: Tensor, names: Sequence[str]) -> Mapping[str, float]:
    """Mean loss of every group that has rows, for the log. Arguments and errors as ``gap_penalty``."""
    _check(losses, groups, names)
    means, counts = _means(losses.detach(), groups, len(names))
    return {name: float(means[i]) for i, name in enumerate(names) if counts[i] > 0}


def _means(losses: Tensor, groups: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Mean loss (0 for an empty group) and number of rows of each group, [size] and [size]."""
    named = groups != NO_GROUP
    own, ids = losses[named], groups[named]
    counts = torch.zeros(size, dtype=losses.dtype, device=losses.device).index_add(0, ids, torch.ones_like(own))
    sums = torch.zeros(size, dtype=losses.dtype, device=losses.device).index_add(0, ids, own)
    return sums / counts.clamp_min(1.0), counts


def _check(losses: Tensor, groups: Tensor, names: Sequence[str]) -> None:
    if losses.dim() != 1 or groups.shape != losses.shape:
        raise ValueError(f"losses {tuple(losses.shape)} and groups {tuple(groups.shape)} must be [n] and [n]")
    if len(groups) and (int(groups.min()) < NO_GROUP or int(groups.max()) >= len(names)):
        raise ValueError(f"group ids must lie in [{NO_GROUP}, {len(names)}): there are {len(names)} names")
