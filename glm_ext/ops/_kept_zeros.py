"""Zeros for the gradient of a large table, whose memory is kept from one backward to the next.

A batch looks up few rows of a vocabulary: to fill the others takes about as long as all sums, and to get as
much memory from the system, which glibc asks anew for every block of more than 32 MB, longer than to fill it.
So the last large block that was freed is kept, that one alone.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

KEPT_BYTES = 2**25  # from here on

_Block = np.ndarray[tuple[int], np.dtype[np.uint8]]
_kept: list[_Block] = []  # at most one


def zeros(bytes_: int) -> Tensor:
    """A new uint8 tensor [bytes_] on the CPU."""
    if bytes_ < KEPT_BYTES:
        return torch.from_numpy(np.zeros(bytes_, dtype=np.uint8))
    block = _take(bytes_)
    if block is None:
        block = np.zeros(bytes_, dtype=np.uint8)  # fresh from the system: zero already
    else:
        torch.from_numpy(block).zero_()
    lent = block[:]  # lives as long as the tensor's storage
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
