"""From a text and its spans to a training example: Part A, Part B, both position rows, targets.

    text      x1 x2 x3 x4 x5 x6, spans [x3] and [x5 x6], the second first
    tokens    x1 x2 [M] x4 [M] | <sop> x5 x6 | <sop> x3
    targets                    |  x5 x6 <eop>|  x3 <eop>
    place      0  1  2  3  4   |  4  4  4    |  2  2       a whole span stands where its mask stands
    in span    0  0  0  0  0   |  1  2  3    |  1  2       and counts from 1: its length shows only in its end

This is figure 2 of Du et al. 2022, "GLM: General Language Model Pretraining with Autoregressive Blank
Infilling".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .spans import Ints, Spans

Weights = NDArray[np.float32]

_ZERO = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One unpadded example of length S; the fields mean what they mean in Batch.

    tokens, targets [S] int64, positions [2, S] int64, loss_mask [S] float32, prefix_len: length of Part A.
    """

    tokens: Ints
    targets: Ints
    positions: Ints
    loss_mask: Weights
    prefix_len: int

    def __len__(self) -> int:
        return len(self.tokens)


def make_blocks(
    tokens: Ints,
    spans: Spans,
    order: Ints,
    *,
    mask: int | Ints,
    sop: int,
    eop: int,
    weights: Weights | None = None,
) -> Example:
    """Blanks the spans out of a text and appends them as Part B.

    tokens [N]; spans: left to right, not overlapping, not empty (adjacent is allowed: the masks are then
    neighbours); order: a permutation of the spans, the order in which Part B holds them; mask: id for every
    blank, or one id a span; weights [N]: loss weights of the text's tokens (default 1), e.g. 0 on a prompt.
    The end of a span weighs what its last token does. The example has N - sum(lengths) + count tokens in Part
    A and sum(lengths) + count in Part B. ValueError if the spans break these rules.

    >>> spans = Spans(starts=np.array([2, 4]), lengths=np.array([1, 2]))
    >>> example = make_blocks(np.arange(11, 17), spans, np.array([1, 0]), mask=2, sop=3, eop=4)
    >>> example.tokens
    array([11, 12,  2, 14,  2,  3, 15, 16,  3, 13])
    >>> example.positions
    array([[0, 1, 2, 3, 4, 4, 4, 4, 2, 2],
           [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]])
    """
    starts, lengths = spans
    ends = starts + lengths
    _check_spans(tokens, starts, lengths, ends, order)
    _check_weights(tokens, weights)

    # Part A keeps the first token of each span as the place of its mask; what follows moves up by the others.
    moved = np.concatenate((_ZERO, (lengths - 1).cumsum()))
    prefix_len = len(tokens) - int(moved[-1])
    place = starts - moved[:-1]
    bounds = np.concatenate((_ZERO - 1, place, _ZERO + (prefix_len - 1)))
    kept = np.arange(prefix_len) + moved.repeat(bounds[1:] - bounds[:-1])

    # Part B: row j of it is token `within[j]` (from 0) of some span; a span of L tokens has L + 1 rows.
    rows = lengths[order] + 1
    after = rows.cumsum()
    first = after - rows
    within = np.arange(int(rows.sum())) - first.repeat(rows)
    source = within + starts[order].repeat(rows)

    total = prefix_len + len(within)
    inputs, targets = np.empty((2, total), dtype=np.int64)
    inputs[:prefix_len] = tokens[kept]
    inputs[place] = mask
    targets[:prefix_len] = inputs[:prefix_len]
    inputs[prefix_len:] = tokens[source - 1]
    inputs[prefix_len + first] = sop
    targets[prefix_len:] = tokens.take(source, mode="clip")  # past the text's end comes an eop, written next
    targets[prefix_len + after - 1] = eop

    positions = np.zeros((2, total), dtype=np.int64)
    positions[0, :prefix_len] = np.arange(prefix_len)
    positions[0, prefix_len:] = place[order].repeat(rows)
    positions[1, prefix_len:] = within + 1
    loss_mask = np.zeros(total, dtype=np.float32)
    if weights is None:
        loss_mask[prefix_len:] = 1.0
    else:
        source[after - 1] -= 1  # the end of a span weighs what its last token does
        loss_mask[prefix_len:] = weights[source]
    return Example(
        tokens=inputs, targets=targets, positions=positions, loss_mask=loss_mask, prefix_len=prefix_len
    )


def make_prefix(tokens: Ints, cut: int, *, gmask: int, sop: int, weights: Weights | None = None) -> Example:
    """The long form for text generation: Part A is tokens[:cut] and [gMASK], Part B all the rest.

    No eop is added: a text ends with its own last token (eos), which is the last target. weights [N]: loss
    weights of the text's tokens (default 1), e.g. 0 on a prompt. ValueError unless 0 <= cut < N.

    >>> example = make_prefix(np.array([1, 11, 12, 13, 0]), 2, gmask=5, sop=3)
    >>> example.tokens, example.targets
    (array([ 1, 11,  5,  3, 12, 13]), array([ 1, 11,  5, 12, 13,  0]))
    """
    if not 0 <= cut < len(tokens):
        raise ValueError(f"cut: expected 0 <= cut < {len(tokens)} (the text's length), got {cut}")
    _check_weights(tokens, weights)
    context, continuation = tokens[:cut], tokens[cut:]
    prefix_len = cut + 1
    total = len(tokens) + 1
    positions = np.zeros((2, total), dtype=np.int64)
    positions[0] = np.minimum(np.arange(total), cut)
    positions[1, prefix_len:] = np.arange(1, len(continuation) + 1)
    loss_mask = np.zeros(total, dtype=np.float32)
    loss_mask[prefix_len:] = 1.0 if weights is None else weights[cut:]
    return Example(
        tokens=np.concatenate((context, [gmask, sop], continuation[:-1])),
        targets=np.concatenate((context, [gmask], continuation)),
        positions=positions,
        loss_mask=loss_mask,
        prefix_len=prefix_len,
    )


def part_b_spans(example: Example, sop: int) -> list[slice]:
    """The rows of each span of Part B, in its order: from one sop up to the next."""
    begins = np.flatnonzero(example.tokens[example.prefix_len :] == sop) + example.prefix_len
    return [slice(begin, end) for begin, end in pairwise([*begins.tolist(), len(example)])]


def restore(example: Example, *, sop: int, eop: int) -> Ints:
    """The text that an example was made from: every span back in the place of its mask.

    >>> spans = Spans(starts=np.array([2, 4]), lengths=np.array([1, 2]))
    >>> example = make_blocks(np.arange(11, 17), spans, np.array([1, 0]), mask=2, sop=3, eop=4)
    >>> restore(example, sop=3, eop=4)
    array([11, 12, 13, 14, 15, 16])
    """
    contents = {}
    for rows in part_b_spans(example, sop):
        answers = example.targets[rows]
        contents[int(example.positions[0, rows.start])] = answers[:-1] if answers[-1] == eop else answers
    pieces = []
    begin = 0
    for place in sorted(contents):
        pieces += [example.tokens[begin:place], contents[place]]
        begin = place + 1
    return np.concatenate((*pieces, example.tokens[begin : example.prefix_len]))


def _check_weights(tokens: Ints, weights: Weights | None) -> None:
    if weights is not None and weights.shape != tokens.shape:
        raise ValueError(
            f"weights: expected one for each of the {len(tokens)} tokens, got {list(weights.shape)}"
        )


def _check_spans(tokens: Ints, starts: Ints, lengths: Ints, ends: Ints, order: Ints) -> None:
    count = len(starts)
    if len(lengths) != count or len(order) != count:
        raise ValueError(
            f"expected as many starts, lengths and places in the order, "
            f"got {count}, {len(lengths)} and {len(order)}"
        )
    if count == 0:
        return
    if lengths.min() < 1:
        raise ValueError(f"span lengths: expected at least 1, got {lengths.min()}")
    if starts[0] < 0 or ends[-1] > len(tokens) or (ends[:-1] > starts[1:]).any():
        raise ValueError(
            f"spans: expected left to right, without overlap, within {len(tokens)} tokens; "
            f"got starts {starts.tolist()}, lengths {lengths.tolist()}"
        )
    if sorted(order.tolist()) != list(range(count)):
        raise ValueError(f"order: expected a permutation of 0 .. {count - 1}, got {order.tolist()}")
