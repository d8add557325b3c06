"""What the doctor says of one thing that it looked at."""

from __future__ import annotations

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. ``todo`` says how to mend it, and is empty where all is well."""

    name: str
    well: bool
    found: str
    todo: str = ""


def good(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(name=name, well=True, found=found)


def bad(name: str, found: str, todo: str) -> Check:
    """Something to mend."""
    return Check(name=name, well=False, found=found, todo=todo)
