"""Whether a device has failed for good, so that no event is blamed for it: told by its errors, or by a text that must
always work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from model.scoring import Scorer
from worker.errors import DeviceError

TEXT: Final = "Where is my order?"
_SAYS: Final = ("CUDA error", "CUBLAS", "cuDNN")
"""How the errors begin after which a process gets nothing more out of its device."""


class Canary:
    """One short text, encoded and asked of ``heads``. For the thread that encodes."""

    def __init__(self, scorer: Scorer, heads: Sequence[str]) -> None:
        self._scorer, self._heads = scorer, heads
        self._prepared = scorer.prepare([TEXT])

    def check(self) -> None:
        """Raises `DeviceError` when the model fails on the text, or gives it scores that are no numbers."""
        try:
            rows = self._scorer.encode(self._prepared)
            scores = [self._scorer.vectors(rows), *(self._scorer.classify(head, rows) for head in self._heads)]
        except Exception as error:
            raise device_error(error) from error
        if not all(np.isfinite(values).all() for values in (rows, *scores)):
            raise device_error("its scores are not numbers")


def device_failed(error: BaseException) -> bool:
    """Whether this says that the device itself has failed. Ask `out_of_memory` first: CUDA words some of that alike."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.AcceleratorError) or str(error).startswith(_SAYS)


def device_error(said: object) -> DeviceError:
    """The error for a device that has failed, from what it said."""
    first = str(said).partition("\n")[0] or type(said).__name__
    return DeviceError(
        f"the model fails on every text: {first}. This process ends and nothing of the batch is committed; if it"
        " happens again, `millrace doctor` tells whether the artifact or the device is to blame"
    )
