"""The draw of fewer labels in the bench of shared against single models."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from tests.bench.paired import fewer_labels
from tests.tiny_training import make_corpus


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_as_many_training_rows_are_kept_as_was_asked_for(seed: int) -> None:
    corpus = make_corpus(rows=6000, held=0)
    held = np.array([zlib.crc32(p.ids.tobytes()) % 10007 < 600 for p in corpus.prepared])  # as the corpus holds them
    corpus = replace(corpus, held=held)
    kept: set[bytes] = set()
    for share in (0.01, 0.1, 0.3, 1.0):
        some = fewer_labels(corpus, share, seed)
        assert some.held.sum() == held.sum()
        rows = {p.ids.tobytes() for p, own in zip(some.prepared, some.held, strict=True) if not own}
        assert (~some.held).sum() == pytest.approx(share * (~held).sum(), abs=4 * np.sqrt(share * 6000))
        assert kept <= rows
        kept = rows
