"""What the files of a run are made from: recipe and data, part by part, so that none is taken for another run's.

Token plan, n-gram channel, teachers' answers, checkpoint and study all carry it. A run that goes on refuses a file that
was made from something else and says what changed; a run that begins makes it anew.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from model.data import fingerprint
from model.errors import ModelError
from model.training.recipe import Card, Recipe
from model.training.settings import Training
from model.training.templates import templates

_NAMED_MAX = 8  # parts that an error names


def file_digests(recipe: Recipe, folder: Path) -> dict[str, str]:
    """SHA-256 of every data file that a recipe trains on or takes texts from, by name. Raises DataError."""
    names = {dataset.file for dataset in recipe.datasets if dataset.file} | {texts.file for texts in recipe.space}
    return {name: fingerprint(folder / name) for name in sorted(names)}


@dataclass(frozen=True)
class MadeFrom:
    """Digests by part, such as ``training.body_lr``, ``datasets.reviews`` or the name of a data file."""

    parts: Mapping[str, str]

    @classmethod
    def of(cls, recipe: Recipe, files: Mapping[str, str]) -> "MadeFrom":
        """What must not change between a run and its continuation (what is only watched, measured, told or applied to
        the trained network may, and what only a search reads).
        ``files``: as ``file_digests`` gives them."""
        training = _unwatched(recipe.training)
        teachers = [replace(own, training=own.training and _unwatched(own.training)) for own in recipe.teachers]
        datasets = [replace(dataset, source="") for dataset in recipe.datasets]
        space = recipe.space if recipe.vocabulary else []  # its texts have a say in which pieces are kept
        ours = replace(recipe, training=training, teachers=teachers, datasets=datasets, space=space)
        content = asdict(replace(ours, name="", evaluation=[], card=Card(), click=None, search={}))
        read = {dataset.file for dataset in datasets} | {texts.file for texts in space}
        parts: dict[str, Any] = {"order": ([*recipe.heads], [dataset.name for dataset in datasets])}
        parts |= {f"datasets.{dataset['name']}": dataset for dataset in content.pop("datasets")}
        del content["scope_cost"]
        for head in content["heads"].values():
            del head["decide"], head["threshold"]
        if any(dataset.templates for dataset in datasets):
            parts["templates.yaml"] = templates()
        for key, value in content.items():
            parts |= {f"{key}.{name}": own for name, own in value.items()} if isinstance(value, dict) else {key: value}
        digests = {name: hashlib.sha256(repr(value).encode()).hexdigest()[:16] for name, value in parts.items()}
        return cls(digests | {name: digest for name, digest in files.items() if name in read})

    def check(self, path: Path, written: Mapping[str, str]) -> None:
        """Raises ModelError naming what changed, where a file at ``path`` was ``written`` with other parts; an earlier
        release wrote none."""
        if written == self.parts:
            return
        names = sorted(name for name in {*written, *self.parts} if written.get(name) != self.parts.get(name))
        shown = ", ".join(names[:_NAMED_MAX]) + (" and more" if len(names) > _NAMED_MAX else "")
        raise ModelError(
            f"{path} was made from other data or another recipe "
            f"({f'changed: {shown}' if written else 'an earlier release did not write from which'}); "
            "go on with what it was made from, or give another --out"
        )


def _unwatched(training: Training) -> Training:
    """The settings without what is only watched."""
    training = replace(training, tensorboard=False, conflict_every=0)
    return replace(training, held_every=0, held_rows=1, valid_every=0, valid_rows=1)
