"""Memory for the gradient of a large table, kept from one step to the next.

To get it from the system, which glibc asks anew for every block of more than 32 MB, takes longer than to
write it. So the last large block that was freed is kept, that one alone.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

KEPT_BYTES = 2**25  # from here on
ALIGNMENT = 64  # torch's own; numpy's is 16

_Block = np.ndarray[tuple[int], np.dtype[np.uint8]]
_kept: list[_Block] = []  # at most one


def new_empty(like: Tensor, shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(shape)`, in memory that is kept if it is large and on a CPU."""
    dtype = dtype or like.dtype
    bytes_ = math.prod(shape) * dtype.itemsize
    if bytes_ < KEPT_BYTES or not like.is_cpu:
        return like.new_empty(shape, dtype=dtype)
    block = _take(bytes_ + ALIGNMENT)
    if block is None:
        block = np.empty(bytes_ + ALIGNMENT, dtype=np.uint8)
    begin = -block.ctypes.data % ALIGNMENT
    lent = block[begin : begin + bytes_]  # lives as long as the tensor's storage
    weakref.finalize(lent, _keep, block).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)


def _take(bytes_: int) -> _Block | None:
    try:
        block = _kept.pop()
    except IndexError:  # none is free, or another thread was faster
        return None
    return block if block.nbytes == bytes_ else None


def _keep(block: _Block) -> None:
    _kept[:] = [block]
