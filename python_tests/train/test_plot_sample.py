"""What the picture of a sample shows, against an example that is worked out by hand."""

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.patches import FancyBboxPatch

from glm_ext.data import Example
from glm_ext.train.plot_sample import plot_sample, span_colour, view_sample

from .worked_sample import (
    COUNTED,
    EOP,
    IN_SPAN,
    INPUTS,
    LABELS,
    PLACES,
    SEES,
    SOP,
    SPANS,
    TARGETS,
    TEXT,
    TEXT_SPANS,
    worked_view,
)

SIZE, PREFIX = len(INPUTS), INPUTS.index("‹sop›")


@pytest.fixture(scope="module")
def axes(tmp_path_factory):
    """What the picture of the worked example is drawn of."""
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyplot, "close", figures.append)
        path = plot_sample(worked_view(), tmp_path_factory.mktemp("picture") / "sample.png", "A title")
    assert path.read_bytes().startswith(b"\x89PNG")
    [figure] = figures
    pyplot.close(figure)
    return figure.axes[0]


def place(text):
    """Where it stands, in cells of the grid from its upper left corner: x, y."""
    return tuple(round(float(coordinate), 3) for coordinate in text.get_position())


def texts_at(axes, *, x=None, y=None):
    """{where along the other axis: text} of those in this column or in this line of the picture."""
    found = [(*place(text), text.get_text()) for text in axes.texts]
    if x is None:
        return {at: text for at, line, text in found if line == y}
    return {at: text for column, at, text in found if column == x}


def cells(axes):
    """[row][column] -> colour in the grid."""
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    grid = [[None] * SIZE for _ in range(SIZE)]
    for box in boxes:
        column, row = int(np.floor(box.get_x())), int(np.floor(box.get_y()))
        if 0 <= column < SIZE and 0 <= row < SIZE:
            assert grid[row][column] is None
            grid[row][column] = to_hex(box.get_facecolor())
    return grid


def test_the_view_of_an_example():
    view = worked_view()
    assert (view.inputs, view.targets, view.span) == (INPUTS, TARGETS, SPANS)
    assert (view.text, view.text_span) == (TEXT, TEXT_SPANS)
    assert ["".join("■" if seen else "·" for seen in row) for row in view.sees] == SEES


def test_a_span_that_goes_on_beyond_the_text_has_no_end():
    example = Example(
        tokens=np.array([3, 0, 1, 4]),  # the [MASK] | ‹sop› old
        targets=np.array([3, 0, 4, 5]),  #           |  old  cat
        positions=np.array([[0, 1, 1, 1], [0, 0, 1, 2]]),
        loss_mask=np.array([0, 0, 1, 1], dtype=np.float32),
        prefix_len=2,
    )
    view = view_sample(example, LABELS, sop=SOP, eop=EOP)
    assert (view.text, view.text_span, view.span) == (["the", "old", "cat"], [-1, 0, 0], [-1, 0, 0, 0])


def test_both_positions_stand_below_their_column(axes):
    centres = [column + 0.5 for column in range(SIZE)]
    for caption, expected in (("place", PLACES), ("in span", IN_SPAN)):
        [(x, y)] = [place(text) for text in axes.texts if text.get_text() == caption]
        line = texts_at(axes, y=y)
        assert line.pop(x) == caption and y > SIZE
        assert line == dict(zip(centres, map(str, expected), strict=True))


def test_inputs_stand_beside_rows_and_above_columns_and_targets_in_part_b(axes):
    centres = [row + 0.5 for row in range(SIZE)]
    inputs = dict(zip(centres, INPUTS, strict=True))
    left, above = -0.3, -0.3
    assert {at: text for at, text in texts_at(axes, x=left).items() if 0 < at < SIZE} == inputs
    assert texts_at(axes, y=above) == inputs
    arrows = {at for at, text in texts_at(axes, x=SIZE + 0.35).items() if text == "›"}
    targets = texts_at(axes, x=SIZE + 1.15)
    assert targets == dict(zip(centres[PREFIX:], TARGETS[PREFIX:], strict=True)) and arrows == targets.keys()


def test_the_text_stands_above_with_its_spans_in_their_colours(axes):
    above = [text for text in axes.texts if place(text)[1] < -0.3]
    title, *words = sorted(above, key=lambda text: place(text)[::-1])
    words = [word for word in words if not word.get_text().startswith("Part ")]
    assert title.get_text() == "A title" and [word.get_text() for word in words] == TEXT
    assert [word.get_color() for word in words] == [span_colour(number) for number in TEXT_SPANS]


def test_a_label_has_the_colour_of_its_span(axes):
    for text in axes.texts:
        x, y = place(text)
        column, row = int(x), int(y)
        if 0 < x < SIZE and (y == -0.3 or y > SIZE):
            assert text.get_color() == span_colour(SPANS[column])
        if x == SIZE + 1.15:
            assert (text.get_color() == span_colour(SPANS[row])) == COUNTED[row]


def test_the_grid_shows_who_sees_whom(axes):
    colours = cells(axes)
    unseen = colours[0][SIZE - 1]
    assert ["".join("·" if colour == unseen else "■" for colour in row) for row in colours] == SEES


def test_a_row_sees_its_own_span_in_the_strongest_colour(axes):
    colours = cells(axes)

    def strength(row, column):
        return sum(255 - int(colours[row][column][begin : begin + 2], 16) for begin in (1, 3, 5))

    last_of_first, last = 8, 10  # rows of "dog" and of "cat"
    assert strength(last_of_first, 6) > strength(last_of_first, 4) and strength(last_of_first, 6) > strength(
        last, 6
    )
    assert strength(last_of_first, 4) > strength(last, 4)  # the mask of the first span
    assert strength(last, 2) > strength(last_of_first, 2)  # that of the second
