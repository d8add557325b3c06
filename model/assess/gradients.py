"""Integrated gradients of a torch artifact: the way from a text of padding to the text, step by step.

Sundararajan, Taly and Yan 2017: the weight of an input is (x - x0) times its gradient's mean on the straight way from a
baseline x0 to x, and the weights add up to F(x) - F(x0). Here F is the log-odds of a label; the inputs are the word
embeddings (special tokens stay as they are, for they are no part of the text) and the columns of the n-gram channel,
whose baseline is the channel without any n-gram. A column is a plain sum over n-grams, so its weight is
handed on to the n-grams exactly, and from each in equal shares to its characters or words.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.assess.spans import Span, origins
from model.encoder import PackedEncoder, PaddedEncoder
from model.scoring import Prepared
from model.text import gram_places
from model.torch_scorer import CHUNK_TOKENS_MAX, TorchScorer

ERROR_MAX = 0.005  # the way is taken in twice as many steps until the weights add up within this share of it
_STEPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Path:
    """weights: log-odds by span of the original text. base_logit, end_logit: F at both ends. error: |sum of weights -
    (end - base)| as a share of |end - base| (of 0.01 where that is smaller)."""

    weights: Mapping[Span, float]
    base_logit: float
    end_logit: float
    error: float


def integrated_gradients(scorer: TorchScorer, head: str, text: str, column: int) -> Path:
    """Weights of a text's pieces and n-grams on the log-odds of label ``column`` of ``head``."""
    prepared = scorer.prepare([text])[0]
    clean, pieces = scorer.codec.pieces(text)
    walk = _Walk(scorer, head, column, prepared, [span is not None for span in pieces])
    for steps in _STEPS:
        tokens, columns = walk.weights(steps)
        way = walk.end - walk.base
        error = abs(float(tokens.sum() + columns.sum()) - way) / max(abs(way), 0.01)
        if error <= ERROR_MAX:
            break
    found: dict[Span, float] = {}
    back = origins(text, scorer.codec)

    def add(span: Span, weight: float) -> None:
        start, end = _trimmed(clean, span)
        place = (back[start][0], back[end - 1][1])
        found[place] = found.get(place, 0.0) + weight

    for span, weight in zip(pieces, tokens.tolist(), strict=True):
        if span is not None and span[1] > span[0]:
            add(span, weight)
    for places, weight in _of_grams(scorer, prepared, clean, walk.slopes):
        for span in places:
            add(span, weight / len(places))
    return Path(found, walk.base, walk.end, error)


class _Walk:
    """The straight way for one text. ``slopes`` [columns]: mean gradient of the n-gram columns, after ``weights``."""

    def __init__(self, scorer: TorchScorer, head: str, column: int, prepared: Prepared, moves: list[bool]) -> None:
        self._network, self._column, self._prepared = scorer.network, column, prepared
        self._head, self._temperature = head, float(scorer.manifest["heads"][head]["temperature"])
        self._table = _word_embeddings(scorer.network.encoder)
        weight = self._table.weight.detach()
        self._x = weight[torch.from_numpy(prepared.ids).long().to(weight.device)].float()
        pad = scorer.codec.piece_id("[PAD]", "<pad>")
        base = torch.zeros_like(self._x[0]) if pad is None else weight[pad].float()
        moving = torch.tensor(moves, device=weight.device)[:, None]
        self._base = torch.where(moving, base, self._x)
        bag = scorer.network.bag
        none = torch.zeros(0, device=weight.device)
        with torch.no_grad():
            self._columns = none if bag is None else bag([prepared])[0]
        self._base_columns = none if bag is None else bag.bias
        self.slopes = torch.zeros_like(self._columns)
        with torch.no_grad():
            ends = self._log_odds(*self._between(torch.tensor([0.0, 1.0], device=weight.device)))
        self.base, self.end = float(ends[0]), float(ends[1])

    def weights(self, steps: int) -> tuple[Tensor, Tensor]:
        """Weights of the tokens [T] and of the n-gram columns [columns], by Gauss-Legendre quadrature."""
        nodes, shares = (torch.from_numpy(a).to(self._x) for a in np.polynomial.legendre.leggauss(steps))
        points, shares = (nodes + 1) / 2, shares / 2
        slope, self.slopes = torch.zeros_like(self._x), torch.zeros_like(self._columns)
        size = max(1, CHUNK_TOKENS_MAX // len(self._x))
        for start in range(0, steps, size):
            part, share = points[start : start + size], shares[start : start + size]
            inputs = [value.requires_grad_() for value in self._between(part)]
            with torch.enable_grad():
                total = self._log_odds(*inputs).sum()
            gradients = torch.autograd.grad(
                total, inputs, allow_unused=True
            )  # without a channel its columns are unused
            slope += torch.einsum("s,sth->th", share, gradients[0])
            if gradients[1] is not None:
                self.slopes += share @ gradients[1]
        return ((self._x - self._base) * slope).sum(1), (self._columns - self._base_columns) * self.slopes

    def _between(self, points: Tensor) -> list[Tensor]:
        """Embeddings [s, T, hidden] and columns [s, columns] at the points [s] of the way."""
        embedded = self._base + points[:, None, None] * (self._x - self._base)
        return [embedded, self._base_columns + points[:, None] * (self._columns - self._base_columns)]

    def _log_odds(self, embedded: Tensor, columns: Tensor) -> Tensor:
        """Log-odds of the label [s]. All copies are equally long, so packing keeps their order."""

        def replace(_: nn.Module, __: object, output: Tensor) -> Tensor:
            return embedded.reshape(output.shape).to(output.dtype)

        handle = self._table.register_forward_hook(replace)
        try:
            values = None if self._network.bag is None else columns
            encoded = self._network.encode([self._prepared] * len(embedded), values)
        finally:
            handle.remove()
        logits = self._network.logits(self._head, encoded.float()) / self._temperature
        others = torch.arange(logits.shape[1], device=logits.device) != self._column
        rest: Tensor = logits[:, others].logsumexp(1)
        return logits[:, self._column] - rest


def _word_embeddings(encoder: PackedEncoder | PaddedEncoder) -> nn.Embedding:
    if isinstance(encoder, PackedEncoder):
        return encoder.embeddings.word_embeddings
    return encoder.model.get_input_embeddings()  # type: ignore[no-any-return]


def _of_grams(scorer: TorchScorer, prepared: Prepared, clean: str, slopes: Tensor) -> list[tuple[list[Span], float]]:
    """Spans of every n-gram's units in the normalised text and its weight; repeats of an n-gram share it equally."""
    bag = scorer.network.bag
    if bag is None:
        return []
    buckets, values = bag.parts(prepared)
    weight: npt.NDArray[np.float64] = values.astype(np.float64) @ slopes.double().cpu().numpy()
    of_bucket = dict(zip(buckets.tolist(), weight.tolist(), strict=True))
    places = [(bucket, units) for bucket, units in gram_places(clean, scorer.codec.spec) if bucket in of_bucket]
    counts: dict[int, int] = {}
    for bucket, _ in places:
        counts[bucket] = counts.get(bucket, 0) + 1
    return [(units, of_bucket[bucket] / counts[bucket]) for bucket, units in places]


def _trimmed(clean: str, span: Span) -> Span:
    """Without outer spaces, which some tokenizers count to their pieces; a piece of spaces alone stays as it is."""
    start, end = span
    part = clean[start:end]
    if not part.strip():
        return span
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
