"""The options of a recipe that bench-variants compares: each is the recipe with one thing changed.

What the changed thing needs besides is changed with it, or the comparison would be with a straw man: adapters and plain
gradient descent at the recipe's own rates hardly move. Their rates were chosen by the mean held-out loss on calibration
rows (see ``RATES``), not by the valid files that the comparison is judged on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from model.data import Example
from model.text import is_chinese
from model.training.augmentation import Augmentation, BackTranslation
from model.training.recipe import Dataset, Recipe
from model.training.settings import Lora

BASE = "base"
FULL = "full"
RATES: Mapping[str, Mapping[str, float]] = {
    "lora": {"body_lr": 2.0e-3},
    "sgd": {"body_lr": 0.005, "embedding_lr": 0.005, "head_lr": 0.05},
}


@dataclass(frozen=True)
class Variant:
    """One change of the recipe. ``training``: settings that differ. ``augment``: of every data set that is a file.
    ``templates``: whether generated sentences are trained on. ``warm``: whether heads begin by a discriminant.
    ``against``: the variant that it is compared with."""

    name: str
    group: str
    what: str
    training: Mapping[str, Any] = field(default_factory=dict)
    augment: Augmentation | None = None
    translated: bool = False
    templates: bool = True
    warm: bool = True
    against: str = BASE


@dataclass(frozen=True)
class Translators:
    """Models from Chinese to English and back, folders or hub names. ``codes``: of the two languages, for models of
    many."""

    zh_en: str
    en_zh: str
    codes: tuple[str, str] | None = None

    def of(self, *, chinese: bool) -> BackTranslation:
        """There and back for texts of one of the two languages."""
        models, codes = (self.zh_en, self.en_zh), list(self.codes or ())
        there, back = models if chinese else models[::-1]
        return BackTranslation(there, back, languages=codes if chinese else codes[::-1])


def variants(recipe: Recipe, layers: int) -> list[Variant]:
    """All variants for a body of so many layers; the first is the recipe as it is."""
    frozen = recipe.training.frozen_layers
    most = max(1, round(layers * 2 / 3))
    plain = f"the recipe: {recipe.training.optimiser}, equal weights, no experts, {frozen} of {layers} layers frozen"
    return [
        Variant(BASE, "base", plain),
        Variant("uncertainty", "weighting", "uncertainty weighting", {"weighting": "uncertainty"}),
        Variant("famo", "weighting", "FAMO", {"weighting": "famo"}),
        Variant("towers", "experts", "a tower before each head", {"experts": "towers"}),
        Variant("mmoe", "experts", "shared experts, a gate a head", {"experts": "mmoe"}),
        Variant("ple", "experts", "shared experts and the head's own", {"experts": "ple"}),
        Variant(FULL, "trained", "everything learns", {"frozen_layers": 0}),
        Variant(
            "frozen",
            "trained",
            f"embeddings and {most} of {layers} layers frozen",
            {"frozen_layers": most},
            against=FULL,
        ),
        Variant(
            "lora",
            "trained",
            "adapters of rank 8 on queries and values, merged",
            {"frozen_layers": 0, "lora": Lora(rank=8), **RATES["lora"]},
            against=FULL,
        ),
        Variant("random-heads", "start", "heads begin at random", warm=False),
        Variant("adam", "optimiser", "Adam, no decoupled decay", {"optimiser": "adam"}),
        Variant("sgd", "optimiser", "SGD with momentum", {"optimiser": "sgd", **RATES["sgd"]}),
        Variant("synonyms", "augmentation", "a copy of each row, 0.1 synonyms", augment=Augmentation(synonyms=0.1)),
        Variant("edits", "augmentation", "a copy of each row, 0.1 edits", augment=Augmentation(edits=0.1)),
        Variant("back-translation", "augmentation", "a fifth of the rows, there and back", translated=True),
        Variant("no-templates", "augmentation", "no generated sentences", templates=False),
    ]


NAMES = tuple(variant.name for variant in variants(Recipe("any"), 1))


def chosen(every: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """Those named, with what they are compared with; all without names. Raises KeyError for an unknown name."""
    known = {variant.name: variant for variant in every}
    wanted = set(only or known)
    while more := {known[name].against for name in wanted} - wanted:
        wanted |= more
    return [variant for variant in every if variant.name in wanted]


def recipe_of(
    variant: Variant, recipe: Recipe, rows: Sequence[Sequence[Example]], translators: Translators | None
) -> Recipe:
    """The recipe with the variant's change. ``rows``: of each of its data sets, for their language."""
    datasets = [
        _dataset(variant, dataset, own, translators) for dataset, own in zip(recipe.datasets, rows, strict=True)
    ]
    training = replace(recipe.training, **variant.training)
    return replace(recipe, datasets=datasets, training=training, warm_rows=variant.warm * recipe.warm_rows)


def _dataset(variant: Variant, dataset: Dataset, rows: Sequence[Example], translators: Translators | None) -> Dataset:
    if dataset.templates:
        return dataset if variant.templates else replace(dataset, weight=0.0)  # nothing is drawn from it
    if variant.augment:
        return replace(dataset, augment=variant.augment)
    if variant.translated and translators:
        chinese = float(np.mean([any(map(is_chinese, row.text)) for row in rows])) > 0.5
        return replace(dataset, augment=Augmentation(copies=0, back_translation=translators.of(chinese=chinese)))
    return dataset
