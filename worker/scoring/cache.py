"""Texts seen before are not encoded again: an LRU of encoded rows, bounded by bytes, of one model version.

Pure. A text that is waiting or on the device has a slot already, so copies of it inside a batch and in flight share
one encoding. Such slots are bounded by the queue that holds them, not by the cache's bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from model.scoring import Floats, Prepared

SLOT_OVERHEAD_BYTES: Final = 400
"""What an entry costs beside its text and rows: the objects around them."""


class Slot(msgspec.Struct, eq=False, gc=False):
    """One text on its way to a vector: first nothing, then ``prepared``, then encoded.

    due     tokens that nobody has taken to the encoder yet: 0 before it is prepared, and once a batch carries it
    row     float32 [hidden] encoded row, what the heads read
    vector  float32 [64] unit vector of the user-state space
    """

    text: str
    prepared: Prepared | None = None
    due: int = 0
    row: Floats | None = None
    vector: Floats | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the slot is counted for."""
        rows = (self.row.nbytes if self.row is not None else 0) + (self.vector.nbytes if self.vector is not None else 0)
        return SLOT_OVERHEAD_BYTES + 2 * len(self.text) + rows


class VectorCache:
    """Slots by text, for one model: another model is another cache.

    The text is the key as it came: only misses are normalised, and to normalise every text first would cost each hit
    more than the look-up does.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._full: OrderedDict[str, Slot] = OrderedDict()
        self._pending: dict[str, Slot] = {}
        self.nbytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._full)

    @property
    def pending(self) -> int:
        """Slots that wait to be encoded."""
        return len(self._pending)

    def slot(self, text: str) -> tuple[Slot, bool]:
        """The text's slot, encoded or pending, and whether it is new: then it has to be prepared and encoded."""
        found = self._full.get(text)
        if found is not None:
            self._full.move_to_end(text)
            self.hits += 1
            return found, False
        found = self._pending.get(text)
        if found is not None:
            self.hits += 1
            return found, False
        self.misses += 1
        fresh = self._pending[text] = Slot(text)
        return fresh, True

    def fill(self, slots: Iterable[Slot]) -> None:
        """Keep slots that are now encoded; the least recently used leave until the bytes fit."""
        for slot in slots:
            if self._pending.get(slot.text) is slot:
                del self._pending[slot.text]
            if slot.text in self._full:
                continue
            slot.prepared = None
            self._full[slot.text] = slot
            self.nbytes += slot.nbytes
        while self.nbytes > self._capacity:
            _, oldest = self._full.popitem(last=False)
            self.nbytes -= oldest.nbytes

    def discard(self, slots: Iterable[Slot]) -> None:
        """Forget slots that will not be encoded: empty texts, failures, events of partitions that moved on."""
        for slot in slots:
            if self._pending.get(slot.text) is slot:
                del self._pending[slot.text]
