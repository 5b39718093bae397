"""make_blocks and make_prefix: the golden examples of the public implementation, and what always holds."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from glm_ext.data import Example, make_blocks, make_prefix
from glm_ext.data.spans import Spans

EOS, CLS, MASK, SOP, EOP, GMASK, SMASK = range(7)


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def blocks(
    tokens: list[int], spans: list[tuple[int, int]], order: list[int], mask: int | np.ndarray
) -> Example:
    """Spans given as [start, end)."""
    starts = array(*(start for start, _ in spans))
    lengths = array(*(end - start for start, end in spans))
    return make_blocks(array(*tokens), Spans(starts, lengths), array(*order), mask=mask, sop=SOP, eop=EOP)


GOLDEN = {
    "token spans, the second first": (
        blocks([11, 12, 13, 14, 15, 16], [(2, 3), (4, 6)], [1, 0], MASK),
        [11, 12, 2, 14, 2, 3, 15, 16, 3, 13],
        [11, 12, 2, 14, 2, 15, 16, 4, 13, 4],
        [0, 1, 2, 3, 4, 4, 4, 4, 2, 2],
        [0, 0, 0, 0, 0, 1, 2, 3, 1, 2],
        5,
    ),
    "document, prefix form": (
        make_prefix(array(1, 11, 12, 13, 14, 15, 16, 0), 4, gmask=GMASK, sop=SOP),
        [1, 11, 12, 13, 5, 3, 14, 15, 16],
        [1, 11, 12, 13, 5, 14, 15, 16, 0],
        [0, 1, 2, 3, 4, 4, 4, 4, 4],
        [0, 0, 0, 0, 0, 1, 2, 3, 4],
        5,
    ),
    "document, infill form": (
        blocks([1, 11, 12, 13, 14, 15, 16, 0], [(2, 6)], [0], GMASK),
        [1, 11, 5, 16, 0, 3, 12, 13, 14, 15],
        [1, 11, 5, 16, 0, 12, 13, 14, 15, 4],
        [0, 1, 2, 3, 4, 2, 2, 2, 2, 2],
        [0, 0, 0, 0, 0, 1, 2, 3, 4, 5],
        5,
    ),
    "sentence, the first": (
        blocks([1, 22, 34, 23, 24, 51, 25, 26, 0], [(1, 3)], [0], SMASK),
        [1, 6, 23, 24, 51, 25, 26, 0, 3, 22, 34],
        [1, 6, 23, 24, 51, 25, 26, 0, 22, 34, 4],
        [0, 1, 2, 3, 4, 5, 6, 7, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3],
        8,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    example, tokens, targets, places, within, prefix_len = GOLDEN[name]
    assert example.tokens.tolist() == tokens
    assert example.targets.tolist() == targets
    assert example.positions.tolist() == [places, within]
    assert example.loss_mask.tolist() == [0] * prefix_len + [1] * (len(tokens) - prefix_len)
    assert example.prefix_len == prefix_len


def test_every_blank_may_have_a_mask_of_its_own_and_neighbours_may_touch() -> None:
    example = blocks([10, 11, 12, 13], [(0, 2), (2, 4)], [0, 1], array(SMASK, MASK))
    assert example.tokens.tolist() == [SMASK, MASK, SOP, 10, 11, SOP, 12, 13]
    assert example.positions[0].tolist() == [0, 1, 0, 0, 0, 1, 1, 1]


def test_no_span_leaves_the_text_alone() -> None:
    example = blocks([10, 11], [], [], MASK)
    assert example.tokens.tolist() == example.targets.tolist() == [10, 11]
    assert example.loss_mask.sum() == 0 and example.prefix_len == 2


def test_prefix_weights_reach_the_loss() -> None:
    example = make_prefix(
        array(10, 11, 12), 1, gmask=GMASK, sop=SOP, weights=np.array([0, 0, 1], dtype=np.float32)
    )
    assert example.loss_mask.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "spans, order, said",
    [
        ([(1, 1)], [0], "lengths: expected at least 1, got 0"),
        ([(0, 2), (1, 3)], [0, 1], "without overlap"),
        ([(2, 3), (0, 1)], [0, 1], "left to right"),
        ([(2, 5)], [0], "within 4 tokens"),
        ([(-1, 1)], [0], "within 4 tokens"),
        ([(0, 1), (2, 3)], [0, 0], "permutation of 0 .. 1"),
        ([(0, 1), (2, 3)], [0], "got 2, 2 and 1"),
    ],
)
def test_bad_spans_are_refused(spans: list[tuple[int, int]], order: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        blocks([10, 11, 12, 13], spans, order, MASK)


@pytest.mark.parametrize("cut", [-1, 3])
def test_a_prefix_form_needs_something_to_continue_with(cut: int) -> None:
    with pytest.raises(ValueError, match="0 <= cut < 3"):
        make_prefix(array(10, 11, 12), cut, gmask=GMASK, sop=SOP)


@st.composite
def blanked_texts(draw: st.DrawFn) -> tuple[np.ndarray, Spans, np.ndarray]:
    """A text and spans of it: any pieces of any partition of the text, neighbours included."""
    size = draw(st.integers(1, 40))
    edges = sorted(draw(st.sets(st.integers(0, size), min_size=2)))
    pieces = [piece for piece in pairwise(edges) if draw(st.booleans())]
    starts = array(*(start for start, _ in pieces))
    lengths = array(*(end - start for start, end in pieces))
    order = array(*draw(st.permutations(range(len(pieces)))))
    return np.arange(100, 100 + size), Spans(starts, lengths), order


def part_b_spans(example: Example) -> list[slice]:
    """The rows of each span of Part B: from its sop to its eop."""
    begins = np.flatnonzero(example.tokens == SOP).tolist()
    return [slice(begin, end) for begin, end in pairwise([*begins, len(example)])]


@given(blanked_texts())
def test_an_example_inverts_to_its_text(case: tuple[np.ndarray, Spans, np.ndarray]) -> None:
    text, spans, order = case
    example = make_blocks(text, spans, order, mask=MASK, sop=SOP, eop=EOP)
    contents = {
        int(example.positions[0, rows.start]): example.targets[rows] for rows in part_b_spans(example)
    }
    rebuilt: list[int] = []
    for place, token in enumerate(example.tokens[: example.prefix_len]):
        if token == MASK:
            *content, end = contents.pop(place)
            assert end == EOP
            rebuilt.extend(content)
        else:
            rebuilt.append(token)
    assert rebuilt == text.tolist() and not contents


@given(blanked_texts())
def test_positions_inputs_and_loss_obey_the_paper(case: tuple[np.ndarray, Spans, np.ndarray]) -> None:
    text, spans, order = case
    example = make_blocks(text, spans, order, mask=MASK, sop=SOP, eop=EOP)
    a = example.prefix_len
    assert len(example) == len(text) + 2 * len(order)
    assert example.positions[0, :a].tolist() == list(range(a)) and not example.positions[1, :a].any()
    assert example.loss_mask.tolist() == [0.0] * a + [1.0] * (len(example) - a)
    masks = np.flatnonzero(example.tokens[:a] == MASK)
    for span, rows in zip(order, part_b_spans(example), strict=True):
        # Nothing but the count so far is known of an unfinished span: place constant, count 1, 2, ...
        size = int(spans.lengths[span])
        assert example.positions[0, rows].tolist() == [masks[span]] * (size + 1)
        assert example.positions[1, rows].tolist() == list(range(1, size + 2))
        assert example.tokens[rows][1:].tolist() == example.targets[rows][:-1].tolist()
    assert EOP not in example.tokens


@given(blanked_texts(), st.integers(1, 5))
def test_a_row_does_not_depend_on_how_long_its_span_will_be(
    case: tuple[np.ndarray, Spans, np.ndarray], cut: int
) -> None:
    """Texts that differ only in how the last span of Part B goes on share all that its first rows can see."""
    text, spans, order = case
    assume(len(order) > 0)
    last = order[-1]
    shorter = min(cut, int(spans.lengths[last]))
    removed = np.arange(spans.starts[last] + shorter, spans.starts[last] + spans.lengths[last])
    short_lengths = spans.lengths.copy()
    short_lengths[last] = shorter
    short_starts = spans.starts - np.where(spans.starts > spans.starts[last], len(removed), 0)
    long = make_blocks(text, spans, order, mask=MASK, sop=SOP, eop=EOP)
    short_spans = Spans(short_starts, short_lengths)
    short = make_blocks(np.delete(text, removed), short_spans, order, mask=MASK, sop=SOP, eop=EOP)
    assert long.prefix_len == short.prefix_len
    assert long.tokens[: len(short)].tolist() == short.tokens.tolist()
    assert long.positions[:, : len(short)].tolist() == short.positions.tolist()
