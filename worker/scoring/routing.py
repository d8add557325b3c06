"""Which queue a message goes to and what an agent may answer, by `routing.yaml` or a file of one's own. Pure once
loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from model.data import as_label
from worker.errors import ConfigError
from worker.yaml_file import load_yaml, refusal, values_of

SHIPPED: Final = "shipped"
OUT_OF_SCOPE: Final = "oos"
"""The label of a head for what is none of its intents: it goes to ``human``, whatever the table says."""

_CHINESE = re.compile("[\u4e00-\u9fff]")
_Queue = Annotated[str, msgspec.Meta(min_length=1)]


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Queue of an intent and its reply templates, Chinese and English."""

    queue: _Queue
    zh: str | None = None
    en: str | None = None


class Routing(msgspec.Struct, frozen=True):
    """The table. ``heads`` are asked in order; ``human`` takes what none knows; ``default`` the intents not listed.
    ``source``: as in the configuration."""

    heads: list[str]
    human: str
    default: str
    intents: dict[str, Route]
    source: str = SHIPPED

    def route(self, intent: str, text: str) -> tuple[str, str | None]:
        """Queue and reply for an intent; the reply is in Chinese where the message has any Chinese."""
        route = self.intents.get(intent) or self.intents.get(_key(intent))
        if route is None:
            return self.default, None
        return route.queue, route.zh if _CHINESE.search(text) else route.en

    def unknown(self, labels: Mapping[str, Sequence[str]]) -> list[str]:
        """Intents of the table that none of its heads tells, by the labels of a model's heads."""
        told = set(map(_key, self._told(labels)))
        return [intent for intent in self.intents if intent not in told]

    def unlisted(self, labels: Mapping[str, Sequence[str]]) -> list[str]:
        """Intents that its heads tell and the table lacks: they go to ``default``, without a reply."""
        return [label for label in self._told(labels) if _key(label) not in self.intents]

    def _told(self, labels: Mapping[str, Sequence[str]]) -> list[str]:
        return list(dict.fromkeys(label for head in self.heads for label in labels[head] if label != OUT_OF_SCOPE))


def _key(label: str) -> str:
    """What looks the same is the same intent, however file and artifact write it."""
    return as_label(label) or label


class _File(msgspec.Struct, forbid_unknown_fields=True):
    heads: Annotated[list[str], msgspec.Meta(min_length=1)]
    human: _Queue
    default: _Queue
    intents: dict[str, Any]


def load_routing(name: str = SHIPPED) -> Routing:
    """The table of ``worker.routing``: "shipped", or a YAML file.

    Raises `ConfigError` naming the file, the line and the key that is wrong.
    """
    where = f"worker.routing {name}"
    node, content = load_yaml(Path(__file__).with_name("routing.yaml") if name == SHIPPED else Path(name), where)
    if not isinstance(content, dict) or node is None:
        raise ConfigError(f"{where}: expected heads, human, default and intents")
    places = values_of(values_of(node, where).get("intents"), where)
    try:
        table = msgspec.convert(content, _File)
    except msgspec.ValidationError as error:
        raise refusal(error, node, where) from error
    intents = {}
    for intent, route in table.intents.items():
        try:
            intents[_key(intent)] = msgspec.convert(route, Route)
        except msgspec.ValidationError as error:
            raise refusal(error, places[intent], f"{where}, intent {intent}") from error
    return Routing(table.heads, table.human, table.default, intents, name)
