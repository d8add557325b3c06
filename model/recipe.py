"""A training recipe: one YAML file of heads, data sets and settings, checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from model.errors import DataError
from model.text import TextSpec


@dataclass(frozen=True)
class Training:
    """Optimiser and batch settings; learning rates are peaks after the warm-up, falling linearly to zero."""

    body_lr: float = 2e-4
    embedding_lr: float = 8e-4
    head_lr: float = 2e-3
    weight_decay: float = 0.01
    penalty: str = "l2sp"
    penalty_weight: float = 1e-4
    warm_up: float = 0.06
    batch_tokens: int = 2560
    temperature: float = 0.5
    passes_max: float = 8.0
    bag_drop: float = 0.15
    dropout: float = 0.1
    gradient_norm_max: float = 1.0


@dataclass(frozen=True)
class Bag:
    """Settings of the n-gram channel; no targets, no channel."""

    keep: int = 131072
    folds: int = 4
    c: float = 0.3
    targets: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Head:
    """A classification head. Without ``labels`` they are those of the data, sorted."""

    labels: list[str] = field(default_factory=list)
    threshold: bool = False


@dataclass(frozen=True)
class Dataset:
    """A data set: a file or generated rows, and the field that each head learns from."""

    name: str
    file: str = ""
    templates: str = ""
    text: list[str] = field(default_factory=lambda: ["text"])
    labels: dict[str, str] = field(default_factory=dict)
    partial: list[str] = field(default_factory=list)
    outside: dict[str, list[str]] = field(default_factory=dict)
    balance: float = 0.0
    weight: float = 1.0
    source: str = ""


@dataclass(frozen=True)
class SpaceTexts:
    """Texts for the projection of the vector space: ``rows`` distinct ones of a file, evenly spread."""

    file: str
    text: list[str]
    rows: int


@dataclass(frozen=True)
class Trial:
    """A valid file and the task it is measured on; a file that is not there is passed over. With ``without``, there are
    figures for the rows whose text that (training) file does not have, too. ``floor``: a figure to compare with."""

    task: str
    file: str
    without: str = ""
    floor: str = ""


@dataclass(frozen=True)
class Recipe:
    """Everything that makes an artifact, but the data."""

    name: str
    body: str
    heads: dict[str, Head]
    datasets: list[Dataset]
    seed: int = 0
    vocabulary: int = 0
    text: TextSpec = field(default_factory=TextSpec)
    bag: Bag = field(default_factory=Bag)
    training: Training = field(default_factory=Training)
    calibration_share: float = 0.06
    reject_share: float = 0.03
    space: list[SpaceTexts] = field(default_factory=list)
    evaluation: list[Trial] = field(default_factory=list)
    click_scales_s: list[float] = field(default_factory=list)  # of the click head's states; empty: no click head


T = TypeVar("T")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises DataError naming file and key."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no readable recipe ({error})") from error
    where = str(path)
    content = _mapping(content, where)
    parts: dict[str, Any] = dict(content)
    parts["heads"] = {
        n: _build(Head, h, f"{where}: heads.{n}") for n, h in _mapping(content.get("heads"), where).items()
    }
    parts["datasets"] = [_build(Dataset, d, f"{where}: datasets") for d in content.get("datasets") or []]
    parts["evaluation"] = [_build(Trial, t, f"{where}: evaluation") for t in content.get("evaluation") or []]
    parts["space"] = [_build(SpaceTexts, s, f"{where}: space") for s in content.get("space") or []]
    for key, kind in (("text", TextSpec), ("bag", Bag), ("training", Training)):
        parts[key] = _build(kind, content.get(key) or {}, f"{where}: {key}")
    recipe = _build(Recipe, parts, where)
    _check(recipe, where)
    return recipe


def _check(recipe: Recipe, where: str) -> None:
    names = {dataset.name for dataset in recipe.datasets}
    for dataset in recipe.datasets:
        if bool(dataset.file) == bool(dataset.templates):
            raise DataError(f"{where}: datasets.{dataset.name}: give either file or templates")
        for head in [*dataset.labels, *dataset.outside, *dataset.partial]:
            if head not in recipe.heads:
                raise DataError(f"{where}: datasets.{dataset.name} names head {head!r}, which heads does not list")
    for target in recipe.bag.targets:
        if len(target) != 2 or target[0] not in names or target[1] not in recipe.heads:
            raise DataError(f"{where}: bag.targets: {target} is not a pair of a data set and a head of this recipe")
    buckets = recipe.text.gram_buckets
    if buckets & (buckets - 1) or buckets % 8:
        raise DataError(f"{where}: text.gram_buckets {buckets} is not a power of two of at least 8 (or 0)")
    if recipe.bag.targets and not buckets:
        raise DataError(f"{where}: bag.targets need text.gram_buckets")


def _build(kind: type[T], content: Any, where: str) -> T:
    content = _mapping(content, where)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    try:
        return kind(**content)
    except TypeError as error:
        raise DataError(f"{where}: {error}") from error


def _mapping(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: keys with values are expected, not {type(content).__name__}")
    return content
