"""The recipe's ``training:`` section, with the checks that need nothing but the section itself."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from model.errors import DataError

OPTIMISERS = ("adamw", "adam", "sgd")
PENALTIES = ("l2sp", "frobenius", "none")
WEIGHTINGS = ("equal", "uncertainty", "famo")
EXPERTS = ("none", "towers", "mmoe", "ple")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021) on the linear layers of the body whose name ends in one of ``targets``; the
    body itself stays as it is, and on export they are merged into it. ``rank`` 0: none."""

    rank: int = 0
    alpha: float = 16.0  # the product of the two factors counts alpha / rank
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["query", "value"])


@dataclass(frozen=True)
class Training:
    """Optimiser and batch settings; learning rates are peaks after the warm-up, falling linearly to zero."""

    body_lr: float = 2e-4
    embedding_lr: float = 8e-4
    head_lr: float = 2e-3  # of the heads and of their experts
    optimiser: str = "adamw"  # adamw, adam (the source document's) or sgd
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.01  # decoupled, so of adamw alone: with adam and sgd the penalty is what holds weights back
    penalty: str = "l2sp"
    penalty_weight: float = 1e-4
    weighting: str = "equal"  # of the tasks: equal, uncertainty or famo
    weighting_lr: float = 0.025  # of the tasks' weights, by Adam
    weighting_decay: float = 0.001  # pulls famo's logits back to equal weights
    experts: str = "none"  # between the pooled row and each head: none, towers, mmoe or ple
    experts_width: int = 64  # bottleneck of an expert
    experts_shared: int = 4  # experts that all heads share, of mmoe and ple
    experts_own: int = 1  # experts that each head has for itself, of ple
    lora: Lora = field(default_factory=Lora)
    frozen_layers: int = 0  # embeddings and so many of the first layers stay as they are; 0 trains everything
    warm_up: float = 0.06
    batch_tokens: int = 2560
    window_batches: int = 48  # rows are sorted by length within so many batches: 1 mixes them, where padding is free
    accumulate: int = 1  # batches of batch_tokens in one optimiser step
    temperature: float = 0.5
    passes_max: float = 8.0
    bag_drop: float = 0.15
    dropout: float = 0.1  # of an encoded row
    body_dropout: float = 0.0  # of what each layer adds to its input; of a body that is run padded, its own dropouts
    token_drop: float = 0.0  # share of a text's tokens that are left out, anew each time
    r_drop: float = 0.0  # weight of the disagreement of two dropout masks (Liang et al. 2021); 0: one mask
    tokens_max: float = 1e12  # of one network's training, where the minutes would give more
    teacher_folds: int = 5  # networks of each of the recipe's teachers; each answers for the rows it has not seen
    taught_share: float = 0.7  # of the target, the teachers' answer; the rest is the label
    fairness_weight: float = 0.0  # of the gap between the groups that data sets name
    gradient_norm_max: float = 1.0
    tensorboard: bool = False  # events in --out/tb beside metrics.jsonl, the tasks' conflict, figures on valid rows
    held_every: int = 500  # steps between held-out losses in metrics.jsonl; 0: never
    held_rows: int = 512  # calibration rows that they are taken on
    conflict_every: int = 100  # steps between cosines of the tasks' gradients, when there is a tensorboard; 0: never
    valid_every: int = 500  # steps between figures on valid rows, the last one's too, when there is one; 0: never
    valid_rows: int = 256  # rows of each valid file that they are taken on


_CHOICES = {"optimiser": OPTIMISERS, "penalty": PENALTIES, "weighting": WEIGHTINGS, "experts": EXPERTS}
_POSITIVE = (
    "weighting_lr",
    "gradient_norm_max",
    "passes_max",
    "batch_tokens",
    "accumulate",
    "window_batches",
    "tokens_max",
    "experts_width",
    "experts_shared",
    "held_rows",
)
_SHARES = (
    "bag_drop",
    "dropout",
    "body_dropout",
    "token_drop",
    "momentum",
)  # 1 itself would leave nothing
_INTEGERS = (
    "frozen_layers",
    "teacher_folds",
    "batch_tokens",
    "window_batches",
    "accumulate",
    "experts_width",
    "experts_shared",
    "experts_own",
    "held_every",
    "held_rows",
    "conflict_every",
    "valid_every",
    "valid_rows",
)


def build_training(content: Mapping[str, Any], where: str) -> Training:
    """The settings of a ``training:`` section. Raises DataError naming ``where`` (file and section) and the key."""
    _known(content, Training, where)
    parts = dict(content)
    lora = parts.get("lora") or {}
    if not isinstance(lora, Mapping):
        raise DataError(f"{where}.lora: keys with values are expected, not {type(lora).__name__}")
    _known(lora, Lora, f"{where}.lora")
    settings = Training(**parts | {"lora": Lora(**lora)})
    _check_values(settings, where)
    _check_lora(settings.lora, f"{where}.lora")
    return settings


def _known(content: Mapping[str, Any], kind: type, where: str) -> None:
    known = {f.name for f in fields(kind)}
    for key in content:
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}; known: {', '.join(sorted(known))}")


def _check_values(settings: Training, where: str) -> None:
    for key, choices in _CHOICES.items():
        if getattr(settings, key) not in choices:
            raise DataError(f"{where}.{key}: {getattr(settings, key)!r} is unknown; use {', '.join(choices)}")
    if not isinstance(settings.tensorboard, bool):
        raise DataError(f"{where}.tensorboard: {settings.tensorboard!r} is neither true nor false")
    _check_numbers(settings, where, {*_CHOICES, "tensorboard", "lora"})


def _check_lora(lora: Lora, where: str) -> None:
    if not isinstance(lora.targets, list) or not lora.targets or not all(isinstance(t, str) for t in lora.targets):
        raise DataError(
            f"{where}.targets: {lora.targets!r} is no list of names of linear layers, such as [query, value]"
        )
    _check_numbers(lora, where, {"targets"}, positive=("alpha",), shares=("dropout",), integers=("rank",))


def _check_numbers(
    settings: Training | Lora,
    where: str,
    others: Collection[str],
    *,
    positive: Collection[str] = _POSITIVE,
    shares: Collection[str] = _SHARES,
    integers: Collection[str] = _INTEGERS,
) -> None:
    for entry in fields(settings):
        key, value = entry.name, getattr(settings, entry.name)
        if key in others:
            continue
        if isinstance(value, bool) or not isinstance(value, int if key in integers else int | float):
            kind = "whole number" if key in integers else "number"
            hint = "; YAML reads 1e-4 as text, write 1.0e-4" if isinstance(value, str) else ""
            raise DataError(f"{where}.{key}: {value!r} is no {kind}{hint}")
        if not 0 <= value < float("inf") or (key in positive and not value) or (key in shares and value >= 1):
            bound = "in [0, 1)" if key in shares else "above 0" if key in positive else "at least 0"
            raise DataError(f"{where}.{key}: {value} must be {bound}")
