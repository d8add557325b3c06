"""A training recipe: one YAML file of heads, data sets and settings, checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from model.calibrate import ScopeCost
from model.clicks.context import ContextFeature
from model.clicks.settings import ClickSettings
from model.errors import DataError
from model.text import TextSpec
from model.training.settings import Training, build_training


@dataclass(frozen=True)
class Bag:
    """Settings of the n-gram channel; no targets, no channel."""

    keep: int = 131072
    folds: int = 4
    c: float = 0.3
    targets: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Head:
    """A head over ``labels`` (without: those of the data, sorted).

    ``kind``: ``classes``, or ``score`` for labels that are numbers: the expected value over them is the answer, and its
    mean absolute error joins the loss with weight ``error_weight``.
    """

    labels: list[str] = field(default_factory=list)
    kind: str = "classes"
    error_weight: float = 1.0
    threshold: bool = False


@dataclass(frozen=True)
class BackTranslation:
    """Rows translated there and back by two models (folders or hub names). ``share``: of the training rows.

    ``languages``: codes of the rows' language and of the other one, for models of many languages.
    """

    there: str
    back: str
    share: float = 0.2
    languages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Augmentation:
    """Extra training rows of a data set: ``copies`` of each row, varied, and back-translations of some.

    ``synonyms``, ``edits``: chance of a word to be replaced by a synonym; to be deleted, swapped or doubled by one.
    """

    synonyms: float = 0.0
    edits: float = 0.0
    copies: int = 1
    back_translation: BackTranslation | None = None


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
    guessed: bool = False  # labels are a model's own (model/training/selftrain.py): trained on, never calibrated on
    augment: Augmentation | None = None
    groups: str = ""  # field that names a row's group, for training.fairness_weight


@dataclass(frozen=True)
class SpaceTexts:
    """Texts for the projection of the vector space: ``rows`` distinct ones of a file, evenly spread."""

    file: str
    text: list[str]
    rows: int


@dataclass(frozen=True)
class Trial:
    """A valid file and the task it is measured on; a file that is not there is passed over. With ``without``, there are
    figures for the rows whose text that (training) file does not have, too. ``floor``: a figure to compare with.
    ``shipped``: the file is not among the data but in this package."""

    task: str
    file: str
    shipped: bool = False
    without: str = ""
    floor: str = ""

    def path(self, data: Path) -> Path:
        """Where the file is, for a folder of data."""
        return (Path(__file__).parent if self.shipped else data) / self.file


@dataclass(frozen=True)
class Teacher:
    """Networks that are trained before and teach: see model/training/teachers.py.

    ``body``: theirs, as the recipe's own (empty: that one, with its vocabulary and n-grams). ``datasets``: what they
    learn and answer, by name (empty: all). ``training``: the recipe's settings with the teacher's changes.
    """

    body: str = ""
    datasets: list[str] = field(default_factory=list)
    training: Training | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that makes an artifact, but the data."""

    name: str
    body: str = ""  # only what is put onto an artifact can do without body, heads and data sets
    heads: dict[str, Head] = field(default_factory=dict)
    datasets: list[Dataset] = field(default_factory=list)
    seed: int = 0
    vocabulary: int = 0  # pieces of the body's vocabulary that are kept; 0 keeps all
    layers: list[int] = field(default_factory=list)  # layers of the body that are kept; empty: all
    int8: bool = False  # store the encoder's matrices in int8 rather than half precision
    warm_rows: int = 0  # rows a head's first weights are fitted on, at most so many a class; 0: random weights
    text: TextSpec = field(default_factory=TextSpec)
    bag: Bag = field(default_factory=Bag)
    training: Training = field(default_factory=Training)
    teachers: list[Teacher] = field(default_factory=list)
    calibration_share: float = 0.06
    scope_cost: ScopeCost = field(default_factory=ScopeCost)
    space: list[SpaceTexts] = field(default_factory=list)
    evaluation: list[Trial] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)  # training settings that `tune` tries, model/training/tune.py
    click: ClickSettings | None = None  # without: no click head, counts alone answer


T = TypeVar("T")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. With ``base: FILE`` (beside it) it says only what differs from that recipe: sections
    key by key, data sets by name. Raises DataError naming file and key."""
    content = _content(path)
    where = str(path)
    parts: dict[str, Any] = dict(content)
    parts["heads"] = {
        n: _build(Head, h, f"{where}: heads.{n}") for n, h in _mapping(content.get("heads") or {}, where).items()
    }
    parts["datasets"] = [_dataset(d, f"{where}: datasets") for d in content.get("datasets") or []]
    parts["evaluation"] = [_build(Trial, t, f"{where}: evaluation") for t in content.get("evaluation") or []]
    parts["space"] = [_build(SpaceTexts, s, f"{where}: space") for s in content.get("space") or []]
    for key, kind in (("text", TextSpec), ("bag", Bag), ("scope_cost", ScopeCost)):
        parts[key] = _build(kind, content.get(key) or {}, f"{where}: {key}")
    training = _mapping(content.get("training") or {}, f"{where}: training")
    parts["training"] = build_training(training, f"{where}: training")
    if content.get("click") is not None:
        parts["click"] = _click(content["click"], where)
    parts["teachers"] = [_teacher(t, training, f"{where}: teachers") for t in content.get("teachers") or []]
    recipe = _build(Recipe, parts, where)
    _check(recipe, where)
    return recipe


def _content(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no readable recipe ({error})") from error
    content = dict(_mapping(content, str(path)))
    base = content.pop("base", None)
    if base is None:
        return content
    below = dict(_content(Path(path).with_name(str(base))))
    for key, value in content.items():
        if key == "datasets":
            below[key] = _changed(below.get(key) or [], value, f"{path}: datasets")
        else:
            below[key] = {**below.get(key, {}), **value} if isinstance(value, Mapping) else value
    return below


def _changed(datasets: list[Any], changes: Any, where: str) -> list[Any]:
    """The data sets of a base with the keys that ``changes`` names changed; new names come last."""
    by_name = {str(dataset.get("name")): dict(dataset) for dataset in datasets}
    for change in changes or []:
        name = str(_mapping(change, where).get("name"))
        by_name[name] = by_name.get(name, {}) | change
    return list(by_name.values())


def _check(recipe: Recipe, where: str) -> None:
    names = {dataset.name for dataset in recipe.datasets}
    for dataset in recipe.datasets:
        if bool(dataset.file) == bool(dataset.templates):
            raise DataError(f"{where}: datasets.{dataset.name}: give either file or templates")
        if dataset.groups and not dataset.file:
            raise DataError(f"{where}: datasets.{dataset.name}.groups: generated rows have no fields; only files do")
        if dataset.augment:
            _check_augment(dataset.augment, f"{where}: datasets.{dataset.name}: augment")
        for head in [*dataset.labels, *dataset.outside, *dataset.partial]:
            if head not in recipe.heads:
                raise DataError(f"{where}: datasets.{dataset.name} names head {head!r}, which heads does not list")
    if recipe.training.fairness_weight and not any(dataset.groups for dataset in recipe.datasets):
        raise DataError(f"{where}: training.fairness_weight needs a data set that names its groups (groups: FIELD)")
    _check_bag(recipe, names, where)
    _check_teachers(recipe, names, where)


def _check_bag(recipe: Recipe, names: set[str], where: str) -> None:
    for target in recipe.bag.targets:
        if len(target) != 2 or target[0] not in names or target[1] not in recipe.heads:
            raise DataError(f"{where}: bag.targets: {target} is not a pair of a data set and a head of this recipe")
    buckets = recipe.text.gram_buckets
    if buckets & (buckets - 1) or buckets % 8:
        raise DataError(f"{where}: text.gram_buckets {buckets} is not a power of two of at least 8 (or 0)")
    if recipe.bag.targets and not buckets:
        raise DataError(f"{where}: bag.targets need text.gram_buckets")


def _teacher(content: Any, training: Mapping[str, Any], where: str) -> Teacher:
    parts = dict(_mapping(content, where))
    changes = _mapping(parts.get("training") or {}, f"{where}: training")
    return _build(Teacher, parts | {"training": build_training({**training, **changes}, f"{where}: training")}, where)


def _click(content: Any, where: str) -> ClickSettings:
    try:
        parts = dict(_mapping(content, "click"))
        return _build(ClickSettings, parts | {"context": _features(parts.get("context"))}, "click")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _features(content: Any) -> list[ContextFeature]:
    if content is not None and not isinstance(content, list):
        raise DataError("click.context: a list of features is expected, each with a name")
    return [ContextFeature.of(feature) for feature in content or []]


def _check_teachers(recipe: Recipe, names: set[str], where: str) -> None:
    for teacher in recipe.teachers:
        if unknown := set(teacher.datasets) - names:
            raise DataError(f"{where}: teachers: {min(unknown)!r} is none of the data sets of this recipe")
    taught = set[str]().union(*(teacher.datasets or names for teacher in recipe.teachers))
    if recipe.teachers and (alone := names - taught):
        raise DataError(f"{where}: teachers: none learns the data set {min(alone)}; name it, or leave `datasets` out")
    if recipe.teachers and recipe.training.teacher_folds < 2:
        raise DataError(f"{where}: training.teacher_folds: with fewer than 2 a teacher has seen every row")


def _dataset(content: Any, where: str) -> Dataset:
    parts = dict(_mapping(content, where))
    if parts.get("augment") is not None:
        where_augment = f"{where}.{parts.get('name')}: augment"
        augment = dict(_mapping(parts["augment"], where_augment))
        if augment.get("back_translation") is not None:
            where_back = f"{where_augment}.back_translation"
            augment["back_translation"] = _build(BackTranslation, augment["back_translation"], where_back)
        parts["augment"] = _build(Augmentation, augment, where_augment)
    return _build(Dataset, parts, where)


def _check_augment(augment: Augmentation, where: str) -> None:
    shares: dict[str, Any] = {"synonyms": augment.synonyms, "edits": augment.edits}
    back = augment.back_translation
    if back:
        shares["back_translation.share"] = back.share
        if len(back.languages) not in (0, 2):
            raise DataError(f"{where}.back_translation.languages: {back.languages} are not two codes, or none")
    for key, value in shares.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"{where}.{key}: {value!r} is not a number from 0 to 1")
    copies: Any = augment.copies
    if isinstance(copies, bool) or not isinstance(copies, int) or copies < 0:
        raise DataError(f"{where}.copies: {copies!r} is not a whole number of 0 or more")


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
