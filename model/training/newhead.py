"""New heads on an artifact as it is, from a recipe alone; its click head is fitted anew where the recipe has one.

Encoder, n-gram channel, projection and the other heads stay untouched to the bit, so the vector space, every user's
state and every other answer stay too. Each head of the recipe is a multinomial regression on encoded rows with the loss
of the joint training (partial labels, rows out of scope, class weights, the mean absolute error of scores), its L2
strength chosen by cross-validation. A row counts as much as its data set's ``weight`` says, for no schedule draws from
one more often than from another; those of weight 0 are left out. What the folds say of rows that they had not seen
gives the temperature too, so that few rows are not divided further.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from model.artifact import Artifact
from model.clicks.dataset import ClickData
from model.clicks.install import fit_into
from model.errors import DataError
from model.experts import ExpertsConfig
from model.golden import save_with_golden
from model.scoring import Floats
from model.text import TextCodec, TextSpec
from model.torch_scorer import network_from
from model.training.corpus import Corpus, build_corpus
from model.training.examples import Tell, read_corpus
from model.training.export import encode, head_entry
from model.training.finish import finish
from model.training.loss import NO_LABEL, row_losses, score_loss
from model.training.made_from import file_digests
from model.training.recipe import Recipe, load_recipe
from model.training.trials import check_trials

STRENGTHS = (1e-4, 1e-3, 1e-2)  # of the penalty 1/2 |W|^2, per standardised row
FOLDS = 3
_ITERATIONS = 100
_log = structlog.get_logger(__name__)


def add_heads(
    recipe_path: Path, data: Path, artifact_folder: Path, out: Path, *, tell: Tell = _log.info, report: bool = False
) -> Path:
    """Fit the recipe's heads, and its click head, on the artifact's encoded rows and save the larger artifact in
    ``out`` with their figures, the data it came from and a model card; heads of the same name are replaced. ``tell``
    and ``report``: see ``finish``.

    Of the recipe, heads, data sets, calibration, trials and the click section count; body and training are the
    artifact's. Raises DataError for bad data, ArtifactError for a damaged artifact.
    """
    recipe, artifact = load_recipe(recipe_path), Artifact.load(artifact_folder)
    if not recipe.heads and not recipe.click:
        raise DataError(f"{recipe_path}: neither `heads` nor `click`: there is nothing to put onto the artifact")
    clicks = recipe.click and ClickData.read(recipe.click, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    if recipe.heads:
        _add_text_heads(recipe, data, artifact, out)
    else:
        check_trials(recipe, {}, data, click=artifact.manifest.get("click"))
        kept = artifact.manifest | {"onto": artifact.manifest["version"]}
        Artifact.save(out, kept, artifact.tensors, artifact.tokenizer_json)
    if recipe.click and clicks:
        fit_into(out, recipe.click, clicks)
    finish(recipe, data, out, tell=tell, report=report)
    return out


def _add_text_heads(recipe: Recipe, data: Path, artifact: Artifact, out: Path) -> None:
    """Fit the recipe's heads over texts and save them in ``out`` with all that the artifact has."""
    codec = TextCodec(artifact.tokenizer_json, TextSpec.from_dict(artifact.manifest["text"]))
    files = file_digests(replace(recipe, space=[]), data)
    corpus = build_corpus(recipe, read_corpus(recipe, data), codec)
    if not corpus.held.any() or corpus.held.all():
        raise DataError(f"recipe {recipe.name}: calibration_share leaves no rows on one side; give more rows")
    check_trials(recipe, corpus.heads, data, click=artifact.manifest.get("click"))
    encoded = encode(network_from(artifact).eval(), corpus.prepared)
    tensors, entries = dict(artifact.tensors), dict(artifact.manifest["heads"])
    for head in corpus.heads:
        weight, bias, rows, logits = _fit_head(recipe, corpus, head, encoded)
        tensors |= {f"heads.{head}.weight": weight.astype(np.float16), f"heads.{head}.bias": bias.astype(np.float16)}
        entries[head] = _entry(recipe, corpus, head, rows, logits, encoded[corpus.held] @ weight.T + bias)
    kept = {name: value for name, value in artifact.manifest.items() if name != "golden"}
    if "experts" in kept:  # a head that is fitted on the shared rows reads no others
        experts, tensors = ExpertsConfig.from_dict(kept["experts"]).without(corpus.heads, tensors)
        kept |= {"experts": experts.to_dict()}
    kept |= {"heads": entries, "data": kept.get("data", {}) | files, "onto": artifact.manifest["version"]}
    save_with_golden(out, kept, tensors, artifact.tokenizer_json)


@dataclass(frozen=True)
class Lesson:
    """What a head learns from, n rows and C classes: labels int64 [n], allowed bool [n, C] and weights float32 [n] as
    ``row_losses`` has them; ``worth`` float32 [n] of each row, whatever its label, one in the mean. ``levels`` [C] of a
    head of scores, whose mean absolute error counts ``error_weight``; else empty."""

    labels: Tensor
    allowed: Tensor
    weights: Tensor
    worth: Tensor
    levels: Tensor
    error_weight: float = 1.0

    def of(self, rows: npt.NDArray[np.bool_]) -> "Lesson":
        """Only the marked rows [n]."""
        chosen = torch.from_numpy(rows)
        parts = {name: getattr(self, name)[chosen] for name in ("labels", "allowed", "weights", "worth")}
        return replace(self, **parts)

    def loss(self, logits: Tensor) -> Tensor:
        """Mean loss of logits [n, C]."""
        loss = (row_losses(logits, self.labels, self.allowed, self.weights) * self.worth).mean()
        if len(self.levels):
            error = score_loss(logits, self.labels, self.levels, self.weights * self.worth)
            loss = loss + self.error_weight * error
        return loss


def _fit_head(
    recipe: Recipe, corpus: Corpus, head: str, encoded: Floats
) -> tuple[Floats, Floats, npt.NDArray[np.int64], Floats]:
    """Weight [C, d] and bias [C], and for the labelled training rows [n] the logits [n, C] of fits without them. Raises
    DataError where there are none."""
    worth = np.array([spec.weight for spec in recipe.datasets], np.float32)[corpus.dataset]
    column = corpus.names.index(head)
    rows = np.flatnonzero((corpus.labels[:, column] != NO_LABEL) & ~corpus.held & (worth > 0))
    sources, source = np.unique(corpus.origin[rows], return_inverse=True)  # a row and its variants share a fold
    if len(sources) < 2:
        raise DataError(f"head {head} has {len(sources)} labelled rows to learn from; give more, of a weight above 0")
    levels = [float(label) for label in corpus.heads[head]] if recipe.heads[head].kind == "score" else []
    lesson = Lesson(
        labels=torch.from_numpy(corpus.labels[rows, column]),
        allowed=torch.from_numpy(np.stack([own[head] for own in corpus.allowed])[corpus.dataset[rows]]),
        weights=torch.from_numpy(corpus.weights[rows, column]),
        worth=torch.from_numpy(worth[rows] / worth[rows].mean()),
        levels=torch.tensor(levels),
        error_weight=recipe.heads[head].error_weight,
    )
    x = encoded[rows]
    fold = np.random.default_rng(recipe.seed).permutation(len(sources))[source] % FOLDS
    unseen = [np.zeros(lesson.allowed.shape, np.float32) for _ in STRENGTHS]
    for strength, logits in zip(STRENGTHS, unseen, strict=True):
        for k in range(FOLDS):
            weight, bias = fit_linear(x[fold != k], lesson.of(fold != k), strength=strength)
            logits[fold == k] = x[fold == k] @ weight.T + bias
    losses = [float(lesson.loss(torch.from_numpy(logits))) for logits in unseen]
    best = int(np.argmin(losses))
    _log.info("head fitted", head=head, rows=len(rows), strength=STRENGTHS[best], loss=round(losses[best], 4))
    return *fit_linear(x, lesson, strength=STRENGTHS[best]), rows, unseen[best]


def _entry(
    recipe: Recipe, corpus: Corpus, head: str, rows: npt.NDArray[np.int64], unseen: Floats, held_logits: Floats
) -> dict[str, Any]:
    """A head's manifest entry: the temperature from ``unseen`` [n, C], what the folds say of ``rows`` [n], where those
    are real rows with real labels; the threshold from the held rows [m, C], or with none to choose the temperature."""
    guessed = np.array([spec.guessed for spec in recipe.datasets])[corpus.dataset[rows]]
    read = ~guessed & (corpus.origin[rows] == rows)
    chosen = np.concatenate([rows[read], np.flatnonzero(corpus.held)])
    first = np.arange(len(chosen)) < read.sum() if recipe.heads[head].threshold else np.ones(len(chosen), bool)
    return head_entry(recipe, corpus, head, chosen, np.concatenate([unseen[read], held_logits]), first)


def fit_linear(x: Floats, lesson: Lesson, *, strength: float) -> tuple[Floats, Floats]:
    """Weight [C, d] and bias [C] that minimise the lesson's loss plus strength/2 |W|^2 over standardised x [n, d]."""
    mean, spread = x.mean(0), np.maximum(x.std(0), 1e-6)
    rows = torch.from_numpy(((x - mean) / spread).astype(np.float32))
    weight = torch.zeros(lesson.allowed.shape[1], x.shape[1], requires_grad=True)
    bias = torch.zeros(lesson.allowed.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = lesson.loss(rows @ weight.T + bias) + 0.5 * strength * weight.pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    own = weight.detach().numpy() / spread
    return own.astype(np.float32), (bias.detach().numpy() - own @ mean).astype(np.float32)
