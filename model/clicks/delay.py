"""How late outcomes are known, and by how many events they are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Delay:
    """How late outcomes are known.

    ms           milliseconds from an impression to what is known of its click
    at_once      whether the worker folds that something was shown when it is shown, and the click that answers it
                 later; else one event says both when the outcome is known
    purchase_ms  milliseconds from an impression to the answer that tells its purchase; None: told with the click
    """

    ms: int = 0
    at_once: bool = True
    purchase_ms: int | None = None

    def steps(self) -> list[tuple[int, tuple[bool, bool, bool]]]:
        """What is told when: milliseconds after the event, and whether shown, clicked and purchased are told then. The
        first step is the event itself."""
        told_ms = (0 if self.at_once else self.ms, self.ms, self.ms if self.purchase_ms is None else self.purchase_ms)
        return [
            (after, (told_ms[0] == after, told_ms[1] == after, told_ms[2] == after)) for after in sorted({0, *told_ms})
        ]


NO_DELAY: Final = Delay()
