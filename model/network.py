"""One encoder, a head per task. An encoded row is [pooled transformer output | n-gram columns].

Encoded rows are shared; experts, where there are any, stand between a row and its head and see the pooled part only.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.bag import GramBag
from model.encoder import PackedEncoder, PaddedEncoder
from model.experts import Experts, ExpertsConfig, module_name
from model.packing import Packed, pack
from model.scoring import Floats, Ints, Prepared


class Network(nn.Module):
    """Encoder, optional n-gram channel, optional experts and linear heads; ``heads`` maps a head's name to its number
    of labels."""

    def __init__(
        self,
        encoder: PackedEncoder | PaddedEncoder,
        bag: GramBag | None,
        heads: Mapping[str, int],
        experts: ExpertsConfig | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.bag = bag
        self.hidden = encoder.config.hidden + (bag.columns if bag else 0)
        self.heads = nn.ModuleDict({module_name(name): nn.Linear(self.hidden, size) for name, size in heads.items()})
        for name in heads:
            head = self.head(name)
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        self.experts = None if experts is None else Experts(experts, encoder.config.hidden)

    def encode(self, texts: Sequence[Prepared], bag_values: Tensor | None = None) -> Tensor:
        """Encoded rows, float32 [n, hidden]. ``bag_values`` [n, columns] replaces the channel's own (training)."""
        values = self.bag(list(texts)) if self.bag is not None and bag_values is None else bag_values
        return self.encode_packed(self.pack([text.ids for text in texts]), values)

    def pack(self, ids: Sequence[Ints]) -> Packed:
        """Token ids laid out on the network's device as its encoder reads them in the precision of now."""
        weight = next(self.encoder.parameters())
        kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
        if isinstance(self.encoder, PackedEncoder):
            return pack(ids, weight.device, grouped=not self.encoder.attends_by_ends(weight.device, kind))
        return pack(ids, weight.device, step=1)

    def encode_packed(self, packed: Packed, bag_values: Tensor | None) -> Tensor:
        """Encoded rows, float32 [n, hidden], of packed texts and their n-gram columns [n, columns], if it has them."""
        pooled = self.encoder(packed)
        return pooled if bag_values is None or self.bag is None else torch.cat([pooled, bag_values], dim=1)

    def head(self, name: str) -> nn.Linear:
        """The linear layer of a head. Raises KeyError for an unknown one."""
        return cast(nn.Linear, self.heads[module_name(name)])

    def rows_for(self, name: str, encoded: Tensor) -> Tensor:
        """What a head reads of encoded rows [n, hidden]: themselves, or the pooled part changed by its experts."""
        if self.experts is None or name not in self.experts.config.heads:
            return encoded
        body = self.encoder.config.hidden
        changed = self.experts(name, encoded[:, :body])
        return changed if body == self.hidden else torch.cat([changed, encoded[:, body:]], dim=1)

    def read(self, name: str, encoded: Floats) -> Floats:
        """``rows_for`` on an array [n, hidden], without gradients: for export and scoring."""
        if self.experts is None or name not in self.experts.config.heads:
            return encoded
        device = next(self.experts.parameters()).device
        rows = torch.from_numpy(np.require(encoded, np.float32, "W"))  # torch warns of arrays that it may not write
        with torch.inference_mode():
            return self.rows_for(name, rows.to(device)).cpu().numpy()

    def logits(self, name: str, encoded: Tensor) -> Tensor:
        """A head's logits [n, labels] for encoded rows [n, hidden]. Raises KeyError for an unknown one."""
        return self.head(name)(self.rows_for(name, encoded))  # type: ignore[no-any-return]


class LinearColumns(NamedTuple):
    """Columns of the n-gram channel that speak for a head: the ``first`` of them, and the head's ``classes`` that they
    stand for, one column each; of two classes there is one column, for the second against the first."""

    first: int
    classes: tuple[int, ...]


def linear_weights(network: Network, columns: Mapping[str, LinearColumns]) -> dict[str, Tensor]:
    """For every head with linear ``columns`` of its own, the weights [labels, hidden] that answer as those alone do."""
    body = network.encoder.config.hidden
    weights = {}
    for head, (first, classes) in columns.items():
        weight = torch.zeros(network.head(head).out_features, network.hidden)
        if len(classes) == 2:
            weight[classes[1], body + first], weight[classes[0], body + first] = 1.0, -1.0
        else:
            weight[list(classes), list(range(body + first, body + first + len(classes)))] = 1.0
        weights[head] = weight
    return weights
