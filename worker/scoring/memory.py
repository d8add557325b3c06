"""What a device or the machine says when its memory is full, and making room. Imports no torch by itself."""

from __future__ import annotations

import sys
from typing import Any, Final

_SAYS: Final = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Torch's own allocator on CPU; CUDA outside of torch's allocator; cuBLAS for its workspace."""


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory is full: Python's, CUDA's, or that of torch on CPU."""
    if isinstance(error, MemoryError):
        return True
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # Not all have a type of their own; only the text tells them from others.
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _SAYS)


def free_memory() -> None:
    """Give back what torch holds of the device and does not use. Call it outside the `except`: the traceback keeps
    the failed pass alive."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
