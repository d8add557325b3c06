"""Between the shared row and a head: small experts, for tasks that hurt each other.

- ``towers``: every head has a bottleneck of its own (Houlsby et al. 2019, after the encoder rather than inside).
- ``mmoe``: shared experts, mixed for every head by a gate of its own (Ma et al. 2018).
- ``ple``: shared experts and the head's own, mixed by its gate: one layer of progressive layered extraction (Tang et
  al. 2020), which is their customised gate control.

An expert is f(x) = U silu(D x + a) + b with a bottleneck ``width``; head h reads x + sum_e g_he(x) f_e(x), g = softmax
of a linear map. U and b begin at zero, so that training begins at the plain network; D and the gates' maps are random,
so that experts do not stay alike.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

T = TypeVar("T")
_BARE = nn.ModuleDict()  # has the names that no module in one may have


@dataclass(frozen=True)
class ExpertsConfig:
    """The manifest's ``experts``. ``shared``, ``own``: number of experts for all heads, and for each. ``heads``: those
    that read through experts; others (added to an artifact later) read the shared row as it is."""

    kind: str
    width: int
    shared: int
    own: int
    heads: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, width: int, shared: int, own: int, heads: Iterable[str]) -> "ExpertsConfig | None":
        """From settings of all kinds, of which ``kind`` uses its own; None for ``none``."""
        if kind == "none":
            return None
        numbers = {"towers": (0, 1), "mmoe": (shared, 0), "ple": (shared, own)}[kind]
        return cls(kind, width, *numbers, tuple(heads))

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> "ExpertsConfig":
        return cls(**dict(section) | {"heads": tuple(section["heads"])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"heads": list(self.heads)}

    def without(self, heads: Iterable[str], tensors: Mapping[str, T]) -> "tuple[ExpertsConfig, dict[str, T]]":
        """The same without these heads, and an artifact's ``tensors`` without what they had for themselves."""
        gone = set(heads)
        parts = tuple(f"experts.{part}.{module_name(head)}." for head in gone for part in ("own", "gates"))
        kept = {name: value for name, value in tensors.items() if not name.startswith(parts)}
        return replace(self, heads=tuple(head for head in self.heads if head not in gone)), kept


def module_name(head: str) -> str:
    """A head's name as part of a module's, which cannot hold dots: intent.shop is kept as intent/shop. Nor can it be a
    name that torch has for itself: type is kept as type/."""
    name = head.replace(".", "/")
    return f"{name}/" if hasattr(_BARE, name) else name


def head_name(module: str) -> str:
    """The head that ``module_name`` calls so."""
    return module.removesuffix("/").replace("/", ".")


class Experts(nn.Module):
    """The experts and gates of all heads over rows of ``row`` columns."""

    def __init__(self, config: ExpertsConfig, row: int) -> None:
        super().__init__()
        heads = [module_name(head) for head in config.heads]
        self.config = config
        self.shared = nn.ModuleList(_Expert(row, config.width) for _ in range(config.shared))
        self.own = nn.ModuleDict(
            {head: nn.ModuleList(_Expert(row, config.width) for _ in range(config.own)) for head in heads}
        )
        total = config.shared + config.own
        self.gates = nn.ModuleDict({head: _gate(row, total) for head in heads} if total > 1 else {})

    def forward(self, head: str, rows: Tensor) -> Tensor:
        """rows [n, row] -> what the head reads, [n, row]; the rows themselves for a head without experts."""
        if head not in self.config.heads:
            return rows
        head = module_name(head)
        experts = [*self.shared, *cast(nn.ModuleList, self.own[head])]
        found = torch.stack([expert(rows) for expert in experts], dim=1)  # [n, experts, row]
        if head not in self.gates:
            return rows + found[:, 0]
        shares = functional.softmax(self.gates[head](rows), dim=1)
        return rows + (shares[:, :, None] * found).sum(1)


def _gate(row: int, experts: int) -> nn.Linear:
    gate = nn.Linear(row, experts)
    nn.init.normal_(gate.weight, std=0.02)
    nn.init.zeros_(gate.bias)
    return gate


class _Expert(nn.Module):
    def __init__(self, row: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(row, width)
        self.up = nn.Linear(width, row)
        nn.init.normal_(
            self.down.weight, std=row**-0.5
        )  # pooled rows have entries of about one: so have the bottlenecks
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, rows: Tensor) -> Tensor:
        return self.up(functional.silu(self.down(rows)))  # type: ignore[no-any-return]
