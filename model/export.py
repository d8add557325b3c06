"""From a trained network to an artifact: calibration, vector space, golden set, figures on the valid files."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch

from model.artifact import Artifact
from model.calibrate import blend, scope_threshold, softmax, temperature
from model.card import render
from model.corpus import Corpus, space_texts
from model.data import fingerprint, read_labelled
from model.encoder import chunks
from model.evaluate import OUTSIDE, evaluate_files, evaluate_texts
from model.golden import save_with_golden
from model.network import Network
from model.recipe import Recipe, Trial
from model.scoring import Floats, Prepared, Scorer, load_scorer
from model.space import fit_space
from model.text import TextCodec, normalise
from model.torch_scorer import tensors_from

_log = structlog.get_logger(__name__)


def export(
    recipe: Recipe,
    network: Network,
    corpus: Corpus,
    machines: dict[str, torch.Tensor],
    codec: TextCodec,
    tokenizer_json: str,
    data: Path,
    folder: Path,
) -> Path:
    """Blend and calibrate on the held rows, fit the vector space, save, and record the figures on the recipe's valid
    files. ``machines``: ``linear_weights`` of the network."""
    held = np.flatnonzero(corpus.held)
    encoded = encode(network, [corpus.prepared[i] for i in held])
    for head, machine in machines.items():
        _blend(network, corpus, head, machine, held, encoded)
    heads = {head: _calibrated(recipe, network, corpus, head, held, encoded) for head in corpus.heads}
    rows = encode(network, codec.prepare(space_texts(recipe.space, data))) if recipe.space else encoded
    mean, projection = fit_space(rows, network.encoder.config.hidden)
    tensors = tensors_from(network) | {"space.mean": mean, "space.projection": projection}
    files = sorted({d.file for d in recipe.datasets if d.file} | {s.file for s in recipe.space})
    manifest: dict[str, Any] = {
        "name": recipe.name,
        "text": codec.spec.to_dict(),
        "encoder": network.encoder.config.to_dict(),
        "bag_columns": 0 if network.bag is None else network.bag.columns,
        "bag_grams": 0 if network.bag is None else len(network.bag.idf),
        "heads": heads,
        "data": {name: fingerprint(data / name) for name in files},
        "metrics": [],
    }
    save_with_golden(folder, manifest, tensors, tokenizer_json)
    return _with_metrics(recipe, data, folder)


def encode(network: Network, prepared: list[Prepared]) -> Floats:
    """Encoded rows [n, hidden] of prepared texts, in float32 without gradients."""
    result = np.zeros((len(prepared), network.hidden), np.float32)
    with torch.inference_mode():
        for part in chunks([p.tokens for p in prepared], 192, 6144):
            result[part] = network.encode([prepared[i] for i in part]).float().cpu().numpy()
    return result


def _with_metrics(recipe: Recipe, data: Path, folder: Path) -> Path:
    """Add the figures on the valid files that are there, with each file's fingerprint."""
    scorer = load_scorer(folder)
    figures = []
    for trial in recipe.evaluation:
        path = data / trial.file
        if not path.exists():
            continue
        files = {"files": {trial.file: fingerprint(path)}}
        figures.append(evaluate_files(scorer, trial.task, [path]) | files)
        if trial.without:
            figures.append(_unseen(scorer, trial, data) | files | {"rows": "texts not in train"})
    artifact = Artifact.load(folder)
    Artifact.save(folder, artifact.manifest | {"metrics": figures}, artifact.tensors, artifact.tokenizer_json)
    return folder


def write_card(recipe: Recipe, folder: Path) -> None:
    """Write the model card, README.md, of an artifact as it is now."""
    card = render(recipe, Artifact.load(folder).manifest)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _unseen(scorer: Scorer, trial: Trial, data: Path) -> dict[str, Any]:
    """Figures on the rows of a valid file whose text does not stand in the training file."""
    known = {normalise(text, lower=True) for text in read_labelled([data / trial.without], trial.task)[0]}
    pairs = zip(*read_labelled([data / trial.file], trial.task), strict=True)
    rows = [(text, label) for text, label in pairs if normalise(text, lower=True) not in known]
    return evaluate_texts(scorer, trial.task, [text for text, _ in rows], [label for _, label in rows])


def _blend(
    network: Network, corpus: Corpus, head: str, machine: torch.Tensor, held: npt.NDArray[np.int64], encoded: Floats
) -> None:
    """Weigh a head's three sources anew on the held rows, in place: what it reads from the encoder, what it reads from
    the n-gram columns, and its own linear machine as it is."""
    labels = corpus.labels[held, corpus.names.index(head)]
    own = labels >= 0
    if not own.any():
        return
    layer, body = network.head(head), network.encoder.config.hidden
    from_encoder, from_grams = layer.weight.detach().clone().cpu(), layer.weight.detach().clone().cpu()
    from_encoder[:, body:], from_grams[:, :body] = 0.0, 0.0
    bias = layer.bias.detach().cpu().numpy()
    rows = encoded[own].astype(np.float64)
    parts = [rows @ from_encoder.numpy().T + bias, rows @ from_grams.numpy().T, rows @ machine.numpy().T]
    allowed = np.stack([corpus.allowed[d][head] for d in corpus.dataset[held[own]]])
    a, b, c = (float(w) for w in blend(parts, labels[own], allowed, prior=(1.0, 1.0, 0.0)))
    _log.info("blend", head=head, encoder=round(a, 3), grams=round(b, 3), machine=round(c, 3))
    with torch.no_grad():
        layer.weight.copy_(a * from_encoder + b * from_grams + c * machine)
        layer.bias.mul_(a)


def _calibrated(
    recipe: Recipe, network: Network, corpus: Corpus, head: str, held: npt.NDArray[np.int64], encoded: Floats
) -> dict[str, Any]:
    """A head's manifest entry: labels, temperature and, for an intent, the threshold."""
    names = corpus.heads[head]
    labels = corpus.labels[held, corpus.names.index(head)]
    own = labels >= 0
    entry: dict[str, Any] = {"labels": names, "temperature": 1.0, "threshold": None, "calibration_rows": int(own.sum())}
    if not own.any():
        return entry
    layer = network.head(head)
    weight, bias = layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()
    logits = (encoded[own] @ weight.T + bias).astype(np.float64)
    allowed = np.stack([corpus.allowed[d][head] for d in corpus.dataset[held[own]]])
    entry["temperature"] = temperature(logits, labels[own], allowed)
    if recipe.heads[head].threshold:
        inside = np.array([names[label] != OUTSIDE for label in labels[own]])
        entry["threshold"] = scope_threshold(softmax(logits[inside], entry["temperature"]), recipe.reject_share)
    return entry
