"""Short sequences: a piece of a text, so that the model also meets texts much shorter than its limit."""

from __future__ import annotations

import numpy as np

from ..bits import Flags
from ..blocks import Weights
from ..spans import Ints
from ..special import SpecialIds

_MIN_LENGTH = 32


def crop(
    tokens: Ints,
    rng: np.random.Generator,
    ids: SpecialIds,
    *,
    weights: Weights | None = None,
    ends: Flags | None = None,
) -> tuple[Ints, Weights | None, Flags | None]:
    """[CLS] and a piece of the text, at a uniform place; the piece's weights (0 on the [CLS]) and ends.

    The length is uniform in 32 .. N - 1, [CLS] included (one less where the piece begins with a document). A
    text no longer than 32 stays as it is.

    >>> short, _, _ = crop(np.arange(100, 200), np.random.default_rng(0), SpecialIds())
    >>> int(short[0]) == SpecialIds().cls, 32 <= len(short) < 100
    (True, True)
    """
    if len(tokens) <= _MIN_LENGTH:
        return tokens, weights, ends
    length = int(rng.integers(_MIN_LENGTH, len(tokens)))
    begin = int(rng.integers(0, len(tokens) - length, endpoint=True))
    end = begin + length
    if tokens[begin + 1] == ids.cls:  # a document begins there: its own [CLS] is the first token
        begin += 1
    short = tokens[begin:end].copy()
    short[0] = ids.cls
    if weights is not None:
        weights = weights[begin:end].copy()
        weights[0] = 0.0
    if ends is not None:
        ends = ends[begin:end].copy()
        ends[0] = False
    return short, weights, ends
