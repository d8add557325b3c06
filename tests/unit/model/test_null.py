"""The null model has the face of a scorer, is deterministic, and a text's row does not depend on its neighbours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.null import MAX_TOKENS, NullScorer

scorer = NullScorer()


@settings(max_examples=100)
@given(st.lists(st.text(max_size=400), min_size=1, max_size=8))
def test_rows_are_finite_and_do_not_depend_on_the_batch(texts: list[str]) -> None:
    prepared = scorer.prepare(texts)
    rows = scorer.encode(prepared)
    assert rows.shape == (len(texts), scorer.hidden)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    for row, one in zip(rows, prepared, strict=True):
        assert (scorer.encode([one])[0] == row).all()
        assert one.tokens <= MAX_TOKENS


@pytest.mark.parametrize("head", scorer.labels)
def test_heads_give_probabilities(head: str) -> None:
    rows = scorer.encode(scorer.prepare(["red guitar", "红色的吉他", "where is my order"]))
    found = scorer.classify(head, rows)
    assert found.shape == (3, len(scorer.labels[head]))
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found[0] != found[1]).any()


def test_vectors_have_unit_length() -> None:
    vectors = scorer.vectors(scorer.encode(scorer.prepare(["a text", "another"])))
    assert vectors.shape == (2, 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_another_instance_gives_the_same() -> None:
    prepared = scorer.prepare(["a text"])
    assert (NullScorer().encode(prepared) == scorer.encode(prepared)).all()


@pytest.mark.parametrize("text", ["", " \t", "\u0000", "\u200b\ufeff"])
def test_nothing_has_no_tokens(text: str) -> None:
    assert scorer.prepare([text])[0].tokens == 0


def test_an_empty_batch_is_empty() -> None:
    assert scorer.encode([]).shape == (0, scorer.hidden)
    assert scorer.classify("sentiment", scorer.encode([])).shape == (0, 3)
