"""The pictures of docs/performance.md, of speed, and of docs/results.md, of loss and accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot

from .cases import OURS
from .experiments import HELD_OUT, scores, title
from .report import gflops_of, ratio
from .result_file import Report, read

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
OUR_COLOUR, PEER_COLOURS = "#2f6fdb", ("#e8590c", "#2b8a3e", "#862e9c")
SDPA = "SDPA"

# What is drawn from which result; a machine without AVX-512 has its own files.
ATTENTION, OPS = "cpu-attention-1-avx512", "cpu-ops-2-avx512"

PRETRAINING, BACKENDS, TASKS = "pretrain-10m", "backends-10m", ("reviews", "mails")


def draw_all(folder: Path) -> None:
    draw(folder / "speed_against_length.png", speed_against_length, read(ATTENTION))
    draw(folder / "time_against_prefix.png", time_against_prefix, read(ATTENTION))
    draw(folder / "ratios.png", ratios, read(OPS))
    draw(folder / "pretraining.png", pretraining, read(PRETRAINING))
    draw(folder / "backends.png", backends, read(BACKENDS))
    draw(folder / "few_shot.png", few_shot, {task: read(f"few-shot-{task}") for task in TASKS})


def draw(path: Path, picture: Callable[[Any, Report], None], report: Report) -> None:
    style = {"font.size": 9, "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": GRID}
    style |= {"xtick.color": MUTED, "ytick.color": MUTED, "legend.frameon": False}
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=(8, 4), dpi=150, layout="constrained")
        picture(figure, report)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
        figure.savefig(path)
        pyplot.close(figure)


def attention_cases(report: Report, **shape: Any) -> list[dict[str, Any]]:
    """The float32 cases without dropout of these shapes."""
    wanted = {"dtype": "f32", "dropout": 0.0, **shape}
    return [case for case in report["cases"] if wanted.items() <= case["shape"].items()]


def speed_against_length(figure: Any, report: Report) -> None:
    """Useful GFLOP/s over S at half a prefix; the peak as the upper edge."""
    for axes, D in zip(figure.subplots(1, 2, sharey=True), (64, 128), strict=True):
        for direction, line in (("fwd", ":"), ("fwd+bwd", "-")):
            cases = attention_cases(report, D=D, prefix=0.5, direction=direction)
            # The sweep over lengths; that over prefixes has one sequence alone of S = 1024.
            at = {S: case for case in cases if case["shape"]["B"] * (S := case["shape"]["S"]) >= 2048}
            lengths = sorted(at)
            for peer, colour in ((OURS, OUR_COLOUR), (SDPA, PEER_COLOURS[0])):
                speeds = [gflops_of(at[S], peer) for S in lengths]
                axes.plot(
                    lengths,
                    speeds,
                    line,
                    color=colour,
                    marker="o",
                    markersize=3,
                    label=f"{peer}, {direction}",
                )
        peak = max(case["peak_gflops"] for case in report["cases"])
        axes.axhline(peak, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "peak of one core", (2048, peak), xytext=(0, 3), textcoords="offset points", color=MUTED
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks([128, 256, 512, 1024, 2048, 4096], ["128", "256", "512", "1k", "2k", "4k"])
        axes.set(title=f"head dim {D}", xlabel="sequence length, half of it prefix", ylim=(0, 1.1 * peak))
        axes.grid(axis="y", color=GRID)
    figure.axes[0].set_ylabel("useful GFLOP/s, 1 thread")
    figure.axes[0].legend(loc="lower right", fontsize=7, ncols=2)


def time_against_prefix(figure: Any, report: Report) -> None:
    """Time over prefix ratio r, relative to causal (r = 0), beside the work: 1 + r^2."""
    axes = figure.subplots()
    for D, colour in ((64, OUR_COLOUR), (128, PEER_COLOURS[1])):
        cases = attention_cases(report, D=D, S=1024, direction="fwd+bwd")
        at = {case["shape"]["prefix"]: case for case in cases}
        ratios_ = sorted(at)
        for peer, line in ((OURS, "-"), (SDPA, ":")):
            causal = at[0.0]["peers"][OURS]["median"]
            times = [at[r]["peers"][peer]["median"] / causal for r in ratios_]
            axes.plot(ratios_, times, line, color=colour, marker="o", markersize=3, label=f"{peer}, D = {D}")
    curve = [i / 50 for i in range(51)]
    axes.plot(
        curve,
        [1 + r * r for r in curve],
        color=MUTED,
        linewidth=1,
        linestyle=(0, (4, 3)),
        label="1 + r², the work",
    )
    axes.set(
        xlabel="prefix ratio r (0 causal, 1 full), S = 1024",
        ylabel="time fwd+bwd / ours at r = 0",
        ylim=(0, None),
    )
    axes.grid(axis="y", color=GRID)
    axes.legend(fontsize=8)


def ratios(figure: Any, report: Report) -> None:
    """How many times longer the best peer takes, by case."""
    axes = figure.subplots()
    cases = list(reversed(report["cases"]))
    names = [f"{case['op']} {case['name']}" for case in cases]
    best = [min(ratio(case, peer) for peer in case["peers"] if peer != OURS) for case in cases]
    bars = axes.barh(names, best, color=OUR_COLOUR, height=0.6)
    axes.bar_label(bars, [f"{value:.2f}x" for value in best], padding=3, fontsize=7)
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.tick_params(axis="y", labelsize=6.5, length=0)
    axes.set(xlabel="time of the fastest peer / ours", xlim=(0, 1.12 * max(best)))


def pretraining(figure: Any, report: Report) -> None:
    """Held-out loss over tokens, in all and by objective."""
    axes = figure.subplots()
    (run,) = report["runs"].values()
    looks = run["held_out"]
    tokens = [look["step"] / run["steps"] * run["tokens"] / 1e6 for look in looks]
    names = [name for name in looks[0] if name.startswith(HELD_OUT)]
    for name, colour in zip(names, (OUR_COLOUR, *PEER_COLOURS), strict=True):
        width = 2 if name == HELD_OUT else 1
        axes.plot(tokens, [look[name] for look in looks], color=colour, linewidth=width, label=title(name))
    axes.axhline(run["unigram"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="unigram")
    axes.set(xlabel="million tokens read", ylabel="held-out loss, nats a token")
    axes.grid(axis="y", color=GRID)
    axes.legend(fontsize=8)


def backends(figure: Any, report: Report) -> None:
    """Held-out loss by objective of both backends: the same over steps, ours sooner over time."""
    for axes, unit in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for run, line in zip(report["runs"], ("-", ":"), strict=True):
            looks = report["runs"][run]["held_out"]
            at = [look[unit] / (60 if unit == "seconds" else 1) for look in looks]
            names = [name for name in looks[0] if name.startswith(HELD_OUT)]
            for name, colour in zip(names, (OUR_COLOUR, *PEER_COLOURS), strict=True):
                label = f"{title(name)}, {run}"
                axes.plot(at, [look[name] for look in looks], line, color=colour, label=label)
        axes.set(xlabel="minutes of training" if unit == "seconds" else "step")
        axes.grid(axis="y", color=GRID)
    figure.axes[0].set_ylabel("held-out loss, nats a token")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", fontsize=7, ncols=4
    )


def few_shot(figure: Any, reports: dict[str, Report]) -> None:
    """Accuracy over the number of examples; bars reach one deviation of the seeds up and down."""
    for axes, (task, report) in zip(
        figure.subplots(1, len(reports), sharey=True), reports.items(), strict=True
    ):
        rows = report["few_shot"]
        sizes = sorted({row["per_class"] for row in rows})
        forms = dict.fromkeys(row["form"] for row in rows)
        for form, colour in zip(forms, (OUR_COLOUR, *PEER_COLOURS), strict=False):
            found = scores(rows, form)
            means, spreads = zip(*found.values(), strict=True)
            axes.errorbar(
                list(found), means, spreads, color=colour, marker="o", markersize=3, capsize=3, label=form
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set(title=task, xlabel="examples of each label")
        axes.grid(axis="y", color=GRID)
    figure.axes[0].set_ylabel("accuracy on the test set, %")
    figure.axes[0].legend(fontsize=8)
