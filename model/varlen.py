"""torch's attention over sequences of any length, where it works: half precision, a GPU of capability 8.0 or newer, and
a head size that is a multiple of 8 up to 256."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

HEAD_SIZE_MAX = 256
_log = logging.getLogger(__name__)
Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Any]
"""Q, K and V [T, heads, size], cumulative lengths of queries and of keys int32 [S + 1], the longest of each: what is
attended to [T, heads, size]. Given by position only, as the names differ between versions of torch."""


def usable_varlen(heads: int, size: int, longest: int, device: torch.device, dtype: torch.dtype) -> Varlen | None:
    """It, tried once with heads of this size on this device; None where it does not work. Raises
    torch.OutOfMemoryError."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or size % 8 or size > HEAD_SIZE_MAX:
        return None
    varlen = find_varlen() if torch.cuda.get_device_capability(device) >= (8, 0) else None
    if varlen is None:
        return None
    try:
        with torch.inference_mode(), torch.cuda.device(device):
            q, k, v = torch.zeros(3, 3, heads, size, dtype=dtype, device=device).unbind(1)
            cumulative = torch.tensor([0, 1, 3, 3], dtype=torch.int32, device=device)
            varlen(q, k, v, cumulative, cumulative, longest, longest)
            torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but none that says what torch can do
    except RuntimeError as error:  # a torch that was built without it
        _log.warning("attention is computed in groups of one length: torch's own for any lengths fails: %s", error)
        return None
    return varlen


@cache
def varlen_for(heads: int, size: int, device: torch.device, dtype: torch.dtype) -> Varlen | None:
    """``usable_varlen``, asked once: for training, where each layer asks in each step."""
    return usable_varlen(heads, size, 3, device, dtype)


def find_varlen() -> Varlen | None:
    """The function itself; None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # lazy: it imports torch's compiler
    except ImportError:
        return None
    return varlen_attn
