"""Texts end to end: what every encoder reads. Pure layout, no weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.scoring import Ints

GROUP_WASTE_MAX = 0.15  # share of padding that an attention group may carry before a new group begins
LENGTH_STEP = 16
"""Attention groups are as long as a multiple of this: with AVX-512 a token of texts of 15 costs 41 us of one core in
twelve layers, of texts of 16 it costs 10, since what does not fill a vector is done one by one."""


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbours in length whose attention is computed together: sorted tokens [start, end), g texts, the longest L.

    The last three are None where all lengths are equal, as the tokens then are a grid already. index: int64 [g * L]
    into the sorted tokens, padding points at a text's own last token. mask: bool [g, 1, 1, L], False on padding.
    real: int64 [end - start], places of the tokens in the grid.
    """

    start: int
    end: int
    texts: int
    longest: int
    index: Tensor | None = None
    mask: Tensor | None = None
    real: Tensor | None = None

    def grid(self, values: Tensor) -> Tensor:
        """The group's rows of [T, w] as [g * L, w]: a view where all lengths are equal."""
        return values[self.start : self.end] if self.index is None else values.index_select(0, self.index)

    def tokens(self, values: Tensor) -> Tensor:
        """Back from [g * L, w] to the group's tokens [end - start, w]."""
        return values if self.real is None else values.index_select(0, self.real)


@dataclass(frozen=True, slots=True)
class Packed:
    """Texts end to end, longest first. T tokens, n texts.

    tokens, positions, rows: int64 [T] (rows: which sorted text a token belongs to). starts, lengths: int64 [n].
    ends: int32 [n + 1], 0 and then where each sorted text ends; longest: tokens of the longest text. groups cover the
    sorted tokens in order, or are empty where attention goes by ``ends``. restore: int64 [n], sorted place of each
    original text.
    """

    tokens: Tensor
    positions: Tensor
    rows: Tensor
    starts: Tensor
    lengths: Tensor
    ends: Tensor
    longest: int
    groups: tuple[Group, ...]
    restore: Tensor


def pack(
    ids: Sequence[Ints], device: torch.device | str = "cpu", *, grouped: bool = True, step: int = LENGTH_STEP
) -> Packed:
    """Lay token ids end to end, sorted by length. Every text must hold at least one token. Without ``grouped`` there
    are no groups: for attention that reads ``ends``. ``step``: groups are as long as a multiple of it; 1 where all of
    an encoder, not its attention alone, would compute what is added."""
    lengths = np.array([len(i) for i in ids], np.int64)
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    rows = np.repeat(np.arange(len(ids)), lengths)

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    groups = []
    for first, last in _group(lengths, step) if grouped else []:
        start, end, longest = int(starts[first]), int(ends[last - 1]), _stepped(int(lengths[first]), step)
        group = Group(start, end, last - first, longest)
        if lengths[last - 1] < longest:
            steps = np.arange(longest)
            real = steps[None, :] < lengths[first:last, None]
            index = starts[first:last, None] + np.minimum(steps[None, :], lengths[first:last, None] - 1)
            padding = (tensor(index.reshape(-1)), tensor(real[:, None, None, :]), tensor(np.flatnonzero(real)))
            group = Group(start, end, last - first, longest, *padding)
        groups.append(group)
    tokens = np.concatenate([ids[i] for i in order]).astype(np.int64)
    by_token = tensor(np.stack([tokens, np.arange(len(tokens)) - starts[rows], rows]))  # one copy to a device, not six
    by_text = tensor(np.stack([starts, lengths, np.argsort(order, kind="stable")]))
    return Packed(
        tokens=by_token[0],
        positions=by_token[1],
        rows=by_token[2],
        starts=by_text[0],
        lengths=by_text[1],
        ends=tensor(np.concatenate([[0], ends]).astype(np.int32)),
        longest=int(lengths[0]),
        groups=tuple(groups),
        restore=by_text[2],
    )


def _stepped(length: int, step: int) -> int:
    return -(-length // step) * step


def _group(lengths: npt.NDArray[np.int64], step: int) -> list[tuple[int, int]]:
    """Runs [first, last) of descending lengths. Texts whose lengths step up to the same are together, others where
    their padding stays within GROUP_WASTE_MAX."""
    groups, first, total = [], 0, 0
    for i, length in enumerate(lengths.tolist()):
        longest = _stepped(int(lengths[first]), step)
        padded = (i - first + 1) * longest
        if _stepped(length, step) < longest and padded - (total + length) > GROUP_WASTE_MAX * padded:
            groups.append((first, i))
            first, total = i, 0
        total += length
    groups.append((first, len(lengths)))
    return groups


def chunks(lengths: Sequence[int], texts_max: int, tokens_max: int) -> list[list[int]]:
    """Indices in sub-batches of similar length that stay in cache: at most texts_max texts and tokens_max tokens each
    (a single longer text stands alone)."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    result: list[list[int]] = []
    total = 0
    for i in order:
        if not result or len(result[-1]) >= texts_max or total + lengths[i] > tokens_max:
            result.append([])
            total = 0
        result[-1].append(i)
        total += lengths[i]
    return result


def even_chunks(lengths: Sequence[int], workers: int, tokens_max: int) -> list[list[int]]:
    """Indices in sub-batches of similar length and even token counts, longest texts first: as many for every worker,
    and no more tokens each than ``tokens_max`` and one text. Fewer than ``workers`` only where there are fewer texts.
    """
    if not lengths:
        return []
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    total = sum(lengths)
    count = workers * -(-total // (workers * tokens_max))
    result: list[list[int]] = []
    seen = 0
    for n, i in enumerate(order):
        # A new one when the tokens so far reach its share, or when the texts left are just enough for one each.
        if seen * count >= len(result) * total or len(order) - n <= count - len(result):
            result.append([])
        result[-1].append(i)
        seen += lengths[i]
    return result
