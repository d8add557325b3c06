"""New heads on an artifact as it is, from a recipe alone; its click head is fitted anew where the recipe has one.

Encoder, n-gram channel, projection and the other heads stay untouched to the bit, so the vector space, every user's
state and every other answer stay too. Each head of the recipe is a multinomial regression on encoded rows with the loss
of the joint training (partial labels, rows out of scope, class weights), its L2 strength chosen by cross-validation.
What the folds say of rows that they had not seen gives the temperature too, so that few rows are not divided further.
"""

from dataclasses import replace
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
from model.training.loss import NO_LABEL, task_loss
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
        check_trials(recipe, {}, data)
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
    check_trials(recipe, corpus.heads, data)
    encoded = encode(network_from(artifact).eval(), corpus.prepared)
    tensors, entries = dict(artifact.tensors), dict(artifact.manifest["heads"])
    for head in corpus.heads:
        weight, bias, rows, logits = _fit_head(corpus, head, encoded, recipe.seed)
        tensors |= {f"heads.{head}.weight": weight.astype(np.float16), f"heads.{head}.bias": bias.astype(np.float16)}
        entries[head] = _entry(recipe, corpus, head, rows, logits, encoded[corpus.held] @ weight.T + bias)
    kept = {name: value for name, value in artifact.manifest.items() if name != "golden"}
    if "experts" in kept:  # a head that is fitted on the shared rows reads no others
        experts, tensors = ExpertsConfig.from_dict(kept["experts"]).without(corpus.heads, tensors)
        kept |= {"experts": experts.to_dict()}
    kept |= {"heads": entries, "data": kept.get("data", {}) | files, "onto": artifact.manifest["version"]}
    save_with_golden(out, kept, tensors, artifact.tokenizer_json)


def _fit_head(
    corpus: Corpus, head: str, encoded: Floats, seed: int
) -> tuple[Floats, Floats, npt.NDArray[np.int64], Floats]:
    """Weight [C, d] and bias [C], and for the labelled training rows [n] the logits [n, C] of fits without them."""
    column = corpus.names.index(head)
    rows = np.flatnonzero((corpus.labels[:, column] != NO_LABEL) & ~corpus.held)
    allowed = np.stack([own[head] for own in corpus.allowed])[corpus.dataset[rows]]
    parts = (encoded[rows], corpus.labels[rows, column], allowed, corpus.weights[rows, column])
    sources, source = np.unique(corpus.origin[rows], return_inverse=True)  # a row and its variants share a fold
    fold = np.random.default_rng(seed).permutation(len(sources))[source] % FOLDS
    unseen = [np.zeros(allowed.shape, np.float32) for _ in STRENGTHS]
    for strength, logits in zip(STRENGTHS, unseen, strict=True):
        for k in range(FOLDS):
            weight, bias = fit_linear(*(part[fold != k] for part in parts), strength=strength)
            logits[fold == k] = parts[0][fold == k] @ weight.T + bias
    losses = [_loss(logits, *parts[1:]) for logits in unseen]
    best = int(np.argmin(losses))
    _log.info("head fitted", head=head, rows=len(rows), strength=STRENGTHS[best], loss=round(losses[best], 4))
    return *fit_linear(*parts, strength=STRENGTHS[best]), rows, unseen[best]


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


def fit_linear(
    x: Floats,
    labels: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float32],
    *,
    strength: float,
) -> tuple[Floats, Floats]:
    """Weight [C, d] and bias [C] that minimise ``task_loss`` plus strength/2 |W|^2 over standardised rows x [n, d]."""
    mean, spread = x.mean(0), np.maximum(x.std(0), 1e-6)
    rows = torch.from_numpy(((x - mean) / spread).astype(np.float32))
    truth, known, worth = torch.from_numpy(labels), torch.from_numpy(allowed), torch.from_numpy(weights)
    weight = torch.zeros(allowed.shape[1], x.shape[1], requires_grad=True)
    bias = torch.zeros(allowed.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = task_loss(rows @ weight.T + bias, truth, known, worth)
        if loss is None:
            raise DataError("a head has no labelled rows left to learn from; give more rows")
        loss = loss + 0.5 * strength * weight.pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    own = weight.detach().numpy() / spread
    return own.astype(np.float32), (bias.detach().numpy() - own @ mean).astype(np.float32)


def _loss(
    logits: Floats,
    labels: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float32],
) -> float:
    truth, known, worth = torch.from_numpy(labels), torch.from_numpy(allowed), torch.from_numpy(weights)
    loss = task_loss(torch.from_numpy(logits), truth, known, worth)
    return float("inf") if loss is None else float(loss)
