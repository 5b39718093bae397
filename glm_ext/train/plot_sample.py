"""A training example as a picture, after figure 2 of Du et al. 2022.

Both parts, who sees whom, both positions, inputs and targets. Everything is laid out in cells of the
attention grid, one a token: the picture grows with the example.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_ext.data.blocks import Example, part_b_spans
from glm_ext.extras import require

SPAN_COLOURS = ("#2f6fdb", "#e8590c", "#2b8a3e", "#9c36b5", "#0c8599", "#c2255c")
_INK, _MUTED, _LINE, _TEXT_CELL = "#1f2933", "#7b8794", "#e4e7eb", "#cbd3de"
_CELL_INCHES, _FONT_POINTS = 0.27, 8.5
_CHARACTER = 0.602 * _FONT_POINTS / 72 / _CELL_INCHES  # width of a monospaced character, in cells
_CJK_FONTS = ("Noto Sans Mono CJK SC", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "PingFang SC", "SimHei")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """An example with its words: what both the picture and the terminal show.

    inputs, targets: a label for every token; text: labels of the text it was made from, and in text_span the
    number of the span that each of them went to, -1 if none. span: the same for the rows of the example, the
    mask of a span included.
    """

    example: Example
    inputs: list[str]
    targets: list[str]
    text: list[str]
    text_span: list[int]
    span: list[int]

    @property
    def sees(self) -> NDArray[np.bool_]:
        """[S, S]: row i sees column j. Part A sees itself, Part B also what comes before."""
        columns = np.arange(len(self.example))
        return columns < np.maximum(self.example.prefix_len, columns[:, None] + 1)


def view_sample(example: Example, labels: Sequence[str], *, sop: int, eop: int) -> SampleView:
    """The view of an example; labels: the word of every token id."""
    span = np.full(len(example), -1)
    spans = part_b_spans(example, sop)
    for number, rows in enumerate(spans):
        span[rows] = number
        span[example.positions[0, rows.start]] = number
    text: list[int] = []
    text_span: list[int] = []
    for place, token in enumerate(example.tokens[: example.prefix_len]):
        number = int(span[place])
        words = [int(token)] if number < 0 else example.targets[spans[number]].tolist()
        words = words[:-1] if words[-1] == eop else words
        text += words
        text_span += [number] * len(words)
    return SampleView(
        example=example,
        inputs=[labels[token] for token in example.tokens],
        targets=[labels[token] for token in example.targets],
        text=[labels[token] for token in text],
        text_span=text_span,
        span=span.tolist(),
    )


def span_colour(number: int) -> str:
    """Colour of a span by its place in Part B; ink for a text token (-1)."""
    return _INK if number < 0 else SPAN_COLOURS[number % len(SPAN_COLOURS)]


def plot_sample(view: SampleView, path: Path, title: str) -> Path:
    """Draws the view as a PNG and returns its path."""
    matplotlib = require("matplotlib", extra="train")
    matplotlib.use("Agg")  # no display needed
    from matplotlib import font_manager, pyplot

    size = len(view.example)
    labels = max(map(_width, view.inputs)) + 1.0
    right = max(map(_width, view.targets)) + 2.1
    rows = _text_rows(view, labels + size + right)
    top = labels + 1.6 * len(rows) + 3.6
    width, height = labels + size + right, top + size + 3.0

    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans Mono", *(font for font in _CJK_FONTS if font in installed)]
    with pyplot.rc_context({"font.family": fonts, "font.size": _FONT_POINTS, "text.color": _INK}):
        figure = pyplot.figure(figsize=(width * _CELL_INCHES, height * _CELL_INCHES), dpi=150)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-labels, size + right)
        axes.set_ylim(size + 3.0, -top)  # downwards, as one reads
        axes.set_axis_off()
        _draw_text(axes, rows, -labels + 0.5, -top + 1.2, title)
        _draw_grid(axes, view)
        _draw_labels(axes, view, labels)
        drawn = io.BytesIO()
        figure.savefig(drawn)
        pyplot.close(figure)
    # Few colours are in it: a palette takes a third of the bytes.
    require("PIL.Image", extra="train").open(drawn).convert("RGB").quantize(128).save(
        path, "PNG", optimize=True
    )
    return path


def _width(label: str) -> float:
    """Width of a label in cells; Chinese characters are twice as wide."""
    return _CHARACTER * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in label)


def _tint(colour: str, strength: float) -> str:
    """The colour mixed with white."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - strength * (255 - channel)):02x}" for channel in channels)


def _chip(axes: Any, x: float, y: float, width: float, colour: str, height: float = 1.0) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.22"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, linewidth=0))


def _text_rows(view: SampleView, width: float) -> list[list[tuple[float, str, int]]]:
    """Lines of (x, label, span) that hold the text, as wide as the picture."""
    lines: list[list[tuple[float, str, int]]] = [[]]
    x = 0.0
    for label, number in zip(view.text, view.text_span, strict=True):
        if x + _width(label) + 0.5 > width - 1.0:
            lines.append([])
            x = 0.0
        lines[-1].append((x, label, number))
        x += _width(label) + 0.42
    return lines


def _draw_text(
    axes: Any, rows: Sequence[Sequence[tuple[float, str, int]]], x: float, y: float, title: str
) -> None:
    axes.text(x, y, title, va="center", fontsize=_FONT_POINTS + 2.5, weight="bold")
    for line, row in enumerate(rows, start=1):
        base = y + 0.1 + 1.6 * line
        for start, label, number in row:
            chip = _tint(span_colour(number), 0.22) if number >= 0 else "#f3f5f7"
            _chip(axes, x + start, base - 0.6, _width(label) + 0.32, chip, 1.2)
            axes.text(x + start + 0.16, base, label, va="center", color=span_colour(number))


def _draw_grid(axes: Any, view: SampleView) -> None:
    """Cells that are seen, in the colour of what is seen; a row's own span is the strongest."""
    size, a = len(view.example), view.example.prefix_len
    sees = view.sees
    for row in range(size):
        for column in range(size):
            number = view.span[column]
            if not sees[row, column]:
                colour = "#f8f9fa"
            elif number < 0:
                colour = _TEXT_CELL if row < a else _tint(_TEXT_CELL, 0.62)
            elif column < a:
                colour = _tint(span_colour(number), 0.42 if view.span[row] == number else 0.2)
            else:
                colour = _tint(span_colour(number), 0.9 if view.span[row] == number else 0.4)
            _chip(axes, column + 0.05, row + 0.05, 0.9, colour, 0.9)
    middle = (a + size) / 2
    if size - a >= 6 and a >= 3:
        axes.text(
            middle,
            a / 2,
            "Part A does not see\nPart B",
            ha="center",
            va="center",
            color=_MUTED,
            style="italic",
        )
    sop = int(view.example.tokens[a])
    for at in (rows.start for rows in part_b_spans(view.example, sop)):
        strong = at == a
        style = {"color": _INK if strong else _MUTED, "linewidth": 1.2 if strong else 0.5, "zorder": 3}
        axes.plot([0, size], [at, at], **style)
        axes.plot([at, at], [0 if strong else a, size + 2.6], **style)


def _draw_labels(axes: Any, view: SampleView, labels: float) -> None:
    example, size, a = view.example, len(view.example), view.example.prefix_len
    for place in range(size):
        colour = span_colour(view.span[place])
        weight = "bold" if view.span[place] >= 0 else "normal"
        style: dict[str, Any] = {"color": colour, "weight": weight}
        axes.text(-0.3, place + 0.5, view.inputs[place], ha="right", va="center_baseline", **style)
        axes.text(place + 0.5, -0.3, view.inputs[place], ha="center", va="bottom", rotation=90, **style)
        for line in range(2):
            number = str(example.positions[line, place])
            axes.text(place + 0.5, size + 0.85 + 1.2 * line, number, ha="center", va="center", **style)
        if place >= a:
            counted = example.loss_mask[place] > 0
            _chip(
                axes,
                size + 0.9,
                place + 0.06,
                _width(view.targets[place]) + 0.5,
                _tint(colour, 0.18) if counted else "#f3f5f7",
                0.88,
            )
            word = {"color": colour if counted else _MUTED, "va": "center_baseline"}
            axes.text(size + 0.35, place + 0.5, "›", ha="center", **word)
            axes.text(size + 1.15, place + 0.5, view.targets[place], **word)
    caption: dict[str, Any] = {"color": _MUTED, "va": "center", "fontsize": _FONT_POINTS - 0.5}
    axes.text(-0.3, size + 0.85, "place", ha="right", **caption)
    axes.text(-0.3, size + 2.05, "in span", ha="right", **caption)
    axes.text(size + 0.9, a - 0.5, "target", **caption)
    for begin, end, name, how in (
        (0, a, "Part A", "sees itself both ways"),
        (a, size, "Part B", "sees what precedes"),
    ):
        y = -labels - 0.1
        axes.plot([begin + 0.1, end - 0.1], [y, y], color=_INK, linewidth=1.2)
        long = f"{name}  {how}"
        said = long if _width(long) < end - begin else name
        axes.text((begin + end) / 2, y - 0.6, said, ha="center", va="center", weight="bold")
