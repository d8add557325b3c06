"""The training loop: one step, all tasks, by the recipe's optimiser and weighting.

A step is ``training.accumulate`` batches of the schedule. Everything random follows from the step's number, so a run
that goes on from a checkpoint does what it would have done.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.errors import DivergedError
from model.network import Network
from model.scoring import Floats
from model.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from model.training.conflict import gradient_cosines, last_matrices
from model.training.corpus import Corpus, evenly
from model.training.loss import SharedPenalty, combine
from model.training.made_from import MadeFrom
from model.training.objective import Answers, Counts, Objective
from model.training.optimiser import freeze, make_optimiser, set_rates
from model.training.recipe import Recipe
from model.training.valid import Figures, ValidRows, valid_figures
from model.training.watch import Report
from model.training.weighting import TaskWeights

Batches = Sequence[npt.NDArray[np.int64]]


class Trainer:
    """Steps through a fixed schedule of batches. ``values`` [rows, columns] are the n-gram columns to train with;
    ``valid`` rows are asked now and then where there is a tensorboard."""

    def __init__(
        self,
        network: Network,
        corpus: Corpus,
        values: Floats | None,
        recipe: Recipe,
        batches: Batches,
        *,
        half: bool,
        answers: Answers | None = None,
        valid: Sequence[ValidRows] = (),
    ) -> None:
        self._settings = recipe.training
        several = self._settings.accumulate
        self.network = network.train()
        self.corpus = corpus
        self.steps = [batches[first : first + several] for first in range(0, len(batches), several)]
        self.step = 0
        self._recipe = recipe
        self._objective = Objective(network, corpus, values, recipe, half=half, answers=answers)
        network.encoder.set_dropout(self._settings.body_dropout)
        freeze(network, self._settings.frozen_layers)
        self._penalty = SharedPenalty(network.encoder, self._settings.penalty, self._settings.penalty_weight)
        self._watched = last_matrices(network) if self._settings.tensorboard else []
        self._valid = valid if self._settings.tensorboard and self._settings.valid_every else ()
        self._held = evenly(np.flatnonzero(corpus.held), self._settings.held_rows)
        self._optimiser = make_optimiser(network, self._settings)
        self._weights = self._make_weights()

    def run(self, until: int) -> Iterator[Report]:
        """Train up to step ``until``, with a report after each step."""
        while self.step < until:
            report = self.learn(self.steps[self.step], self.step)
            self.step += 1
            yield report

    def learn(self, batches: Batches, step: int) -> Report:
        """One optimiser step on the batches. Raises DivergedError when a loss or the gradient is no longer finite."""
        settings = self._settings
        factor = set_rates(self._optimiser, step, len(self.steps), settings.warm_up)
        counts = self._objective.counts(batches)
        ahead = self._again(batches, counts, step) if self._weights.looks_ahead and len(batches) > 1 else None
        sums: dict[str, Tensor] = {}
        coefficients: dict[str, float] = {}
        conflict: dict[str, float] = {}
        self._seed(step)
        for i, rows in enumerate(batches):
            losses = self._objective.losses(rows, counts)
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
            if i == 0:  # the step's weights; a loss that they look at is that of the whole step
                coefficients = self._weights.coefficients(ahead or self._read(sums, counts))
                if self._watched and settings.conflict_every and step % settings.conflict_every == 0:
                    conflict = gradient_cosines(losses, self._watched)
            self._backward(losses, coefficients, len(counts), whole=i == 0)
        sums["gradient norm"] = nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_norm_max)
        before = dict(zip(sums, torch.stack([*sums.values()]).tolist(), strict=True))  # the step's one wait for a GPU
        self._check_finite(before, step)
        norm = before.pop("gradient norm")
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._weights.learn(before, self._again(batches, counts, step) if self._weights.looks_again else None)
        held = self._held_losses() if settings.held_every and (step + 1) % settings.held_every == 0 else {}
        tokens = sum(self.corpus.prepared[row].tokens for rows in batches for row in rows)
        valid = self._valid_figures() if self._valid and self._is_watched(step) else {}
        return Report(step + 1, before, coefficients, settings.body_lr * factor, norm, tokens, held, conflict, valid)

    def _read(self, sums: Mapping[str, Tensor], counts: Counts) -> dict[str, float]:
        """The losses so far, 0 of a task that comes later in the step; unread where nobody looks at them."""
        reads = self._weights.looks_ahead
        return {name: float(sums[name]) if reads and name in sums else 0.0 for name in counts}

    def _backward(self, losses: dict[str, Tensor], coefficients: dict[str, float], tasks: int, *, whole: bool) -> None:
        """Add one batch's gradients; ``whole``: with the penalty, which is the step's and not a batch's."""
        total = combine(losses, coefficients, tasks)
        (total + self._penalty() if whole else total).backward()  # type: ignore[no-untyped-call]

    def _again(self, batches: Batches, counts: Counts, step: int) -> dict[str, float]:
        """The step's losses with the weights as they are now, under the same dropout."""
        self._seed(step)
        sums = dict.fromkeys(counts, 0.0)
        with torch.no_grad():
            for rows in batches:
                for name, loss in self._objective.losses(rows, counts).items():
                    sums[name] += float(loss)
        return sums

    def _held_losses(self) -> dict[str, float]:
        self.network.eval()
        losses = self._objective.held_losses(self._held)
        self.network.train()
        return losses

    def _is_watched(self, step: int) -> bool:
        """Whether a step's end is one at which the valid rows are asked."""
        return (step + 1) % self._settings.valid_every == 0 or step + 1 == len(self.steps)

    def _valid_figures(self) -> Figures:
        self.network.eval()
        figures = valid_figures(self.network, self._valid)
        self.network.train()
        return figures

    def _seed(self, step: int) -> None:
        torch.manual_seed(self._recipe.seed * 1_000_003 + step)  # by step, so a resumed run draws the same dropout

    def _check_finite(self, figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"training broke down at step {step}: {name} is {value}; lower training.body_lr or training.head_lr"
                )

    def _make_weights(self) -> TaskWeights:
        settings = self._settings
        return TaskWeights(
            settings.weighting, self.corpus.names, rate=settings.weighting_lr, decay=settings.weighting_decay
        )

    def measure(self) -> float:
        """Tokens a second over the steps given; weights and optimiser are as before afterwards."""
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        warm = min(2, len(self.steps) - 1)  # the first ones pay for allocation and compilation
        tokens, started = 0, 0.0
        for i, batches in enumerate(self.steps):
            if i == warm:
                started = time.perf_counter()
            report = self.learn(batches, i)
            tokens += report.tokens if i >= warm else 0
        elapsed = time.perf_counter() - started
        self.network.load_state_dict(before)
        self._optimiser = make_optimiser(self.network, self._settings)
        self._weights = self._make_weights()
        return tokens / elapsed

    def save(self, path: Path) -> None:
        """Write a checkpoint as one step. Raises ModelError."""
        save_checkpoint(path, self.network, self._optimiser, self._weighting(), self._progress())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same schedule. Raises ModelError when it is damaged or of another run."""
        self.step = load_checkpoint(path, self.network, self._optimiser, self._weighting(), self._progress())

    def _weighting(self) -> Tensor:
        return torch.from_numpy(self._weights.state)  # the same memory: loading fills it

    def _progress(self) -> Progress:
        return Progress(self.step, len(self.steps), MadeFrom.of(self._recipe, self.corpus.files).parts)
