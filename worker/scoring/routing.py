"""Which queue a message goes to and what an agent may answer, by `routing.yaml`. Pure once loaded."""

from __future__ import annotations

import re
from importlib import resources

import msgspec
import yaml

from worker.errors import ConfigError

_CHINESE = re.compile("[\u4e00-\u9fff]")


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Queue of an intent and its reply templates, Chinese and English."""

    queue: str
    zh: str | None = None
    en: str | None = None


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table. ``heads`` are asked in order; ``human`` takes what none knows; ``default`` the intents not listed."""

    heads: list[str]
    human: str
    default: str
    intents: dict[str, Route]

    def route(self, intent: str, text: str) -> tuple[str, str | None]:
        """Queue and reply for an intent; the reply is in Chinese where the message has any Chinese."""
        route = self.intents.get(intent)
        if route is None:
            return self.default, None
        return route.queue, route.zh if _CHINESE.search(text) else route.en


def load_routing() -> Routing:
    """The table that ships with the worker. Raises `ConfigError` when it is not one."""
    text = resources.files(__package__).joinpath("routing.yaml").read_text(encoding="utf-8")
    try:
        return msgspec.convert(yaml.safe_load(text), Routing)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError(f"worker/scoring/routing.yaml: {error}") from error
