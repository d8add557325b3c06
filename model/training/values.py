"""A recipe's sections, made from what is written and checked against what their dataclasses declare, with what to write
instead."""

import math
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from model.errors import DataError
from model.training.recipe_file import mapping

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


T = TypeVar("T")


def build(kind: type[T], content: Any, where: str, *, whole: bool = False) -> T:
    """A section; a key without a value counts as not said. ``where``: its file and name, or with ``whole`` the file of
    a recipe as a whole. Raises DataError naming it and the key."""
    said = {key: value for key, value in mapping(content, where).items() if value is not None}
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = [key for key in said if key not in known]
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    needed = [key for key, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [key for key in needed if key not in said]
    if missing:
        raise DataError(f"{where}: key {missing[0]!r} is missing; needed: {', '.join(needed)}")
    section = kind(**said)
    _check_values(section, f"{where}: " if whole else f"{where}.")
    return section


def _check_values(section: Any, prefix: str) -> None:
    """Raises DataError, naming ``prefix`` (file and section) and key, for a value of another kind than declared."""
    kinds = get_type_hints(type(section))
    for entry in fields(section):
        value, kind = getattr(section, entry.name), kinds[entry.name]
        if not _fits(value, kind):
            raise DataError(f"{prefix}{entry.name}: {value!r} is not {_named(kind)}{_hint(value, kind)}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared kind; whole numbers are numbers, truth values are not, lists are tuples too."""
    inner = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_fits(value, each) for each in inner)
    if get_origin(kind) in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(each, inner[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    if kind in (int, float):
        return (
            isinstance(value, int if kind is int else int | float) and type(value) is not bool and math.isfinite(value)
        )
    return kind is Any or isinstance(value, kind)


def _named(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) in (list, tuple):
        return f"a list of which each is {_named(inner[0])}"
    if get_origin(kind) is dict:
        return f"keys of which each has {_named(inner[1])}"
    return _NAMES.get(kind, "what belongs here")


def _hint(value: Any, kind: Any) -> str:
    """What to write, where it can be guessed from what was written."""
    inner = get_args(kind)
    if get_origin(kind) is list:
        wrong = [each for each in value if not _fits(each, inner[0])] if isinstance(value, list) else []
        return _hint(wrong[0], inner[0]) if wrong else f"; write [{value}]" if _fits(value, inner[0]) else ""
    if get_origin(kind) is dict and isinstance(value, dict):
        return next((_hint(each, inner[1]) for each in value.values() if not _fits(each, inner[1])), "")
    if kind is str and isinstance(value, bool):
        return "; YAML reads yes, no, on and off as true and false: write the word in quotes"
    if kind is str and isinstance(value, int | float):
        return f'; write "{value}"'
    if kind in (int, float) and isinstance(value, str):
        return f"; write {value} without quotes" if value.isdecimal() else "; YAML reads 1e-4 as text, write 1.0e-4"
    return ""
