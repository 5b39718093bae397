"""Which tokens to blank out: how long the spans are and where they lie. Pure functions of a numpy Generator.

The rules are those of GLM's public pretraining code for token spans (Du et al. 2022, section 2.1: lengths
from Poisson(3) until 15 % of the tokens are covered), without its rejection loops: everything is drawn in
whole arrays.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Spans(NamedTuple):
    """Spans of one text, left to right: span i covers tokens starts[i] .. starts[i] + lengths[i] - 1."""

    starts: Ints
    lengths: Ints


@functools.cache
def span_length_probabilities(mean: float = 3.0, max_length: int = 39) -> NDArray[np.float64]:
    """P(length = 1 .. max_length): Poisson(mean) without 0, cut at max_length and renormalised; sums to 1.

    >>> probabilities = span_length_probabilities()
    >>> len(probabilities), round(float(probabilities @ np.arange(1, 40)), 3)
    (39, 3.157)
    """
    if not mean > 0 or max_length < 1:
        raise ValueError(f"span lengths: expected mean > 0 and max_length >= 1, got {mean} and {max_length}")
    log_weights = [k * math.log(mean) - math.lgamma(k + 1) for k in range(1, max_length + 1)]
    weights = np.exp(np.array(log_weights) - max(log_weights))
    probabilities: NDArray[np.float64] = weights / weights.sum()
    probabilities.flags.writeable = False  # cached: one caller must not change it for the next
    return probabilities


@functools.cache
def _span_length_cdf(mean: float, max_length: int) -> NDArray[np.float64]:
    cdf = np.cumsum(span_length_probabilities(mean, max_length))
    cdf[-1] = 1.0  # whatever the rounding, a draw below 1 finds a length
    return cdf


def sample_span_lengths(
    rng: np.random.Generator, total: int, *, mean: float = 3.0, max_length: int = 39
) -> Ints:
    """Draws lengths until their sum reaches `total`; the last may overshoot it. None at all if total <= 0."""
    # A length is at least 1, so `total` draws always suffice: one vector instead of a loop.
    draws = rng.random(max(total, 0))
    lengths: Ints = _span_length_cdf(mean, max_length).searchsorted(draws, side="right") + 1
    enough = int(lengths.cumsum().searchsorted(total)) + 1
    return lengths[:enough]


def place_spans(rng: np.random.Generator, lengths: Ints, room: int) -> Ints | None:
    """Starts of spans of these lengths, in this order, in 0 .. room - 1, with free tokens between them.

    With n spans and m = room - sum(lengths) - (n - 1) tokens to spare: n draws from {0 .. m}, sorted, are the
    free tokens before each span, on top of what the spans before it and their single gaps take. None if the
    spans do not fit (m < 0).

    >>> place_spans(np.random.default_rng(0), np.array([2, 3]), 6)  # the one way to lay them
    array([0, 3])
    """
    count = len(lengths)
    if count == 0:
        return np.empty(0, dtype=np.int64)
    spare = room - int(lengths.sum()) - (count - 1)
    if spare < 0:
        return None
    starts = rng.integers(0, spare, count, endpoint=True)
    starts.sort()
    starts[1:] += (lengths[:-1] + 1).cumsum()
    return starts


def document_segments(tokens: Ints, *, eos: int, cls: int) -> list[tuple[int, int]]:
    """(offset, length) of what spans may cover: the documents, without their leading [CLS] and closing eos.

    A document that no eos closes, at the end or before a [CLS], was cut; its final token stays visible, so
    that a span never ends on the cut. Documents with nothing left are not listed.

    >>> document_segments(np.array([1, 11, 12, 0, 1, 13, 14, 15]), eos=0, cls=1)
    [(1, 2), (5, 2)]
    """
    segments = []
    begin = 0
    closing = tokens == eos
    closing[:-1] |= tokens[1:] == cls
    for end in [*closing.nonzero()[0].tolist(), len(tokens) - 1]:
        offset = begin + 1 if begin < len(tokens) and tokens[begin] == cls else begin
        if end > offset:
            segments.append((offset, end - offset))
        begin = end + 1
    return segments


def sample_document_spans(
    rng: np.random.Generator, lengths: Ints, segments: list[tuple[int, int]], *, ratio: float = 0.15
) -> Spans | None:
    """Spreads spans of the given lengths over the documents and places them; None if they do not all fit.

    The lengths are shuffled. From the shortest document to the longest, each takes lengths from the front
    while their sum stays within int(ratio * its length); the longest takes whatever is left. So a text of
    many small documents loses about the same part of each, and the whole text exactly what was drawn.
    """
    lengths = rng.permutation(lengths)
    if len(segments) == 1:
        [(offset, room)] = segments
        starts = place_spans(rng, lengths, room)
        return None if starts is None else Spans(starts + offset, lengths)
    covered = np.concatenate(([0], np.cumsum(lengths)))  # covered[i]: sum of the first i
    documents = sorted(segments, key=lambda segment: segment[1])
    placed: list[tuple[Ints, Ints]] = []
    taken = 0
    for rank, (offset, room) in enumerate(documents):
        if rank == len(documents) - 1:
            end = len(lengths)
        else:
            end = int(np.searchsorted(covered, covered[taken] + int(ratio * room), side="right")) - 1
        starts = place_spans(rng, lengths[taken:end], room)
        if starts is None:
            return None
        placed.append((starts + offset, lengths[taken:end]))
        taken = end
    if taken < len(lengths):  # no document at all
        return None
    starts = np.concatenate([part for part, _ in placed]) if placed else np.empty(0, dtype=np.int64)
    order = np.argsort(starts)
    return Spans(starts[order], lengths[order])
