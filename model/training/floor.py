"""The floor: what a linear machine reaches that learned from the same labelled rows. A model that is not above it on
somebody's data is not worth its encoder there."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from model import metrics
from model.assess.evaluate import rounded
from model.data import Example
from model.text import normalise
from model.training.recipe import Recipe

CHARACTERS_MAX: Final = 10_000_000
"""Of the rows that a machine learns from; of more, some are drawn. It bounds memory (4 GB) and time (20 s)."""
GRAMS: Final = (1, 4)
"""Lengths of the n-grams of characters: on the starter's data better than words, and about as good as both."""
_BUCKETS = 2**20
_TOLERANCE = 1e-3


class LinearFloor:
    """TF-IDF of hashed n-grams of characters before a linear support vector machine for each class against the rest."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> None:
        """Fit on texts [n] and their labels [n], two different ones at least (ValueError)."""
        hashed = HashingVectorizer(
            analyzer="char",
            preprocessor=partial(normalise, lower=True),
            ngram_range=GRAMS,
            n_features=_BUCKETS,
            alternate_sign=False,
            norm=None,
        )
        machine = LinearSVC(tol=_TOLERANCE, random_state=seed)
        self._machine = make_pipeline(hashed, TfidfTransformer(sublinear_tf=True), machine)
        self._machine.fit(texts, labels)

    @property
    def classes(self) -> list[str]:
        """The labels that it can guess."""
        return [str(label) for label in self._machine.classes_]

    def figures(self, texts: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
        """``linear_accuracy`` and ``linear_macro_f1`` on texts [n] with labels [n]. It guesses among the labels that
        occur, or all of its own where there is one, as ``evaluate_texts`` does; one that it never saw it cannot
        guess."""
        occurring, known = sorted(set(labels)), self.classes
        if len(occurring) < 2:
            occurring = sorted({*occurring, *known})
        sure = self._machine.decision_function(texts)
        sure = sure if sure.ndim == 2 else np.stack([-sure, sure], axis=1)
        columns = [known.index(label) if label in known else -1 for label in occurring]
        sure = np.concatenate([sure, np.full((len(texts), 1), -np.inf)], axis=1)[:, columns]
        guess = sure.argmax(1)
        truth = np.array([occurring.index(label) for label in labels])
        return {
            "linear_accuracy": rounded(metrics.accuracy(truth, guess)),
            "linear_macro_f1": rounded(metrics.macro_f1(truth, guess, len(occurring))),
        }


def fit_floor(recipe: Recipe, head: str, corpus: Sequence[Sequence[Example]]) -> LinearFloor | None:
    """The floor of a head, on the rows that the recipe's data sets (``corpus``: their examples, see ``read_corpus``)
    label for it, those a model has labelled left out. None where they have fewer than two labels."""
    rows = [
        (example.text, example.labels[head])
        for dataset, examples in zip(recipe.datasets, corpus, strict=True)
        if not dataset.guessed
        for example in examples
        if head in example.labels
    ]
    rows = drawn(rows, recipe.seed)
    if len({label for _, label in rows}) < 2:
        return None
    return LinearFloor([text for text, _ in rows], [label for _, label in rows], recipe.seed)


def drawn(rows: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """Texts with their labels in random order, as many as hold ``CHARACTERS_MAX`` characters."""
    order = np.random.default_rng(seed).permutation(len(rows))
    ends = np.cumsum([len(rows[i][0]) for i in order])
    return [rows[i] for i in order[ends <= CHARACTERS_MAX]]
