"""The losses of pretraining runs, side by side, as one result.

    python -m benchmarks.curves NAME=RUN [NAME=RUN ...] --out FILE

RUN is a folder of glm-ext pretrain. docs/results.md is made from FILE by benchmarks/report.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glm_ext.train.config import TrainConfig
from glm_ext.train.log import read_metrics

from .compare import conditions

HELD_OUT = "held_out_loss"


def curve(run: Path) -> dict[str, Any]:
    """What a run was, how fast it went, the loss of each step and every look at the held-out text."""
    config = TrainConfig.from_yaml(run / "config.yaml")
    rows = read_metrics(run)
    steps = [row for row in rows if "loss" in row]
    seconds, tokens, looks = 0.0, 0, []  # of training alone
    for row in rows:
        if "loss" in row:
            seconds += (row["tokens"] - tokens) / row["tokens_per_second"]
            tokens = row["tokens"]
        if HELD_OUT in row:
            losses = {name: value for name, value in row.items() if name.startswith(HELD_OUT)}
            looks.append({"step": row["step"], "seconds": round(seconds), **losses})
    return {
        "model": config.model.overrides,
        "precision": config.precision,
        "backend": config.backend,
        "steps": steps[-1]["step"],
        "tokens": tokens,
        "seconds": round(seconds),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in steps),
        "unigram": next(row["unigram_loss"] for row in rows if "unigram_loss" in row),
        "losses": [round(row["loss"], 4) for row in steps],
        "held_out": looks,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--threads", type=int, default=2, help="that the runs had")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    runs = {name: curve(Path(run)) for name, _, run in (given.partition("=") for given in options.runs)}
    report = {"conditions": conditions("curves", options.threads), "runs": runs}
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
