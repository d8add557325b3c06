"""YAML that people write: what is wrong is told with file and line, and no key comes twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from worker.errors import ConfigError


def load_yaml(file: Path, where: str) -> tuple[yaml.Node | None, Any]:
    """`read_yaml` of a file. Raises `ConfigError`, also where it cannot be read."""
    try:
        return read_yaml(file.read_text(encoding="utf-8"), where)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8: {error}") from error


def read_yaml(text: str, where: str) -> tuple[yaml.Node | None, Any]:
    """A YAML text as nodes, which know their lines, and as what it says.

    Raises `ConfigError` naming ``where`` and the line, also for a key that comes twice: PyYAML would keep the last.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except Exception as error:  # PyYAML lets through what a date or number that is none raises, or nesting without end
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    _refuse_repeats(node, where)
    return node, content


def pairs_of(node: yaml.Node | None) -> list[tuple[Any, Any]]:
    """The nodes of a mapping's keys and values; none of anything else."""
    return node.value if isinstance(node, yaml.MappingNode) else []


def values_of(node: yaml.Node | None, where: str) -> dict[str, yaml.Node]:
    """The nodes of a mapping's values by its keys. Raises `ConfigError` for a key that YAML takes for something else
    than text, as it does ``no`` and ``12``."""
    for key, _ in pairs_of(node):
        if key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{where}, line {line_of(key)}: `{key.value}` is no text to YAML: put it in quotes")
    return {key.value: value for key, value in pairs_of(node)}


def _refuse_repeats(root: yaml.Node | None, where: str) -> None:
    waiting, met = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in met:  # an alias, which may even stand within what it names
            continue
        met.add(id(node))
        seen = set()
        for key, value in pairs_of(node):
            if key.value in seen:
                raise ConfigError(f"{where}, line {line_of(key)}: a second `{key.value}`")
            seen.add(key.value)
            waiting.append(value)
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value


def line_of(node: yaml.Node) -> int:
    """Where a node begins, as editors count."""
    return int(node.start_mark.line) + 1


def refusal(error: msgspec.ValidationError, node: yaml.Node, where: str) -> ConfigError:
    """What msgspec found wrong in a mapping or list, with the line of the key or element that it names."""
    said = str(error)
    key = re.search(r"unknown field `([^`]+)`", said) or re.search(r"at `\$\.([A-Za-z_]+)", said)
    place = re.search(r"at `\$\[(\d+)\]", said)
    culprit = next((each for each, _ in pairs_of(node) if key and each.value == key[1]), node)
    if place and isinstance(node, yaml.SequenceNode):
        culprit = node.value[int(place[1])]
    return ConfigError(f"{where}, line {line_of(culprit)}: {said.replace(' - at `$.', ' - at `')}")
