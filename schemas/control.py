"""What people tell the notifier: mutes and acknowledgements, as records of the compacted topic ``alerts.control``.

The key says what it is about (`Mute.key`, `Ack.key`), the value is one `Control` as JSON, and an empty value takes it
back. Times are wall time.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

MAX_MUTE_DAYS: Final = 30
"""A mute ends by itself: the topic forgets what is older than twice this."""


class Mute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="mute", tag_field="kind"):
    """No messages about subjects that match ``pattern`` before ``until_ms``.

    ``*`` and ``?`` are as in a shell, every other sign is itself.
    """

    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    until_ms: int
    at_ms: int
    by: str = ""
    note: str = ""

    def key(self) -> str:
        """Kafka key: a later mute of the same pattern replaces this one."""
        return f"mute:{self.pattern}"


class Ack(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="ack", tag_field="kind"):
    """Somebody is on this alert: no more messages about it but that it resolved."""

    alert_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    at_ms: int
    by: str = ""
    note: str = ""

    def key(self) -> str:
        """Kafka key."""
        return f"ack:{self.alert_id}"


Control = Mute | Ack
