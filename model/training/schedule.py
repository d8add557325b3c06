"""What is trained when: the whole order of batches is drawn beforehand from a seed, so a resumed run sees the same."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_TEXT_TOKENS_MIN = 6  # a batch has at most as many texts as if each had so many tokens: the heads' share is bounded


def draws_by_dataset(
    sizes: Sequence[int],
    mean_tokens: Sequence[float],
    weights: Sequence[float],
    *,
    temperature: float,
    passes_max: float,
    tokens: float,
) -> list[int]:
    """How many rows to draw from each data set so that all together have about ``tokens`` tokens.

    Draws grow with weight * size^temperature (Arivazhagan et al. 2019) but stop at ``passes_max`` passes.
    """
    size, mean, share = (
        np.array(sizes, float),
        np.array(mean_tokens),
        np.array(weights) * np.array(sizes) ** temperature,
    )
    drawn = share > 0
    low, high = 0.0, float((passes_max * size[drawn] / share[drawn]).max())
    for _ in range(60):  # tokens grow with the factor: bisect it
        middle = (low + high) / 2
        spent = float((np.minimum(middle * share, passes_max * size) * mean).sum())
        low, high = (middle, high) if spent < tokens else (low, middle)
    return [round(float(d)) for d in np.minimum(low * share, passes_max * size)]


def schedule(
    rows: Sequence[npt.NDArray[np.int64]],
    draws: Sequence[int],
    lengths: npt.NDArray[np.int64],
    *,
    batch_tokens: int,
    window_batches: int,
    seed: int,
) -> list[npt.NDArray[np.int64]]:
    """Batches of row numbers: ``draws[d]`` draws from ``rows[d]``, pass after pass, mixed, in batches of similar length
    and at most ``batch_tokens`` tokens (a single longer row stands alone). Rows are sorted by length within a window of
    about ``window_batches`` batches; with 1 not at all."""
    rng = np.random.default_rng(seed)
    stream: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.float64]] = []
    for own, count in zip(rows, draws, strict=True):
        if not len(own) or not count:
            continue
        passes = [rng.permutation(own) for _ in range(-(-count // len(own)))]
        stream.append(np.concatenate(passes)[:count])
        places.append((np.arange(count) + rng.random(count)) / count)  # spread each data set evenly over the run
    order = np.concatenate(stream)[np.argsort(np.concatenate(places), kind="stable")]
    batches: list[npt.NDArray[np.int64]] = []
    if window_batches == 1:
        return _cut(order, lengths, batch_tokens)
    window = max(1, int(window_batches * batch_tokens / max(1.0, float(lengths[order].mean()))))
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        cut = _cut(part, lengths, batch_tokens)
        batches += [cut[i] for i in rng.permutation(len(cut))]
    return batches


def _cut(part: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], batch_tokens: int) -> list[npt.NDArray[np.int64]]:
    batches, first, total = [], 0, 0
    for i, row in enumerate(part):
        length = int(lengths[row])
        if i > first and (total + length > batch_tokens or i - first >= batch_tokens // _TEXT_TOKENS_MIN):
            batches.append(part[first:i])
            first, total = i, 0
        total += length
    batches.append(part[first:])
    return batches
