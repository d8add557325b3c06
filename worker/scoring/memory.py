"""What a device or the machine says when its memory is full, and making room. Imports no torch by itself."""

from __future__ import annotations

import sys
from typing import Any


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory is full: Python's, CUDA's, or torch's own allocator on CPU."""
    if isinstance(error, MemoryError):
        return True
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # The CPU allocator raises a plain RuntimeError; only its text tells it from others.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Give back what torch holds of the device and does not use. Call it outside the `except`: the traceback keeps
    the failed pass alive."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
