"""A recipe's file as it is written: its YAML, laid over that of the recipe that it is based on."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from model.errors import DataError


def read_content(path: Path, above: tuple[Path, ...] = ()) -> Mapping[str, Any]:
    """The keys of a recipe and, where it names a ``base`` (seen from its folder), of that recipe: sections key by key,
    data sets by name. ``above``: recipes that are based on this one, resolved. Raises DataError naming the file."""
    path = Path(path)
    if path.resolve() in above:
        raise DataError(f"{path}: base: the recipe is based on itself; name another, or leave it out")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); re-encode it") from error
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: no readable recipe ({error})") from error
    content = dict(mapping(content, str(path)))
    _check_names(content, str(path))
    base = content.pop("base", None)
    if base is None:
        return content
    below = dict(read_content(path.parent / str(base), (*above, path.resolve())))
    for key, value in content.items():
        if key == "datasets":
            old, new = (entries_of(each, key, str(path)) for each in (below, content))
            below[key] = _changed(old, new, f"{path}: {key}")
        elif isinstance(value, Mapping):
            below[key] = {**mapping(below.get(key) or {}, f"{path}: {key}"), **value}
        else:
            below[key] = value
    return below


def _check_names(content: Mapping[str, Any], where: str) -> None:
    """Raises DataError for two data sets of one name: by it they are changed, taught, and told from those of other
    runs."""
    datasets = entries_of(content, "datasets", where)
    names = Counter(str(dataset["name"]) for dataset in datasets if isinstance(dataset, Mapping) and "name" in dataset)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(f"{where}: datasets: two are named {twice[0]!r}; give each a name of its own")


def _changed(datasets: list[Any], changes: list[Any], where: str) -> list[Any]:
    """The data sets of a base with the keys that ``changes`` names changed; new names come last."""
    by_name = {str(mapping(dataset, where).get("name")): dict(dataset) for dataset in datasets}
    for change in changes:
        name = str(mapping(change, where).get("name"))
        by_name[name] = by_name.get(name, {}) | change
    return list(by_name.values())


def entries_of(content: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """A key's list, empty where nothing is said. Raises DataError for what is none."""
    entries = content.get(key) or []
    if not isinstance(entries, list):
        raise DataError(f"{where}: {key}: a list is expected, not {type(entries).__name__}")
    return entries


def mapping(content: Any, where: str) -> Mapping[str, Any]:
    """A section as it is. Raises DataError for what is none."""
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: keys with values are expected, not {type(content).__name__}")
    return content
