"""A training recipe: one YAML file of heads, data sets and settings, checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.calibrate import ScopeCost
from model.clicks.context import ContextFeature
from model.clicks.settings import ClickSettings, check_click
from model.data import Columns, Fallback, as_label
from model.errors import DataError
from model.text import TextSpec
from model.training.augmentation import Augmentation, BackTranslation
from model.training.recipe_checks import check_recipe
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


@dataclass(frozen=True)
class Head:
    """A head over ``labels`` (without: those of the data, sorted).

    ``kind``: ``classes``, or ``score`` for labels that are numbers, whole or not: the expected value over them is the
    answer, and its mean absolute error joins the loss with weight ``error_weight``. ``decide``: for ``accuracy`` the
    likeliest label is the answer; for ``macro_f1`` rare labels count more (`model.calibrate.decision_weights`).
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
        fields = Fallback((*dict.fromkeys(before), last))
        return Columns(fields, own[0].labels[head], self.heads[head].kind == "score")

    def history_of(self, trial: Trial, data: Path) -> list[Path]:
        """Files of what came before a trial's rows, for a folder of data."""
        trained = [dataset.file for dataset in self.datasets if trial.task in dataset.labels and dataset.file]
        return [data / name for name in trial.history or trained]

    def columns_of(self, trial: Trial) -> Columns:
        """Where a trial's file has text and label: as it says, else as the data sets of its head."""
        return trial.columns.otherwise(self.columns(trial.task))


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe. With ``base: FILE`` (seen from its folder) it says only what differs from that recipe:
    sections key by key, data sets by name. Raises DataError naming file and key."""
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
    check_recipe(recipe, where)
    return recipe


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


def _head(content: Any, where: str) -> Head:
    parts = dict(mapping(content, where))
    if isinstance(labels := parts.get("labels"), list):
        parts["labels"] = _labels(labels, score=parts.get("kind") == "score")
    return build(Head, parts, where)


def _labels(labels: list[Any], *, score: bool = False) -> list[Any]:
    """Labels as rows have them read; what can be none stays as it is, to be refused."""
    return [as_label(label, score=score) or label for label in labels]


def _dataset(content: Any, where: str) -> Dataset:
    parts = dict(mapping(content, where))
    where = f"{where}.{parts['name']}" if "name" in parts else where
    if isinstance(outside := parts.get("outside"), dict):
        parts["outside"] = {head: _labels(own) if isinstance(own, list) else own for head, own in outside.items()}
    if parts.get("augment") is not None:
        where_augment = f"{where}: augment"
        augment = dict(mapping(parts["augment"], where_augment))
        if augment.get("back_translation") is not None:
            where_back = f"{where_augment}.back_translation"
            augment["back_translation"] = build(BackTranslation, augment["back_translation"], where_back)
        parts["augment"] = build(Augmentation, augment, where_augment)
    return build(Dataset, parts, where)
