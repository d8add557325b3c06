"""Texts end to end in one flat buffer of int32, as a GPU gets and computes them. Pure layout, no weights.

The buffer holds token ids [T], positions [T], rows [T] (which sequence a token belongs to) and cumulative lengths
[S + 1]. T and S may be more than the texts need, so that few shapes occur: padding tokens are sequences of their own
after the texts', none longer than a text may be, and the sequences after those are empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from model.scoring import Ints

BUCKET_TOKENS_MIN = 256
SEQUENCE_SHARES = (16, 8, 4)
"""Tokens of a padded layout for each of its sequences. Empty sequences are not free (every layer's attention starts
blocks for them), so the largest share that has room is taken; texts that average fewer than four tokens have none."""

_Buffer = TypeVar("_Buffer", bound=Any)  # numpy array or tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape of a flat buffer: T tokens and S sequences, padding included."""

    tokens: int
    sequences: int

    @property
    def size(self) -> int:
        """Numbers in the buffer."""
        return 3 * self.tokens + self.sequences + 1

    def split(self, buffer: _Buffer) -> tuple[_Buffer, _Buffer, _Buffer, _Buffer]:
        """Views of a flat buffer [size]: token ids [T], positions [T], rows [T], cumulative lengths [S + 1]."""
        t = self.tokens
        return buffer[:t], buffer[t : 2 * t], buffer[2 * t : 3 * t], buffer[3 * t : self.size]


def bucket(tokens: int) -> int:
    """The least of 256, 384, 512, 768, 1024, ... that is no less than ``tokens``: at most half again as many."""
    power = BUCKET_TOKENS_MIN
    while power < tokens:
        power *= 2
    half_way = power // 4 * 3
    return half_way if half_way > BUCKET_TOKENS_MIN and tokens <= half_way else power


def padded(texts: int, tokens: int, longest: int) -> Layout | None:
    """A bucket's layout for so many texts of so many tokens together, padding sequences of at most ``longest`` tokens
    included; None where the texts are too short and too many for it."""
    size = bucket(tokens)
    sequences = texts - (tokens - size) // longest
    return next((Layout(size, size // share) for share in SEQUENCE_SHARES if sequences <= size // share), None)


def runs(lengths: npt.NDArray[np.int64], tokens_max: int) -> list[tuple[int, int]]:
    """Neighbours [first, last) in the given order that are one sub-batch each: at most ``tokens_max`` tokens (a single
    longer text stands alone), and no more texts than ``padded`` has room for in a full bucket."""
    texts_max = max(tokens_max // SEQUENCE_SHARES[-1], 1)
    ends = np.cumsum(lengths)
    result, first = [], 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, before + tokens_max, side="right"))
        last = max(min(last, first + texts_max), first + 1)
        result.append((first, last))
        first = last
    return result


def lay_out(ids: Sequence[Ints], layout: Layout, longest: int, out: Ints) -> None:
    """Write texts into a flat buffer [layout.size], padding tokens with id 0 after them.

    Raises ValueError where a text has no token or more than ``longest``, or the layout has no room for them.
    """
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    total = int(lengths.sum())
    if lengths.min(initial=1) < 1 or lengths.max(initial=1) > longest:
        raise ValueError(f"texts of {lengths.min()} to {lengths.max()} tokens, where each must have 1 to {longest}")
    full, rest = divmod(layout.tokens - total, longest)
    lengths = np.concatenate([lengths, np.full(max(full, 0), longest), np.full(int(rest > 0), rest)])
    if full < 0 or len(lengths) > layout.sequences:
        raise ValueError(f"{len(ids)} texts of {total} tokens do not fit into {layout}")
    ends = np.cumsum(lengths)
    tokens, positions, rows, cumulative = layout.split(out)
    if total:
        np.concatenate(ids, out=tokens[:total])
    tokens[total:] = 0
    rows[:] = np.repeat(np.arange(len(lengths)), lengths)
    positions[:] = np.arange(layout.tokens) - (ends - lengths)[rows]
    cumulative[0] = 0
    cumulative[1 : len(ends) + 1] = ends
    cumulative[len(ends) + 1 :] = layout.tokens
