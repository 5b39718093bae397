"""Which documents are never trained on: a rule of their bytes alone, so equal ones share a side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from .bits import Flags

# With fewer held-out documents than this to expect, chance decides how much is held out.
_FEW = 8


def too_few(documents: int, part: float) -> bool:
    """Whether so many documents are too few to share out, and are to be cut into pieces first.

    ValueError unless the part is between 0 and 1.
    """
    if not 0 < part < 1:
        raise ValueError(f"held_out: expected a number between 0 and 1, got {part}")
    return documents * part < _FEW


def hold_out(documents: Iterable[bytes], part: float) -> Flags:
    """Which of them to hold out: about this part, at least one, chosen by a hash.

    >>> hold_out([b"one", b"two", b"one", b"four"], 0.3)
    array([ True, False,  True, False])
    """
    hashes = (hashlib.blake2b(document, digest_size=8).digest() for document in documents)
    ranks = np.array([int.from_bytes(digest, "big") / 2**64 for digest in hashes])
    hidden: Flags = ranks <= max(part, ranks.min(initial=1.0))
    return hidden
