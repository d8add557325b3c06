"""The losses of some rows by task: one pass through the encoder, a loss for every head that has labels there."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from model.network import Network
from model.packing import chunks
from model.scoring import Floats, Ints
from model.training.corpus import Corpus
from model.training.fairness import gap_penalty
from model.training.loss import NO_LABEL, disagreement, row_losses, score_loss
from model.training.recipe import Recipe

Rows = npt.NDArray[np.int64]
Counts = Mapping[str, int]
Answers = Mapping[str, npt.NDArray[np.float16]]
"""By head, probabilities [corpus rows, classes] over the classes that each row's data set knows."""

_HELD_TEXTS_MAX, _HELD_TOKENS_MAX = 192, 6144  # of one pass on calibration rows


class Objective:
    """Losses of corpus rows under a network. ``values`` [rows, columns] are the n-gram columns to train with; of the
    teachers' ``answers`` [rows, classes] by head the recipe makes a share of every target."""

    def __init__(
        self,
        network: Network,
        corpus: Corpus,
        values: Floats | None,
        recipe: Recipe,
        *,
        half: bool,
        answers: Answers | None = None,
    ) -> None:
        self._network = network
        self._corpus = corpus
        self._recipe = recipe
        self._half = half
        self._device = device = next(network.parameters()).device
        # On the device whole, for what a step copies there costs it more than what it computes with it.
        self._values = None if values is None else torch.from_numpy(values).to(device)
        self._labels, self._weights, self._dataset, self._groups = (
            torch.from_numpy(x).to(device) for x in (corpus.labels, corpus.weights, corpus.dataset, corpus.groups)
        )
        self._answers = {head: torch.from_numpy(known).to(device) for head, known in (answers or {}).items()}
        self._allowed = {
            head: torch.from_numpy(np.stack([allowed[head] for allowed in corpus.allowed])).to(device)
            for head in corpus.heads
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
        losses of a step's batches add up to the loss of one batch that holds all their rows; but for the fairness gap,
        which is each batch's own, between the groups that have rows enough in it (``model.training.fairness``).
        """
        settings = self._recipe.training
        index = self._on_device(rows)
        values = None if self._values is None else self._drop_rows(self._values[index])
        with self._precision():
            packed = self._network.pack(self._drop_tokens([self._corpus.prepared[i].ids for i in rows]))
            encoded = self._network.encode_packed(packed, values).float()
        masked = [functional.dropout(encoded, settings.dropout) for _ in range(2 if settings.r_drop else 1)]
        owned = {head: self._on_device(own) for head, own in self._own(rows).items()}
        losses = {}
        for head, own in owned.items():
            own_counted = self._of_head(head, index[own], [x[own] for x in masked])
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
                index = self._on_device(chosen)
                for head, places in self._own(chosen).items():
                    own = self._on_device(places)
                    logits = self._network.logits(head, encoded[own]).float()
                    totals.setdefault(head, []).extend(self._row_losses(head, index[own], logits).tolist())
        return {head: sum(totals[head]) / len(totals[head]) for head in self._corpus.heads if head in totals}

    def _own(self, rows: Rows) -> dict[str, Rows]:
        """By head, which of the rows are labelled for it (places in ``rows``), only of the heads that have some."""
        labelled = self._corpus.labels[rows] != NO_LABEL
        found = {head: np.flatnonzero(labelled[:, column]) for column, head in enumerate(self._corpus.heads)}
        return {head: own for head, own in found.items() if len(own)}

    def _of_head(self, head: str, rows: Tensor, passes: list[Tensor]) -> Tensor:
        """A head's loss on its labelled rows, from one pass of encoded rows [n, hidden] or, for R-Drop, two.

        R-Drop's two passes differ in the dropout of the encoded row, the one place where this network has dropout
        (LoRA's own is drawn once), so the second costs heads only. Their loss is half of the paper's: the scale of the
        task stays.
        """
        logits = [self._network.logits(head, encoded) for encoded in passes]
        losses = [self._once(head, rows, own) for own in logits]
        if len(losses) == 1:
            return losses[0]
        apart = disagreement(logits[0], logits[1], self._known(head, rows))
        return torch.stack(losses).mean() + 0.5 * self._recipe.training.r_drop * apart

    def _once(self, head: str, rows: Tensor, logits: Tensor) -> Tensor:
        settings = self._recipe.training
        taught = self._answers[head][rows].float() if head in self._answers else None
        by_row = self._row_losses(head, rows, logits, taught)
        loss = by_row.mean()
        if head in self._levels:
            truth, weights = self._truth(head, rows)
            error = score_loss(logits, truth, self._levels[head], weights)
            loss = loss + self._recipe.heads[head].error_weight * error
        if settings.fairness_weight:
            names = self._corpus.group_names
            loss = loss + gap_penalty(by_row, self._groups[rows], names, strength=settings.fairness_weight)
        return loss

    def _row_losses(self, head: str, rows: Tensor, logits: Tensor, taught: Tensor | None = None) -> Tensor:
        truth, weights = self._truth(head, rows)
        allowed = self._known(head, rows)
        share = self._recipe.training.taught_share
        return row_losses(logits, truth, allowed, weights, taught=taught, taught_share=share)

    def _known(self, head: str, rows: Tensor) -> Tensor:
        """Which classes the rows' data sets know, bool [rows, classes]."""
        return self._allowed[head][self._dataset[rows]]

    def _truth(self, head: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        column = self._corpus.names.index(head)
        return self._labels[rows, column], self._weights[rows, column]

    def _drop_rows(self, values: Tensor) -> Tensor:
        """Some rows must do without their n-grams, so that the encoder learns what the n-grams already know."""
        keep = torch.rand(len(values), 1) >= self._recipe.training.bag_drop
        return values * keep.to(self._device)

    def _drop_tokens(self, ids: Sequence[Ints]) -> Sequence[Ints]:
        """Texts without some of their tokens; the special ones at both ends stay."""
        share = self._recipe.training.token_drop
        if not share:
            return ids
        ends = np.cumsum([len(text) for text in ids])
        keep = torch.rand(int(ends[-1])).numpy() >= share
        keep[ends - 1] = keep[np.concatenate([[0], ends[:-1]])] = True
        return [text[own] for text, own in zip(ids, np.split(keep, ends[:-1]), strict=True)]

    def _on_device(self, numbers: Rows) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._half else nullcontext()
