"""The losses of some rows by task: one pass through the encoder, a loss for every head that has labels there."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from model.network import Network
from model.packing import chunks
from model.scoring import Floats
from model.training.corpus import Corpus
from model.training.fairness import gap_penalty
from model.training.loss import NO_LABEL, disagreement, row_losses, score_loss
from model.training.recipe import Recipe

Rows = npt.NDArray[np.int64]
Counts = Mapping[str, int]

_HELD_TEXTS_MAX, _HELD_TOKENS_MAX = 192, 6144  # of one pass on calibration rows


class Objective:
    """Losses of corpus rows under a network. ``values`` [rows, columns] are the n-gram columns to train with."""

    def __init__(self, network: Network, corpus: Corpus, values: Floats | None, recipe: Recipe, *, half: bool) -> None:
        self._network = network
        self._corpus = corpus
        self._values = None if values is None else torch.from_numpy(values)
        self._recipe = recipe
        self._half = half
        self._device = next(network.parameters()).device
        self._allowed = {
            head: torch.from_numpy(np.stack([allowed[head] for allowed in corpus.allowed])) for head in corpus.heads
        }
        self._levels = {
            head: torch.tensor([float(label) for label in labels], device=self._device)
            for head, labels in corpus.heads.items()
            if recipe.heads[head].kind == "score"
        }

    def counts(self, batches: Iterable[Rows]) -> dict[str, int]:
        """Labelled rows by head in all ``batches`` together, only of the heads that have some."""
        labelled = (self._corpus.labels[np.concatenate(list(batches))] != NO_LABEL).sum(0)
        return {head: int(n) for head, n in zip(self._corpus.heads, labelled, strict=True) if n}

    def losses(self, rows: Rows, counts: Counts) -> dict[str, Tensor]:
        """Losses to be differentiated, by head; random by torch's own state (dropout, dropped n-grams).

        ``counts``: labelled rows of the whole step. A loss is its rows' mean times their share of those, so that the
        losses of a step's batches add up to the loss of one batch that holds all their rows.
        """
        settings = self._recipe.training
        values = None if self._values is None else self._drop_rows(self._values[rows])
        with self._precision():
            encoded = self._network.encode([self._corpus.prepared[i] for i in rows], values).float()
        masked = [functional.dropout(encoded, settings.dropout) for _ in range(2 if settings.r_drop else 1)]
        losses = {}
        for head, own in self._own(rows).items():
            own_counted = self._of_head(head, rows[own], [x[torch.from_numpy(own).to(self._device)] for x in masked])
            share = len(own) / counts[head]
            losses[head] = own_counted if share == 1.0 else own_counted * share
        return losses

    def held_losses(self, rows: Rows) -> dict[str, float]:
        """Mean losses of (calibration) rows by head, without dropout and extra terms."""
        totals: dict[str, list[float]] = {}
        with torch.inference_mode(), self._precision():
            for part in chunks([self._corpus.prepared[i].tokens for i in rows], _HELD_TEXTS_MAX, _HELD_TOKENS_MAX):
                chosen = rows[part]
                encoded = self._network.encode([self._corpus.prepared[i] for i in chosen]).float()
                for head, own in self._own(chosen).items():
                    logits = self._network.logits(head, encoded[torch.from_numpy(own).to(self._device)]).float()
                    totals.setdefault(head, []).extend(self._row_losses(head, chosen[own], logits).tolist())
        return {head: sum(totals[head]) / len(totals[head]) for head in self._corpus.heads if head in totals}

    def _own(self, rows: Rows) -> dict[str, Rows]:
        """By head, which of the rows are labelled for it (places in ``rows``), only of the heads that have some."""
        labelled = self._corpus.labels[rows] != NO_LABEL
        found = {head: np.flatnonzero(labelled[:, column]) for column, head in enumerate(self._corpus.heads)}
        return {head: own for head, own in found.items() if len(own)}

    def _of_head(self, head: str, rows: Rows, passes: list[Tensor]) -> Tensor:
        """A head's loss on its labelled rows, from one pass of encoded rows [n, hidden] or, for R-Drop, two.

        R-Drop's two passes differ in the dropout of the encoded row, the one place where this network has dropout
        (LoRA's own is drawn once), so the second costs heads only. Their loss is half of the paper's: the scale of the
        task stays.
        """
        logits = [self._network.logits(head, encoded) for encoded in passes]
        loss = torch.stack([self._once(head, rows, own) for own in logits]).mean() if len(logits) > 1 else None
        if loss is None:
            return self._once(head, rows, logits[0])
        allowed = self._allowed[head][self._corpus.dataset[rows]].to(self._device)
        return loss + 0.5 * self._recipe.training.r_drop * disagreement(logits[0], logits[1], allowed)

    def _once(self, head: str, rows: Rows, logits: Tensor) -> Tensor:
        settings, corpus = self._recipe.training, self._corpus
        by_row = self._row_losses(head, rows, logits)
        loss = by_row.mean()
        if head in self._levels:
            truth, weights = self._truth(head, rows)
            error = score_loss(logits, truth, self._levels[head], weights)
            loss = loss if error is None else loss + self._recipe.heads[head].error_weight * error
        if settings.fairness_weight:
            groups = torch.from_numpy(corpus.groups[rows]).to(self._device)
            loss = loss + gap_penalty(by_row, groups, corpus.group_names, strength=settings.fairness_weight)
        return loss

    def _row_losses(self, head: str, rows: Rows, logits: Tensor) -> Tensor:
        truth, weights = self._truth(head, rows)
        allowed = self._allowed[head][self._corpus.dataset[rows]].to(self._device)
        losses = row_losses(logits, truth, allowed, weights)
        assert losses is not None, "only labelled rows come here"  # noqa: S101 - for the type checker
        return losses

    def _truth(self, head: str, rows: Rows) -> tuple[Tensor, Tensor]:
        column = self._corpus.names.index(head)
        labels, weights = self._corpus.labels[rows, column], self._corpus.weights[rows, column]
        return torch.from_numpy(labels).to(self._device), torch.from_numpy(weights).to(self._device)

    def _drop_rows(self, values: Tensor) -> Tensor:
        """Some rows must do without their n-grams, so that the encoder learns what the n-grams already know."""
        keep = torch.rand(len(values), 1) >= self._recipe.training.bag_drop
        return (values * keep).to(self._device)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._half else nullcontext()
