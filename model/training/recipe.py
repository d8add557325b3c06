"""A training recipe: one YAML file of heads, data sets and settings, checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.calibrate import ScopeCost
from model.clicks.context import ContextFeature
from model.clicks.settings import ClickSettings, check_click
from model.data import Columns, as_label, check_number
from model.errors import DataError
from model.text import TextSpec
from model.training.augmentation import Augmentation, BackTranslation, check_augmentation
from model.training.recipe_file import entries_of, mapping, read_content
from model.training.settings import Training, build_training
from model.training.values import build


@dataclass(frozen=True)
class Bag:
    """Settings of the n-gram channel; no targets, no channel."""

    keep: int = 131072
    folds: int = 4
    c: float = 0.3
    targets: list[list[str]] = field(default_factory=list)


KINDS = ("classes", "score")  # of heads
DECISIONS = ("accuracy", "macro_f1")  # what a head's answers are chosen for


@dataclass(frozen=True)
class Head:
    """A head over ``labels`` (without: those of the data, sorted).

    ``kind``: ``classes``, or ``score`` for labels that are numbers: the expected value over them is the answer, and its
    mean absolute error joins the loss with weight ``error_weight``. ``decide``: for ``accuracy`` the likeliest label is
    the answer; for ``macro_f1`` rare labels count more (`model.calibrate.decision_weights`).
    """

    labels: list[str] = field(default_factory=list)
    kind: str = "classes"
    error_weight: float = 1.0
    threshold: bool = False
    decide: str = "accuracy"


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
    """A valid file and the task it is measured on; a file that is not there is passed over. ``text``, ``label``: its
    fields; left out, those that the head was trained on. With ``without``, there are figures for the rows whose text
    that (training) file does not have, too. ``shipped``: the file is not among the data but in this package.
    ``history``: files of what came before: run through first for clicks, and for texts what tells which users are new
    (left out: the files that the head was trained on)."""

    task: str
    file: str
    text: list[str] = field(default_factory=list)
    label: str = ""
    shipped: bool = False
    without: str = ""
    history: list[str] = field(default_factory=list)

    def path(self, data: Path) -> Path:
        """Where the file is, for a folder of data."""
        return (Path(__file__).parent if self.shipped else data) / self.file

    @property
    def columns(self) -> Columns:
        """Where the file has text and label, as far as it is said."""
        return Columns(tuple(self.text), self.label)


@dataclass(frozen=True)
class Card:
    """What the model card says that nothing else tells: ``intro``, ``use`` and ``limits``, which come before those of
    any artifact."""

    intro: str = ""
    use: str = ""
    limits: list[str] = field(default_factory=list)


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
    warm_rows: int = 40  # rows a head's first weights are fitted on, at most so many a class; 0: random weights
    text: TextSpec = field(default_factory=TextSpec)
    bag: Bag = field(default_factory=Bag)
    training: Training = field(default_factory=Training)
    teachers: list[Teacher] = field(default_factory=list)
    calibration_share: float = 0.06
    scope_cost: ScopeCost = field(default_factory=ScopeCost)
    space: list[SpaceTexts] = field(default_factory=list)
    evaluation: list[Trial] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)  # training settings that `tune` tries, model/training/tune.py
    card: Card = field(default_factory=Card)
    click: ClickSettings | None = None  # without: no click head, counts alone answer

    def columns(self, head: str) -> Columns:
        """Where the first data set of a head has text and label, and before its text what other data sets read with it:
        rows without those fields do without them."""
        own = [dataset for dataset in self.datasets if head in dataset.labels]
        *_, last = own[0].text
        before = [name for dataset in own if dataset.text[-1] == last for name in dataset.text[:-1]]
        return Columns((*dict.fromkeys(before), last), own[0].labels[head])

    def history_of(self, trial: Trial, data: Path) -> list[Path]:
        """Files of what came before a trial's rows, for a folder of data."""
        trained = [dataset.file for dataset in self.datasets if trial.task in dataset.labels and dataset.file]
        return [data / name for name in trial.history or trained]

    def columns_of(self, trial: Trial) -> Columns:
        """Where a trial's file has text and label: as it says, else as the data sets of its head."""
        return trial.columns.otherwise(self.columns(trial.task))


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. With ``base: FILE`` (beside it) it says only what differs from that recipe: sections
    key by key, data sets by name. Raises DataError naming file and key."""
    content = read_content(path)
    where = str(path)
    parts: dict[str, Any] = dict(content)
    heads = mapping(content.get("heads") or {}, f"{where}: heads")
    parts["heads"] = {str(name): _head(head or {}, f"{where}: heads.{name}") for name, head in heads.items()}
    parts["datasets"] = [_dataset(d, f"{where}: datasets") for d in entries_of(content, "datasets", where)]
    parts["evaluation"] = [build(Trial, t, f"{where}: evaluation") for t in entries_of(content, "evaluation", where)]
    parts["space"] = [build(SpaceTexts, s, f"{where}: space") for s in entries_of(content, "space", where)]
    for key, kind in (("text", TextSpec), ("bag", Bag), ("scope_cost", ScopeCost), ("card", Card)):
        parts[key] = build(kind, content.get(key) or {}, f"{where}: {key}")
    training = mapping(content.get("training") or {}, f"{where}: training")
    parts["training"] = build_training(training, f"{where}: training")
    if content.get("click") is not None:
        parts["click"] = _click(content["click"], where)
    parts["teachers"] = [_teacher(t, training, f"{where}: teachers") for t in entries_of(content, "teachers", where)]
    recipe = build(Recipe, parts, where, whole=True)
    _check(recipe, where)
    return recipe


def _check(recipe: Recipe, where: str) -> None:
    if not 0 < recipe.calibration_share < 1:
        raise DataError(f"{where}: calibration_share: {recipe.calibration_share} must be above 0 and below 1")
    if any(spec.rows < 1 or not spec.text for spec in recipe.space):
        raise DataError(f"{where}: space: each needs a field of text and 1 row or more")
    for name, head in recipe.heads.items():
        _check_head(head, name, f"{where}: heads.{name}")
    for dataset in recipe.datasets:
        _check_dataset(dataset, recipe, f"{where}: datasets.{dataset.name}")
    names = {dataset.name for dataset in recipe.datasets}
    if recipe.training.fairness_weight and not any(dataset.groups for dataset in recipe.datasets):
        raise DataError(f"{where}: training.fairness_weight needs a data set that names its groups (groups: FIELD)")
    _check_bag(recipe, names, where)
    _check_teachers(recipe, names, where)
    taught = set[str]().union(*(dataset.labels for dataset in recipe.datasets))
    if untaught := set(recipe.heads) - taught:
        raise DataError(
            f"{where}: heads.{min(untaught)}: no data set has labels of it; give one, or leave the head out"
        )


def _check_head(head: Head, name: str, where: str) -> None:
    if head.kind not in KINDS:
        raise DataError(f"{where}.kind: {head.kind!r} is unknown; use {' or '.join(KINDS)}")
    if head.decide not in DECISIONS:
        raise DataError(f"{where}.decide: {head.decide!r} is unknown; use {' or '.join(DECISIONS)}")
    if head.decide != "accuracy" and (head.threshold or head.kind == "score"):
        raise DataError(f"{where}.decide: {head.decide} is for heads of kind classes without a threshold")
    if head.error_weight < 0:
        raise DataError(f"{where}.error_weight: {head.error_weight} must be at least 0")
    if len(set(head.labels)) != len(head.labels) or len(head.labels) == 1:
        raise DataError(
            f"{where}.labels: {head.labels} are not two or more different ones; left out: those of the data"
        )
    for label in head.labels if head.kind == "score" else ():
        check_number(label, name, f"{where}.labels")


def _check_dataset(dataset: Dataset, recipe: Recipe, where: str) -> None:
    if bool(dataset.file) == bool(dataset.templates):
        raise DataError(f"{where}: give either file or templates")
    if not dataset.text:
        raise DataError(f"{where}.text: name a field, or leave it out for [text]")
    if dataset.weight < 0 or dataset.balance < 0:
        raise DataError(f"{where}: weight and balance must be at least 0")
    if dataset.groups and not dataset.file:
        raise DataError(f"{where}.groups: generated rows have no fields; only files do")
    if dataset.augment:
        check_augmentation(dataset.augment, f"{where}: augment")
    for head in [*dataset.labels, *dataset.outside, *dataset.partial]:
        if head not in recipe.heads:
            raise DataError(f"{where} names head {head!r}, which heads does not list")


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
    parts = dict(mapping(content, where))
    changes = mapping(parts.get("training") or {}, f"{where}: training")
    return build(Teacher, parts | {"training": build_training({**training, **changes}, f"{where}: training")}, where)


def _click(content: Any, where: str) -> ClickSettings:
    section = f"{where}: click"
    parts = dict(mapping(content, section))
    try:
        context = [ContextFeature.of(feature) for feature in entries_of(parts, "context", section)]
    except DataError as error:
        raise DataError(f"{section}: {error}") from error
    click = build(ClickSettings, parts | {"context": context}, section)
    check_click(click, section)
    return click


def _check_teachers(recipe: Recipe, names: set[str], where: str) -> None:
    for teacher in recipe.teachers:
        if unknown := set(teacher.datasets) - names:
            raise DataError(f"{where}: teachers: {min(unknown)!r} is none of the data sets of this recipe")
    taught = set[str]().union(*(teacher.datasets or names for teacher in recipe.teachers))
    if recipe.teachers and (alone := names - taught):
        raise DataError(f"{where}: teachers: none learns the data set {min(alone)}; name it, or leave `datasets` out")
    if recipe.teachers and recipe.training.teacher_folds < 2:
        raise DataError(f"{where}: training.teacher_folds: with fewer than 2 a teacher has seen every row")


def _head(content: Any, where: str) -> Head:
    parts = dict(mapping(content, where))
    if isinstance(labels := parts.get("labels"), list):
        parts["labels"] = [as_label(label) or label for label in labels]
    return build(Head, parts, where)


def _dataset(content: Any, where: str) -> Dataset:
    parts = dict(mapping(content, where))
    where = f"{where}.{parts['name']}" if "name" in parts else where
    if parts.get("augment") is not None:
        where_augment = f"{where}: augment"
        augment = dict(mapping(parts["augment"], where_augment))
        if augment.get("back_translation") is not None:
            where_back = f"{where_augment}.back_translation"
            augment["back_translation"] = build(BackTranslation, augment["back_translation"], where_back)
        parts["augment"] = build(Augmentation, augment, where_augment)
    return build(Dataset, parts, where)
