"""A circuit breaker: whether to try at all. Pure, time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Breaker:
    """Circuit breaker: after ``failures`` in a row it stays open for ``open_s``, then lets one call try.

    Others are refused until that call is answered, or for as long again if it never comes back.
    """

    failures: int
    open_s: float
    _failed: int = field(default=0, init=False)
    _open_until: float = field(default=0.0, init=False)

    def allows(self, now: float) -> bool:
        """Whether a call may be made at ``now`` (monotonic seconds). Whoever is told so makes it."""
        if self._failed < self.failures:
            return True
        if now < self._open_until:
            return False
        self._open_until = now + self.open_s
        return True

    def succeeded(self) -> None:
        """A call was answered."""
        self._failed = 0

    def failed(self, now: float, jitter: float = 1.0) -> None:
        """A call was not answered. Beyond the bound it opens for ``jitter * open_s``, after a failed try at once."""
        self._failed += 1
        if self._failed >= self.failures:
            self._open_until = now + self.open_s * jitter
