"""Block masking: hide some of what the model has written itself, and ask for the rest all the same."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..blocks import Example
from ..special import SpecialIds


def block_mask(example: Example, rng: np.random.Generator, ids: SpecialIds, probability: float) -> Example:
    """Replaces each input token of Part B by [dBLOCK] with this probability; sop and all targets stay.

    >>> example = Example(
    ...     tokens=np.array([11, 4, 9, 12, 13]),
    ...     targets=np.array([11, 4, 12, 13, 10]),
    ...     positions=np.array([[0, 1, 1, 1, 1], [0, 0, 1, 2, 3]]),
    ...     loss_mask=np.array([0, 0, 1, 1, 1], dtype=np.float32),
    ...     prefix_len=2,
    ... )
    >>> block_mask(example, np.random.default_rng(0), SpecialIds(), 1.0).tokens
    array([11, 4, 9, 7, 7])
    """
    hidden = rng.random(len(example)) < probability
    hidden[: example.prefix_len] = False
    hidden[example.tokens == ids.sop] = False
    return dataclasses.replace(example, tokens=np.where(hidden, ids.dblock, example.tokens))
