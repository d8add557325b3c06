"""User and item state: decayed sums of event vectors, and decayed counts. Training and serving use these functions.

For a time scale tau and events (t_i, w_i, v_i) the state at T, the latest event time seen, holds

    S = sum_i w_i v_i exp(-(T - t_i) / tau)        W = sum_i w_i exp(-(T - t_i) / tau)

twice (shown, liked), and the counts (shown, clicked, purchased) decayed the same way. The embedding is S / (W + 1).
A later event moves T and decays the sums, a late one enters already decayed, so any order and any batching of the
same events give the same state, in float64 arithmetic. At rest it is float32, so each fold rounds: within 1e-5 over the
few hundred folds of a user, 1e-4 after 20,000 of a hot item. A key that is folded every second loses the decay of its
three-year scale (1e-8 of the sum), in S and W alike, and p(click) of 0.01 adds nothing to a count above 2.6e5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from schemas.folds import VECTOR_SIZE, FormatError
from schemas.redis_keys import Kind
from schemas.states import State

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

ABSENT_MS: Final = -1
"""``time_ms`` of a state that has seen nothing."""
SUM: Final[dict[str, int]] = {"shown": 0, "liked": 1}


@dataclass(slots=True)
class States:
    """States of ``n`` keys, S time scales.

    scales_s float64 [S]         time scales tau, seconds
    time_ms  int64 [n]           latest event time seen, `ABSENT_MS` where nothing was
    sums     float64 [n,2,S,64]  decayed sums of vectors (shown, liked) as of time_ms
    weights  float64 [n,2,S]     the same of their weights
    counts   float64 [n,S,3]     decayed counts (shown, clicked, purchased)
    """

    scales_s: F64
    time_ms: I64
    sums: F64
    weights: F64
    counts: F64

    @classmethod
    def empty(cls, n: int, scales_s: Sequence[float] | F64) -> States:
        """``n`` states that have seen nothing."""
        scales = np.asarray(scales_s, np.float64)
        s = len(scales)
        return cls(
            scales_s=scales,
            time_ms=np.full(n, ABSENT_MS, np.int64),
            sums=np.zeros((n, 2, s, VECTOR_SIZE)),
            weights=np.zeros((n, 2, s)),
            counts=np.zeros((n, s, 3)),
        )

    @classmethod
    def from_records(cls, records: Sequence[State | None], scales_s: Sequence[float] | F64) -> States:
        """States of records at rest; None gives an absent one.

        Raises `FormatError` for a record with another number of scales: its sums mean something else.
        """
        states = cls.empty(len(records), scales_s)
        rows = [i for i, record in enumerate(records) if record is not None]
        present = [record for record in records if record is not None]
        for record in present:
            if record.weights.shape[1] != len(states.scales_s):
                raise FormatError(
                    f"state of a {record.kind} has {record.weights.shape[1]} time scales, "
                    f"profiles.scales_s has {len(states.scales_s)}"
                )
        if present:
            states.time_ms[rows] = [record.time_ms for record in present]
            states.sums[rows] = np.stack([record.sums for record in present])
            states.weights[rows] = np.stack([record.weights for record in present])
            states.counts[rows] = np.stack([record.counts for record in present])
        return states

    def to_records(self, kind: Kind, keys: Sequence[str], incarnation: int, fold_offset: int) -> list[State]:
        """Records at rest, float32, one a key."""
        sums, weights, counts = (a.astype(np.float32) for a in (self.sums, self.weights, self.counts))
        return [
            State(
                kind=kind,
                key=key,
                incarnation=incarnation,
                fold_offset=fold_offset,
                time_ms=time_ms,
                sums=sums[i],
                weights=weights[i],
                counts=counts[i],
            )
            for i, (key, time_ms) in enumerate(zip(keys, self.time_ms.tolist(), strict=True))
        ]

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """bool [n]: which have seen anything."""
        return np.not_equal(self.time_ms, ABSENT_MS)

    def take(self, rows: npt.ArrayLike) -> States:
        """A copy of some rows, repeats allowed."""
        index = np.asarray(rows, np.int64)
        return States(self.scales_s, self.time_ms[index], self.sums[index], self.weights[index], self.counts[index])

    def fold(
        self,
        index: npt.ArrayLike,
        time_ms: npt.ArrayLike,
        weights: npt.ArrayLike,
        counts: npt.ArrayLike,
        vectors: npt.ArrayLike,
    ) -> None:
        """Add ``m`` events in place: index [m] row, time_ms [m], weights [m,2], counts [m,3], vectors [m,64].

        One sparse product adds them all, whatever their order and however often a row is named.
        """
        rows, times = np.asarray(index, np.int64), np.asarray(time_ms, np.int64)
        if not len(rows):
            return
        touched, slot = np.unique(rows, return_inverse=True)
        latest = self.time_ms[touched]
        np.maximum.at(latest, slot, times)
        self._move(touched, latest)
        m, n, s = len(rows), len(touched), len(self.scales_s)
        decay = self._decay(latest[slot] - times)  # [m, S]
        vector_weights = np.asarray(weights, np.float64)[:, :, None] * decay[:, None, :]  # [m, 2, S]
        added_counts = decay[:, :, None] * np.asarray(counts, np.float64)[:, None, :]  # [m, S, 3]
        # Row (state, sum, scale) of the product gathers the events of that state, each by its decayed weight.
        target = slot[:, None] * (2 * s) + np.arange(2 * s)
        source = np.repeat(np.arange(m), 2 * s)
        gather = csr_array((vector_weights.ravel(), (target.ravel(), source)), shape=(n * 2 * s, m))
        member = csr_array((np.ones(m), (slot, np.arange(m))), shape=(n, m))
        self.sums[touched] += (gather @ np.asarray(vectors, np.float64)).reshape(n, 2, s, VECTOR_SIZE)
        self.weights[touched] += (member @ vector_weights.reshape(m, 2 * s)).reshape(n, 2, s)
        self.counts[touched] += (member @ added_counts.reshape(m, s * 3)).reshape(n, s, 3)

    def at(self, time_ms: npt.ArrayLike) -> States:
        """A copy decayed to max(own time, time_ms [n]); absent states stay absent."""
        copy = self.take(np.arange(len(self)))
        later = np.maximum(copy.time_ms, np.asarray(time_ms, np.int64))
        copy._move(np.arange(len(copy)), np.where(copy.present, later, ABSENT_MS))
        return copy

    def embeddings(self, kind: Literal["shown", "liked"]) -> F64:
        """S / (W + 1), float64 [n, S, 64]: shrunk towards zero where little was seen."""
        which = SUM[kind]
        return self.sums[:, which] / (self.weights[:, which, :, None] + 1.0)

    def _move(self, rows: I64, time_ms: I64) -> None:
        """Decay ``rows`` to ``time_ms``, which is not before their own."""
        decay = self._decay(np.where(self.present[rows], time_ms - self.time_ms[rows], 0))
        self.time_ms[rows] = time_ms
        if (decay == 1.0).all():
            return
        self.sums[rows] *= decay[:, None, :, None]
        self.weights[rows] *= decay[:, None, :]
        self.counts[rows] *= decay[:, :, None]

    def _decay(self, age_ms: I64) -> F64:
        """exp(-age / tau), [k, S]."""
        return np.exp(-age_ms[:, None] / (1000.0 * self.scales_s))
