"""The training loop: one batch, one step, all tasks; checkpoints from which a run goes on exactly where it stood."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from model.corpus import Corpus
from model.errors import ModelError
from model.loss import NO_LABEL, SharedPenalty, combine, task_loss
from model.network import Network
from model.recipe import Recipe
from model.scoring import Floats

Batches = Sequence[npt.NDArray[np.int64]]


class Trainer:
    """Steps through a fixed schedule of batches. ``values`` [rows, columns] are the n-gram columns to train with."""

    def __init__(
        self, network: Network, corpus: Corpus, values: Floats | None, recipe: Recipe, batches: Batches, *, half: bool
    ) -> None:
        self.network = network.train()
        self.corpus = corpus
        self.batches = batches
        self.step = 0
        self._values = None if values is None else torch.from_numpy(values)
        self._recipe = recipe
        self._half = half
        self._device = next(network.parameters()).device
        self._penalty = SharedPenalty(network.encoder, recipe.training.penalty, recipe.training.penalty_weight)
        self._allowed = {
            head: torch.from_numpy(np.stack([allowed[head] for allowed in corpus.allowed])) for head in corpus.heads
        }
        self._optimiser = self._make_optimiser()

    def run(self, until: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Train up to step ``until``, yielding the number of steps done and the batch's loss by task."""
        while self.step < until:
            losses = self.learn(self.batches[self.step], self.step)
            self.step += 1
            yield self.step, losses

    def learn(self, rows: npt.NDArray[np.int64], step: int) -> dict[str, float]:
        """One optimiser step on the given rows."""
        torch.manual_seed(self._recipe.seed * 1_000_003 + step)  # by step, so a resumed run draws the same dropout
        self._set_rates(step)
        losses = self._losses(rows)
        (combine(losses, {}) + self._penalty()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self._recipe.training.gradient_norm_max)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _losses(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        settings, corpus = self._recipe.training, self.corpus
        labels = torch.from_numpy(corpus.labels[rows])
        values = None if self._values is None else self._drop_rows(self._values[rows])
        with self._precision():
            encoded = self.network.encode([corpus.prepared[i] for i in rows], values)
            encoded = functional.dropout(encoded.float(), settings.dropout)
        losses = {}
        for column, head in enumerate(corpus.heads):
            own = (labels[:, column] != NO_LABEL).nonzero()[:, 0]
            if not len(own):
                continue
            picked = rows[own.numpy()]
            loss = task_loss(
                self.network.head(head)(encoded[own.to(self._device)]),
                labels[own, column].to(self._device),
                self._allowed[head][corpus.dataset[picked]].to(self._device),
                torch.from_numpy(corpus.weights[picked, column]).to(self._device),
            )
            if loss is not None:
                losses[head] = loss
        return losses

    def _drop_rows(self, values: Tensor) -> Tensor:
        """Some rows must do without their n-grams, so that the encoder learns what the n-grams already know."""
        keep = torch.rand(len(values), 1) >= self._recipe.training.bag_drop
        return (values * keep).to(self._device)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._half else nullcontext()

    def _make_optimiser(self) -> torch.optim.AdamW:
        settings = self._recipe.training
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            rate = settings.body_lr
            if name.startswith("heads."):
                rate = settings.head_lr
            elif "word_embeddings" in name:
                rate = settings.embedding_lr
            decays = parameter.dim() == 2 and "embedding" not in name
            groups.setdefault((rate, decays), []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": params, "lr": rate, "peak": rate, "weight_decay": settings.weight_decay if decays else 0.0}
                for (rate, decays), params in groups.items()
            ]
        )

    def _set_rates(self, step: int) -> None:
        """Linear warm-up, then linearly down to zero at the end of the schedule."""
        total = len(self.batches)
        warm = max(1, int(total * self._recipe.training.warm_up))
        factor = min((step + 1) / warm, (total - step) / max(1, total - warm))
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * factor

    def measure(self, batches: Batches) -> float:
        """Tokens a second over some real steps; weights and optimiser are as before afterwards."""
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        tokens, started = 0, 0.0
        for i, rows in enumerate(batches):
            if i == 2:  # the first ones pay for allocation and compilation
                started = time.perf_counter()
            self.learn(rows, i)
            if i >= 2:
                tokens += sum(self.corpus.prepared[r].tokens for r in rows)
        elapsed = time.perf_counter() - started
        self.network.load_state_dict(before)
        self._optimiser = self._make_optimiser()
        return tokens / elapsed

    def save(self, path: Path) -> None:
        """Write weights, optimiser and step atomically as safetensors."""
        tensors = {f"network.{name}": value for name, value in self.network.named_parameters()}
        for name, parameter in self.network.named_parameters():
            for key, value in self._optimiser.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        fresh = path.with_suffix(".part")
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(content, fresh, metadata={"state": json.dumps({"step": self.step, "steps": len(self.batches)})})
        os.replace(fresh, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same schedule. Raises ModelError when it is damaged or of another run."""
        try:
            with safe_open(path, framework="pt") as handle:
                state = json.loads(handle.metadata()["state"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ModelError(f"{path}: no readable checkpoint ({error}); start again without --resume") from error
        if state["steps"] != len(self.batches):
            raise ModelError(
                f"{path} belongs to a run of {state['steps']} steps, not {len(self.batches)}; use its --out"
            )
        for name, parameter in self.network.named_parameters():
            parameter.data.copy_(tensors[f"network.{name}"])
            kept = {k: tensors[f"{k}.{name}"] for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}.{name}" in tensors}
            if kept:
                self._optimiser.state[parameter] = {k: v if k == "step" else v.to(parameter) for k, v in kept.items()}
        self.step = state["step"]
