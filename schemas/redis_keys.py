"""Where states and fences live in Redis.

``{u17}`` and ``{i17}`` are hash tags: the states of a shard and its fence share one slot of a Redis cluster, so
that one script can write them together. Every vector space has keys of its own.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["user", "item"]
_TAG = {"user": "u", "item": "i"}


def state_key(space: str, kind: Kind, shard: int, key: str) -> str:
    """Key of a user's or item's state, e.g. ``s1:user:{u17}:alice``."""
    return f"{space}:{kind}:{{{_TAG[kind]}{shard}}}:{key}"


def fence_key(space: str, kind: Kind, shard: int) -> str:
    """Key of a shard's fence, e.g. ``s1:fence:{u17}``."""
    return f"{space}:fence:{{{_TAG[kind]}{shard}}}"
