"""Events that come in: clicks, reviews and customer-service messages, as JSON.

Unknown fields are allowed and left out. Null in a field that has a default, and a blank optional id, mean absent
(`without_absent`). What does not fit a type here becomes a dead letter with its original bytes; the limits are part of
the contract and are checked while decoding.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

import msgspec

# Identifiers end up in Redis keys, Kafka keys and fold blocks, so they are short and never empty.
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
# Long texts are cut by the model to head and tail; this bound only keeps one message from filling a queue.
Text = Annotated[str, msgspec.Meta(max_length=200_000)]
EventTimeMs = Annotated[int, msgspec.Meta(ge=0, description="Event time, milliseconds since 1970 UTC.")]
Name = Annotated[str, msgspec.Meta(max_length=256)]

Action = Literal["impression", "click", "cart", "favourite", "share", "purchase", "search"]

MAX_CANDIDATES = 256
FUTURE_LIMIT_MS = 5 * 60 * 1000
"""Events further ahead of the clock than this are dead letters: one from 2099 would decay a user to nothing."""
EARLIEST_MS = 10**11
"""Event times before this (March 1973) are dead letters: they are seconds, and would make everything late and cold."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One item to rank for the user of the click event that carries it."""

    item_id: Id
    title: Text = ""
    context: dict[Name, float | str] = {}


class ClickEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something a user saw or did. Later actions name the impression they answer, so that it counts once.

    ``clicked`` and ``purchased`` on an impression tell an outcome that is known at once; absent means unknown,
    never "no". ``impression_time_ms`` lets the answer count at the time of what it answers.
    """

    event_id: Id
    event_time_ms: EventTimeMs
    action: Action = "impression"
    user_id: Id | None = None
    item_id: Id | None = None
    title: Text = ""
    query: Text = ""
    impression_id: Id | None = None
    impression_time_ms: EventTimeMs | None = None
    clicked: bool | None = None
    purchased: bool | None = None
    candidates: Annotated[list[Candidate], msgspec.Meta(max_length=MAX_CANDIDATES)] = []
    context: dict[Name, float | str] = {}
    experiment_id: Name | None = None


class ReviewEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A review, post or comment about an item, category, brand or topics."""

    event_id: Id
    event_time_ms: EventTimeMs
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=200_000)]
    title: Text = ""
    user_id: Id | None = None
    item_id: Id | None = None
    stars: Annotated[float, msgspec.Meta(ge=0, le=5)] | None = None
    category: Name | None = None
    brand: Name | None = None
    topics: Annotated[list[Name], msgspec.Meta(max_length=16)] = []
    experiment_id: Name | None = None


class ServiceEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message of a customer to customer service."""

    event_id: Id
    event_time_ms: EventTimeMs
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=200_000)]
    user_id: Id | None = None
    conversation_id: Id | None = None
    channel: Name | None = None
    experiment_id: Name | None = None


Event = ClickEvent | ReviewEvent | ServiceEvent


_OPTIONAL_IDS = frozenset({"user_id", "item_id", "impression_id", "conversation_id"})


def without_absent(value: bytes, kind: type[msgspec.Struct]) -> bytes:
    """An event's JSON without what means absent: null where ``kind`` has a default or a context a number, a blank id.

    The types take none of it, so that a reader never meets null where a text or a list belongs; who decodes events
    asks for this when they do not fit. Raises `msgspec.DecodeError`, as decoding does.
    """
    return msgspec.json.encode(_present(msgspec.json.decode(value), kind))


def _present(tree: Any, kind: type[msgspec.Struct]) -> Any:
    if not isinstance(tree, dict):
        return tree
    optional = _optional(kind)
    kept = {
        name: value
        for name, value in tree.items()
        if name not in optional or not (value is None or (value == "" and name in _OPTIONAL_IDS))
    }
    if isinstance(context := kept.get("context"), dict):
        kept["context"] = {name: value for name, value in context.items() if value is not None}
    if isinstance(candidates := kept.get("candidates"), list):
        kept["candidates"] = [_present(each, Candidate) for each in candidates]
    return kept


@cache
def _optional(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.name for field in msgspec.structs.fields(kind) if not field.required)
