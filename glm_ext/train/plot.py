"""The loss curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from glm_ext.extras import require
from glm_ext.train.log import read_metrics

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_TRAIN, _HELD_OUT = "#2f6fdb", "#e8590c"


def plot_loss(run: Path) -> Path:
    """Draws RUN/loss.png from RUN/metrics.jsonl: training and held-out loss, and the unigram loss to beat."""
    matplotlib = require("matplotlib", extra="train")
    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    rows = read_metrics(run)
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    held_out = [(row["step"], row["held_out_loss"]) for row in rows if row.get("held_out_loss") is not None]
    unigram = next((row["unigram_loss"] for row in rows if "unigram_loss" in row), None)

    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _MUTED,
    }
    style |= {"xtick.color": _MUTED, "ytick.color": _MUTED, "axes.edgecolor": _GRID}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        ends: list[tuple[float, str, str]] = []  # (height, text, colour) of the labels right of the curves
        if train:
            steps, losses = zip(*train, strict=True)
            smooth = smoothed(losses)
            axes.plot(steps, losses, color=_TRAIN, alpha=0.22, linewidth=0.9)
            axes.plot(steps, smooth, color=_TRAIN, linewidth=1.8, solid_capstyle="round")
            ends.append((smooth[-1], f"training {smooth[-1]:.2f}", _TRAIN))
        if held_out:
            steps, losses = zip(*held_out, strict=True)
            axes.plot(
                steps, losses, color=_HELD_OUT, linewidth=1.8, marker="o", markersize=3.5, clip_on=False
            )
            ends.append((losses[-1], f"held-out {losses[-1]:.2f}", _HELD_OUT))
        if unigram is not None:
            axes.axhline(unigram, color=_MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            ends.append((unigram, f"unigram {unigram:.2f}", _MUTED))
        axes.set_xlim(left=0, right=max((row["step"] for row in rows), default=1))
        apart = 0.055 * (axes.get_ylim()[1] - axes.get_ylim()[0])
        for height, (_, text, colour) in zip(spread([e[0] for e in ends], apart), ends, strict=True):
            axes.annotate(
                text,
                (1.015, height),
                xycoords=("axes fraction", "data"),
                color=colour,
                va="center",
                weight="bold",
            )
        axes.set_xlabel("step")
        axes.set_title("Loss, nats per target token", loc="left", fontsize=11, fontweight="bold", pad=12)
        path = run / "loss.png"
        figure.savefig(path)
        pyplot.close(figure)
    return path


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """The heights, moved upwards where needed so that no two are closer than `apart`.

    Example:
        >>> spread([2.0, 1.0, 1.25], 0.5)
        [2.0, 1.0, 1.5]
    """
    placed = list(heights)
    order = sorted(range(len(placed)), key=placed.__getitem__)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + apart)
    return placed


def smoothed(values: Sequence[float], half_life: float = 6) -> list[float]:
    """Mean of each value and its neighbours on both sides, with weights that halve every `half_life` steps.

    Weighing both sides alike keeps the smooth curve from lagging behind the loss.

    Example:
        >>> smoothed([2.0, 2.0, 2.0])
        [2.0, 2.0, 2.0]
    """
    keep = 0.5 ** (1 / half_life)

    def decayed(series: Sequence[float]) -> list[float]:
        sums, total = [], 0.0
        for value in series:
            total = keep * total + value
            sums.append(total)
        return sums

    ones = [1.0] * len(values)
    past, past_weight = decayed(values), decayed(ones)
    future = decayed(values[::-1])[::-1]
    future_weight = past_weight[::-1]
    return [
        (p + f - v) / (pw + fw - 1)  # the value itself is in both sums
        for p, f, v, pw, fw in zip(past, future, values, past_weight, future_weight, strict=True)
    ]
