"""A circuit breaker: whether to try at all. Pure, time is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Breaker:
    """Circuit breaker: after ``failures`` in a row it stays open for ``open_s``, then lets one call try."""

    failures: int
    open_s: float
    _failed: int = field(default=0, init=False)
    _open_until: float = field(default=0.0, init=False)

    def allows(self, now: float) -> bool:
        """Whether a call may be made at ``now`` (monotonic seconds)."""
        return self._failed < self.failures or now >= self._open_until

    def succeeded(self) -> None:
        """A call was answered."""
        self._failed = 0

    def failed(self, now: float) -> None:
        """A call was not answered; the one that tried after the pause opens it again at once."""
        self._failed += 1
        if self._failed >= self.failures:
            self._open_until = now + self.open_s
