"""Memory for the gradient of a large table, kept from one backward to the next.

To get it from the system, which glibc asks anew for every block of more than 32 MB, takes longer than to
write it. So the last large block that was freed is kept, that one alone.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

KEPT_BYTES = 2**25  # from here on
ALIGNMENT = 64  # torch's own; numpy's is 16

_Block = np.ndarray[tuple[int], np.dtype[np.uint8]]
_kept: list[_Block] = []  # at most one


def empty(bytes_: int) -> Tensor:
    """A new uint8 tensor [bytes_] on the CPU, that holds anything."""
    if bytes_ < KEPT_BYTES:
        return torch.empty(bytes_, dtype=torch.uint8)
    block = _take(bytes_ + ALIGNMENT)
    if block is None:
        block = np.empty(bytes_ + ALIGNMENT, dtype=np.uint8)
    begin = -block.ctypes.data % ALIGNMENT
    lent = block[begin : begin + bytes_]  # lives as long as the tensor's storage
    weakref.finalize(lent, _keep, block).atexit = False
    return torch.from_numpy(lent)


def _take(bytes_: int) -> _Block | None:
    try:
        block = _kept.pop()
    except IndexError:  # none is free, or another thread was faster
        return None
    return block if block.nbytes == bytes_ else None


def _keep(block: _Block) -> None:
    _kept[:] = [block]
