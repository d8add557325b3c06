"""What a recipe's values may be: each mistake is named by file and key, with what to write, before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.assess.evaluate import STREAM_TASKS
from model.data import as_label, check_number
from model.errors import DataError
from model.training.augmentation import check_augmentation

if TYPE_CHECKING:
    from model.training.recipe import Dataset, Head, Recipe, Trial

KINDS = ("classes", "score")  # of heads
DECISIONS = ("accuracy", "macro_f1")  # what a head's answers are chosen for
_SEEDS = 2**32  # more scikit-learn does not take


def check_recipe(recipe: Recipe, where: str) -> None:
    """Raises DataError, naming ``where`` (the recipe's file) and the key, for what cannot be."""
    _check_numbers(recipe, where)
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
    if recipe.datasets and not any(dataset.weight for dataset in recipe.datasets):
        raise DataError(f"{where}: datasets: every weight is 0, so nothing is learned from; give one above 0")
    for trial in recipe.evaluation:
        _check_trial(trial, f"{where}: evaluation: {trial.file}")
    _check_bag(recipe, names, where)
    _check_teachers(recipe, names, where)
    taught = set[str]().union(*(dataset.labels for dataset in recipe.datasets))
    if untaught := set(recipe.heads) - taught:
        raise DataError(
            f"{where}: heads.{min(untaught)}: no data set has labels of it; give one, or leave the head out"
        )


def _check_numbers(recipe: Recipe, where: str) -> None:
    text, bag, cost = recipe.text, recipe.bag, recipe.scope_cost
    least = {
        "vocabulary": (recipe.vocabulary, 0),
        "warm_rows": (recipe.warm_rows, 0),
        "text.gram_units_max": (text.gram_units_max, 1),
        "bag.keep": (bag.keep, 1),
        "bag.folds": (bag.folds, 2),
        "scope_cost.answered": (cost.answered, 0),
    }
    for key, (value, bound) in least.items():
        if value < bound:
            raise DataError(f"{where}: {key}: {value} must be at least {bound}")
    shares = {"text.head_share": text.head_share, "scope_cost.share": cost.share, "scope_cost.lost_max": cost.lost_max}
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise DataError(f"{where}: {key}: {value} is no share from 0 to 1")
    for key, values, bound in (("layers", recipe.layers, 0), ("text.gram_orders", text.gram_orders, 1)):
        if any(value < bound for value in values):
            raise DataError(f"{where}: {key}: {list(values)} must each be at least {bound}")
    if not text.gram_orders:
        raise DataError(f"{where}: text.gram_orders: give at least one, or leave it out for 1, 2 and 3")
    if bag.c <= 0:
        raise DataError(f"{where}: bag.c: {bag.c} must be above 0")
    if not 0 <= recipe.seed < _SEEDS:
        raise DataError(f"{where}: seed: {recipe.seed} must be at least 0 and below 2^32")


def _check_trial(trial: Trial, where: str) -> None:
    if trial.task in STREAM_TASKS and (trial.text or trial.label or trial.without):
        raise DataError(f"{where}: text, label and without are for tasks on texts, not for {trial.task}")


def _check_head(head: Head, name: str, where: str) -> None:
    if "/" in name or not all(name.split(".")):
        raise DataError(f"{where}: {name!r} is no name of a head: it needs one, without / and with dots only inside")
    if name in STREAM_TASKS:
        raise DataError(f"{where}: {name} is a task on logs, which `click:` learns; name the head otherwise")
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
    if not all(map(as_label, head.labels)):
        raise DataError(f"{where}.labels: {head.labels} has a blank one; no label is null in the rows, and no class")
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
    heads = [head for _, head in recipe.bag.targets]
    if twice := next((head for head in heads if heads.count(head) > 1), None):
        raise DataError(f"{where}: bag.targets: {twice} is named twice; a head has one set of linear columns")
    buckets = recipe.text.gram_buckets
    if buckets & (buckets - 1) or buckets % 8:
        raise DataError(f"{where}: text.gram_buckets {buckets} is not a power of two of at least 8 (or 0)")
    if recipe.bag.targets and not buckets:
        raise DataError(f"{where}: bag.targets need text.gram_buckets")


def _check_teachers(recipe: Recipe, names: set[str], where: str) -> None:
    for teacher in recipe.teachers:
        if unknown := set(teacher.datasets) - names:
            raise DataError(f"{where}: teachers: {min(unknown)!r} is none of the data sets of this recipe")
    taught = set[str]().union(*(teacher.datasets or names for teacher in recipe.teachers))
    if recipe.teachers and (alone := names - taught):
        raise DataError(f"{where}: teachers: none learns the data set {min(alone)}; name it, or leave `datasets` out")
    if recipe.teachers and recipe.training.teacher_folds < 2:
        raise DataError(f"{where}: training.teacher_folds: with fewer than 2 a teacher has seen every row")
