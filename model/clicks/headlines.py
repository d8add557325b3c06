"""Which of two headlines is clicked more: a straight line on encoded rows, fitted and judged within A/B tests.

Measured only, nothing of it ships: it says how much of a click the encoder can read off the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.clicks.fields import Line
from model.errors import DataError
from model.scoring import Scorer

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

TRAIN_MAX: Final = 6000
"""Distinct headlines encoded for fitting: the encoder's time, on one core."""
PENALTIES: Final = (1e2, 1e3, 1e4, 1e5)
HELD_OUT: Final = 0.2
"""Share of the training tests, the last ones, on which the penalty is chosen."""
_TEXTS_MAX: Final = 256


def headline_figures(scorer: Scorer, train: HeadlineTests, valid: HeadlineTests) -> dict[str, Any]:
    """Accuracy of pairs within a test of ``valid``, by a line fitted on ``train``.

    pairs [of one test, different headline and rate], pair_accuracy, and the same of the pairs whose rates differ by
    more than two standard errors.
    """
    x, y, weight = train.centred(scorer)
    late = train.test >= np.quantile(train.test, 1 - HELD_OUT)
    at = dict(
        zip(PENALTIES, (_ridge(x[~late], y[~late], weight[~late], penalty) for penalty in PENALTIES), strict=True)
    )
    chosen = max(PENALTIES, key=lambda penalty: train.accuracy(x @ at[penalty], late).get("pair_accuracy", 0.0))
    found = valid.accuracy(valid.centred(scorer)[0] @ _ridge(x, y, weight, chosen))
    return {"fitted_on": len(x), **found}


class HeadlineTests:
    """Headlines of A/B tests, tests numbered in order of appearance, alternatives of the same words added up."""

    def __init__(self, lines: Sequence[Line], texts_max: int | None = None) -> None:
        """From rows (test_id, headline, impressions, clicks), at most so many texts. Raises DataError naming file and
        line for a row without one of the fields."""
        sums: dict[tuple[str, str], list[float]] = {}
        for line in lines:
            try:
                shown, clicks = float(line.row["impressions"]), float(line.row["clicks"])
                key = str(line.row["test_id"]), str(line.row["headline"])
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{line}: headline data need test_id, headline, impressions, clicks") from error
            entry = sums.setdefault(key, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + shown, entry[1] + clicks
        numbers: dict[str, int] = {}
        kept = sorted((numbers.setdefault(test, len(numbers)), text, *counts) for (test, text), counts in sums.items())[
            :texts_max
        ]
        self.test: I64 = np.array([row[0] for row in kept], np.int64)
        self.texts = [str(row[1]) for row in kept]
        self.shown: F64 = np.array([row[2] for row in kept])
        self.rate: F64 = (np.array([row[3] for row in kept]) + 0.5) / (self.shown + 1)

    def centred(self, scorer: Scorer) -> tuple[F64, F64, F64]:
        """Encoded rows [n, hidden] and log rates [n], both less their test's mean, and the weights of the rates [n]."""
        encoded = np.concatenate(
            [
                scorer.encode(scorer.prepare(self.texts[start : start + _TEXTS_MAX])).astype(np.float64)
                for start in range(0, len(self.texts), _TEXTS_MAX)
            ]
        )
        _, member, sizes = np.unique(self.test, return_inverse=True, return_counts=True)

        def less_mean(values: F64) -> F64:
            sums = np.zeros((len(sizes), values.shape[1]))
            np.add.at(sums, member, values)
            return np.asarray(values - (sums / sizes[:, None])[member])

        # The variance of a log rate is about one over its clicks.
        return less_mean(encoded), less_mean(np.log(self.rate)[:, None])[:, 0], self.shown * self.rate

    def accuracy(self, scores: F64, rows: npt.NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Share of pairs within a test that scores [n] put in the order of their rates, ties counted half; none where
        there are no pairs."""
        right, clear = [], []
        wanted = np.ones(len(scores), bool) if rows is None else rows
        for part in np.split(np.arange(len(scores)), np.flatnonzero(np.diff(self.test)) + 1):
            chosen = part[wanted[part]]
            a, b = (chosen[side] for side in np.triu_indices(len(chosen), 1))
            gap = self.rate[a] - self.rate[b]
            error = np.sqrt(sum(self.rate[i] * (1 - self.rate[i]) / np.maximum(self.shown[i], 1) for i in (a, b)))
            differ = gap != 0
            right.append((np.sign((scores[a] - scores[b]) * gap)[differ] + 1) / 2)
            clear.append((np.abs(gap) > 2 * error)[differ])
        each, sure = np.concatenate(right), np.concatenate(clear)
        found: dict[str, float] = {}
        for name, own in (("", each), ("clear_", each[sure])):
            found[f"{name}pairs"] = len(own)
            if len(own):
                found[f"{name}pair_accuracy"] = round(float(own.mean()), 4)
        return found


def _ridge(x: F64, y: F64, weight: F64, penalty: float) -> F64:
    heavy = x * weight[:, None]
    return np.asarray(np.linalg.solve(x.T @ heavy + penalty * np.eye(x.shape[1]), heavy.T @ y))
