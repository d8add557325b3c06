"""The vector space of user and item states: mean and projection of encoded rows."""

import numpy as np

from model.scoring import Floats

WIDTH = 64
GRAM_SHARE = 0.25  # of the variance that the projection sees, the part from the n-gram columns


def fit_space(encoded: Floats, body: int) -> tuple[Floats, Floats]:
    """Mean [hidden] and projection [hidden, 64] from encoded rows [n, hidden], whose first ``body`` entries are the
    encoder's and the rest the n-gram channel's.

    Principal components, each divided by the fourth root of its variance: half-way to whitening, so that the direction
    that tells Chinese from English does not drown what tells one product from another. With fewer than 64 components
    the rest of the projection is zero.
    """
    rows = encoded.astype(np.float64)
    mean = rows.mean(0)
    scale = np.ones(rows.shape[1])
    for block, share in ((slice(0, body), 1 - GRAM_SHARE), (slice(body, None), GRAM_SHARE)):
        variance = rows[:, block].var(0).sum()
        if variance > 0:
            scale[block] = np.sqrt(share / variance)
    centred = (rows - mean) * scale
    values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    largest = np.argsort(-values)[:WIDTH]
    kept = values[largest] > 1e-9
    projection = np.zeros((rows.shape[1], WIDTH))
    chosen = largest[kept]
    projection[:, : len(chosen)] = scale[:, None] * vectors[:, chosen] / values[chosen] ** 0.25
    return mean.astype(np.float32), projection.astype(np.float32)
