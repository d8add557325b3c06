"""New heads on an artifact as it is, from a recipe alone; its click head is fitted anew where the recipe has one.

Encoder, n-gram channel, projection and the other heads stay untouched to the bit, so the vector space, every user's
state and every other answer stay too. Each head of the recipe is a multinomial regression on encoded rows with the loss
of the joint training (partial labels, rows out of scope, class weights), its L2 strength chosen by cross-validation.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from model.artifact import Artifact
from model.clicks.dataset import ClickData
from model.clicks.install import fit_into
from model.data import fingerprint
from model.errors import DataError
from model.experts import ExpertsConfig
from model.golden import save_with_golden
from model.scoring import Floats
from model.text import TextCodec, TextSpec
from model.torch_scorer import network_from
from model.training.corpus import Corpus, build_corpus, read_corpus
from model.training.export import encode, head_entry, write_card
from model.training.loss import NO_LABEL, task_loss
from model.training.recipe import Recipe, load_recipe
from model.training.trials import add_figures, check_trials

STRENGTHS = (1e-4, 1e-3, 1e-2)  # of the penalty 1/2 |W|^2, per standardised row
FOLDS = 3
_ITERATIONS = 100
_log = structlog.get_logger(__name__)


def add_heads(recipe_path: Path, data: Path, artifact_folder: Path, out: Path) -> Path:
    """Fit the recipe's heads, and its click head, on the artifact's encoded rows and save the larger artifact in
    ``out`` with their figures, the data it came from and a model card; heads of the same name are replaced.

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
        kept = artifact.manifest | {"onto": artifact.manifest["version"]}
        Artifact.save(out, kept, artifact.tensors, artifact.tokenizer_json)
    if recipe.click and clicks:
        fit_into(out, recipe.click, clicks)
    write_card(recipe, out)
    return out


def _add_text_heads(recipe: Recipe, data: Path, artifact: Artifact, out: Path) -> None:
    """Fit the recipe's heads over texts and save them in ``out`` with all that the artifact has."""
    codec = TextCodec(artifact.tokenizer_json, TextSpec.from_dict(artifact.manifest["text"]))
    corpus = build_corpus(recipe, read_corpus(recipe, data), codec)
    if not corpus.held.any() or corpus.held.all():
        raise DataError(f"recipe {recipe.name}: calibration_share leaves no rows on one side; give more rows")
    check_trials(recipe, corpus.heads, data)
    encoded = encode(network_from(artifact).eval(), corpus.prepared)
    tensors, entries = dict(artifact.tensors), dict(artifact.manifest["heads"])
    for head in corpus.heads:
        weight, bias = _fit_head(corpus, head, encoded, recipe.seed)
        tensors |= {f"heads.{head}.weight": weight.astype(np.float16), f"heads.{head}.bias": bias.astype(np.float16)}
        entries[head] = head_entry(recipe, corpus, head, encoded[corpus.held] @ weight.T + bias)
    kept = {name: value for name, value in artifact.manifest.items() if name != "golden"}
    if "experts" in kept:  # a head that is fitted on the shared rows reads no others
        experts, tensors = ExpertsConfig.from_dict(kept["experts"]).without(corpus.heads, tensors)
        kept |= {"experts": experts.to_dict()}
    own = {dataset.file: fingerprint(data / dataset.file) for dataset in recipe.datasets if dataset.file}
    kept |= {"heads": entries, "data": kept.get("data", {}) | own, "onto": artifact.manifest["version"]}
    save_with_golden(out, kept, tensors, artifact.tokenizer_json)
    add_figures(recipe, data, out)


def _fit_head(corpus: Corpus, head: str, encoded: Floats, seed: int) -> tuple[Floats, Floats]:
    column = corpus.names.index(head)
    rows = np.flatnonzero((corpus.labels[:, column] != NO_LABEL) & ~corpus.held)
    allowed = np.stack([own[head] for own in corpus.allowed])[corpus.dataset[rows]]
    parts = (encoded[rows], corpus.labels[rows, column], allowed, corpus.weights[rows, column])
    fold = np.random.default_rng(seed).integers(FOLDS, size=len(rows))
    losses = []
    for strength in STRENGTHS:
        total = 0.0
        for k in range(FOLDS):
            weight, bias = fit_linear(*(part[fold != k] for part in parts), strength=strength)
            total += _loss(weight, bias, *(part[fold == k] for part in parts))
        losses.append(total / FOLDS)
    best = STRENGTHS[int(np.argmin(losses))]
    _log.info("head fitted", head=head, rows=len(rows), strength=best, loss=round(min(losses), 4))
    return fit_linear(*parts, strength=best)


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
    weight: Floats,
    bias: Floats,
    x: Floats,
    labels: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float32],
) -> float:
    logits = torch.from_numpy(x @ weight.T + bias)
    loss = task_loss(logits, torch.from_numpy(labels), torch.from_numpy(allowed), torch.from_numpy(weights))
    return float("inf") if loss is None else float(loss)
