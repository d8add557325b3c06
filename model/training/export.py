"""From a trained network to an artifact: calibration, vector space, golden set, figures on the valid files."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch

from model.artifact import Artifact
from model.assess.evaluate import OUTSIDE
from model.calibrate import CALIBRATION_ROWS_MIN, blend, calibrate, log_loss, temperature
from model.golden import save_with_golden
from model.network import Network
from model.packing import chunks
from model.scoring import Floats, Prepared
from model.space import fit_space
from model.text import TextCodec
from model.torch_scorer import round_encoder, tensors_from
from model.training.card import render
from model.training.corpus import Corpus, evenly
from model.training.loss import NO_LABEL
from model.training.recipe import Recipe

SPACE_ROWS_MIN = 1000  # of a recipe without texts for the vector space: with fewer held rows, training rows join in
_log = structlog.get_logger(__name__)


def export(
    recipe: Recipe,
    network: Network,
    corpus: Corpus,
    machines: dict[str, torch.Tensor],
    codec: TextCodec,
    tokenizer_json: str,
    spread: Sequence[str],
    folder: Path,
) -> Path:
    """Blend and calibrate on the held rows, fit the vector space, and save. ``machines``: ``linear_weights`` of the
    network. ``spread``: texts for the vector space; none: rows of the corpus."""
    if recipe.int8:
        round_encoder(network)
    held = np.flatnonzero(corpus.held)
    encoded = encode(network, [corpus.prepared[i] for i in held])
    for head, machine in machines.items():
        _blend(network, corpus, head, machine, held, encoded)
    heads = {
        head: head_entry(recipe, corpus, head, held, _logits(network, head, encoded), first_half(len(held)))
        for head in corpus.heads
    }
    rows = encoded
    if spread:
        rows = encode(network, codec.prepare(spread))
    elif len(held) < SPACE_ROWS_MIN:
        chosen = evenly(np.arange(len(corpus.prepared)), SPACE_ROWS_MIN)
        rows = encode(network, [corpus.prepared[i] for i in chosen])
    mean, projection = fit_space(rows, network.encoder.config.hidden)
    tensors = tensors_from(network, int8=recipe.int8) | {"space.mean": mean, "space.projection": projection}
    manifest: dict[str, Any] = {
        "name": recipe.name,
        "text": codec.spec.to_dict(),
        "encoder": network.encoder.config.to_dict(),
        "bag_columns": 0 if network.bag is None else network.bag.columns,
        "bag_grams": 0 if network.bag is None else len(network.bag.idf),
        "heads": heads,
        **({} if network.experts is None else {"experts": network.experts.config.to_dict()}),
        "data": dict(corpus.files),
        "metrics": [],
    }
    save_with_golden(folder, manifest, tensors, tokenizer_json)
    return folder


def encode(network: Network, prepared: list[Prepared], values: Floats | None = None) -> Floats:
    """Encoded rows [n, hidden] of prepared texts, in float32 without gradients. ``values`` [n, columns] stand for those
    of the n-gram channel."""
    device = next(network.parameters()).device
    result = np.zeros((len(prepared), network.hidden), np.float32)
    with torch.inference_mode():
        for part in chunks([p.tokens for p in prepared], 192, 6144):
            own = None if values is None else torch.from_numpy(values[part]).to(device)
            result[part] = network.encode([prepared[i] for i in part], own).float().cpu().numpy()
    return result


def write_card(recipe: Recipe, folder: Path) -> None:
    """Write the model card, README.md, of an artifact as it is now."""
    card = render(recipe, Artifact.load(folder).manifest)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _blend(
    network: Network, corpus: Corpus, head: str, machine: torch.Tensor, held: npt.NDArray[np.int64], encoded: Floats
) -> None:
    """Weigh a head's three sources anew on the held rows, in place: what it reads from the encoder, what it reads from
    the n-gram columns, and its own linear machine as it is. Weights that do no better on the rows that they were not
    fitted on are not taken: of a few hundred rows three weights learn the noise too."""
    labels = corpus.labels[held, corpus.names.index(head)]
    fitted = (labels >= 0) & first_half(len(held))
    judged = (labels >= 0) & ~first_half(len(held))
    if not fitted.any() or not judged.any():
        return
    layer, body = network.head(head), network.encoder.config.hidden
    from_encoder, from_grams = layer.weight.detach().clone().cpu(), layer.weight.detach().clone().cpu()
    from_encoder[:, body:], from_grams[:, :body] = 0.0, 0.0
    bias = layer.bias.detach().cpu().numpy()
    rows = network.read(head, encoded).astype(np.float64)
    parts = [rows @ from_encoder.numpy().T + bias, rows @ from_grams.numpy().T, rows @ machine.numpy().T]
    allowed = np.array([corpus.allowed[d][head] for d in corpus.dataset[held]])
    unchanged = (1.0, 1.0, 0.0)
    found = blend([part[fitted] for part in parts], labels[fitted], allowed[fitted], prior=unchanged)

    def loss(weights: Sequence[float]) -> float:
        total = np.tensordot(weights, parts, 1)
        heat = temperature(total[fitted], labels[fitted], allowed[fitted])
        return log_loss(total[judged] / heat, labels[judged], allowed[judged])

    a, b, c = (float(w) for w in found)
    before, after = loss(unchanged), loss((a, b, c))
    shown = {"encoder": a, "grams": b, "machine": c, "before": before, "after": after}
    _log.info("blend", head=head, taken=after < before, **{name: round(value, 3) for name, value in shown.items()})
    if after >= before:
        return
    with torch.no_grad():
        layer.weight.copy_(a * from_encoder + b * from_grams + c * machine)
        layer.bias.mul_(a)


def head_entry(
    recipe: Recipe,
    corpus: Corpus,
    head: str,
    rows: npt.NDArray[np.int64],
    logits: Floats,
    first: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """A head's manifest entry from logits [n, labels] of rows [n] that it was not fitted on: labels, kind, the fields
    of its training rows, temperature (from those marked in ``first`` [n]), for an intent the threshold (from the
    others), and decision weights where the recipe asks for them."""
    names, columns = corpus.heads[head], recipe.columns(head)
    labels = corpus.labels[rows, corpus.names.index(head)]
    own, known = labels != NO_LABEL, int((labels >= 0).sum())
    if known < CALIBRATION_ROWS_MIN:
        hint = "how sure it is says little; give more rows or a larger calibration_share"
        _log.warning("few calibration rows", head=head, rows=known, hint=hint)
    found = calibrate(
        logits[own].astype(np.float64),
        labels[own],
        np.array([corpus.allowed[d][head] for d in corpus.dataset[rows[own]]]).reshape(-1, len(names)),
        first[own],
        oos=names.index(OUTSIDE) if OUTSIDE in names else None,
        cost=recipe.scope_cost if recipe.heads[head].threshold else None,
        shares=_shares(corpus, head) if recipe.heads[head].decide == "macro_f1" else None,
    )
    return {
        "labels": names,
        "kind": recipe.heads[head].kind,
        "text": list(columns.text),
        "field": columns.label,
        "calibration_rows": known,
        **asdict(found),
    }


def _shares(corpus: Corpus, head: str) -> npt.NDArray[np.float64]:
    """Of a head's labels, [labels], among the rows as they were read whose data set knows all of them."""
    whole = np.array([own[head].all() for own in corpus.allowed])[corpus.dataset]
    labels = corpus.labels[whole & (corpus.origin == np.arange(len(corpus.origin))), corpus.names.index(head)]
    counts = np.bincount(labels[labels >= 0], minlength=len(corpus.heads[head]))
    return np.asarray(counts / max(counts.sum(), 1), np.float64)


def first_half(rows: int) -> npt.NDArray[np.bool_]:
    """Which of the held rows [rows] weigh and cool the heads; the others choose thresholds."""
    return np.asarray(np.arange(rows) % 2 == 0)


def _logits(network: Network, head: str, encoded: Floats) -> Floats:
    layer = network.head(head)
    weight, bias = layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()
    return np.asarray(network.read(head, encoded) @ weight.T + bias)
