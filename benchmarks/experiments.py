"""Tables and pictures of docs/results.md, from what benchmarks.curves and benchmarks.few_shot wrote."""

from __future__ import annotations

import statistics
from typing import Any

from .curves import HELD_OUT
from .result_file import Report, small_print

LOOKS = 8  # rows of a table of curves


def curves_table(report: Report) -> str:
    """Held-out loss in all and by objective; runs of the same steps stand side by side."""
    runs = report["runs"]
    first, *_ = runs.values()
    names = [name for name in first["held_out"][0] if name.startswith(HELD_OUT)]
    steps = [look["step"] for look in first["held_out"]]
    shown = steps[:: -(-len(steps) // LOOKS)][:-1] + steps[-1:] if len(steps) > LOOKS else steps
    columns = [f"{title(name)}{f', {run}' if len(runs) > 1 else ''}" for name in names for run in runs]
    lines = [f"| step | {' | '.join(columns)} |", f"| ---{' | ---' * len(columns)} |"]
    for step in shown:
        looks = [next(look for look in run["held_out"] if look["step"] == step) for run in runs.values()]
        values = [f"{look[name]:.3f}" for name in names for look in looks]
        lines.append(f"| {step} | {' | '.join(values)} |")
    notes = [speed(name, run) for name, run in runs.items()]
    if len(runs) == 2:
        apart = max(abs(x - y) for x, y in zip(*(run["losses"] for run in runs.values()), strict=True))
        notes.append(f"The losses of a training step differ by {apart:.1g} at most.\n")
    return "\n".join([*lines, "", *notes, small_print(report), ""])


def title(name: str) -> str:
    return name.removeprefix(HELD_OUT).removeprefix("/") or "held out"


def speed(name: str, run: dict[str, Any]) -> str:
    minutes = run["seconds"] / 60
    return (
        f"{name}: {run['tokens'] / 1e6:.1f} M tokens in {run['steps']} steps, {minutes:.0f} min of training, "
        f"{run['tokens_per_second']:,.0f} tokens/s in the median step, {run['precision']}.\n"
    )


def few_shot_table(report: Report) -> str:
    """Accuracy by number of examples and form: mean and sample deviation over the seeds."""
    rows = report["few_shot"]
    forms = list(dict.fromkeys(row["form"] for row in rows))
    lines = [f"| of each label | {' | '.join(forms)} |", f"| ---{' | ---' * len(forms)} |"]
    found = {form: scores(rows, form) for form in forms}
    for per_class in sorted({row["per_class"] for row in rows}):
        cells = [
            "{:.1f} ± {:.1f}".format(*of_form[per_class]) if per_class in of_form else ""
            for of_form in found.values()
        ]
        lines.append(f"| {per_class} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", small_print(report), ""])


def scores(rows: list[dict[str, Any]], form: str) -> dict[int, tuple[float, float]]:
    """Mean and sample deviation by number of examples; one under way has not come to all of them."""
    accuracies: dict[int, list[float]] = {}
    for row in rows:
        if row["form"] == form:
            accuracies.setdefault(row["per_class"], []).append(row["accuracy"])
    return {
        size: (statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0)
        for size, found in sorted(accuracies.items())
    }
