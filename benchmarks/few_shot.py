"""What few examples teach a pretrained model: as cloze, with a head, and as cloze from random weights.

    python -m benchmarks.few_shot RUN --description benchmarks/recipes/reviews.yaml --data FOLDER --out FILE

FOLDER has train.jsonl, of which a few examples of each label are drawn, and test.jsonl, on a fixed draw of
which the model of the last step is scored, once: nothing is chosen by it. Each result is a run of glm-ext
finetune, and FILE has it as soon as it is there, so a stopped series goes on. Other options go to every run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glm_ext.cli import main as glm_ext
from glm_ext.train.log import read_metrics

from .compare import conditions

FORMS = {
    "cloze": ["--task", "cloze"],
    "head": ["--task", "head"],
    "cloze, no pretraining": ["--task", "cloze", "--from_scratch", "true"],
}
EPOCHS = {16: 16, 64: 8, 256: 4}  # by examples of each label: fewer passes over more
BATCH = 16


def draw(lines: Sequence[str], per_class: int, seed: int) -> list[str]:
    """So many lines of each label, without replacement."""
    labels = np.array([json.loads(line)["label"] for line in lines])
    rng = np.random.default_rng(seed)
    of_each = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in (0, 1)]
    return [lines[index] for index in np.concatenate(of_each)]


def accuracy(
    source: str, form: str, folder: Path, per_class: int, seed: int, options: Sequence[str]
) -> float:
    """In percent on folder/test.jsonl, after finetuning on folder/train.jsonl."""
    epochs = EPOCHS[per_class]
    arguments = {
        "train": folder / "train.jsonl",
        "valid": folder / "test.jsonl",
        "out": folder / "run",
        "seed": seed,
        "epochs": epochs,
        "batch_size": BATCH,
        "eval_every": epochs * -(-2 * per_class // BATCH),  # at the end alone
    }
    given = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    with contextlib.redirect_stdout(io.StringIO()):
        if glm_ext(["finetune", source, *FORMS[form], *given, *options]):
            raise SystemExit(f"glm-ext finetune failed on {form}, {per_class} of each label, seed {seed}")
    found: float = read_metrics(folder / "run")[-1]["valid/accuracy"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", help="the pretrained model")
    parser.add_argument("--description", type=Path, required=True, help="of the cloze task")
    parser.add_argument("--data", type=Path, required=True, help="folder of train.jsonl and test.jsonl")
    parser.add_argument("--tests", type=int, default=180, help="of each label, drawn from test.jsonl")
    parser.add_argument("--per_class", type=int, nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write or to go on with")
    options, others = parser.parse_known_args(arguments)
    torch.set_num_threads(options.threads)
    lines = {part: (options.data / f"{part}.jsonl").read_text().splitlines() for part in ("train", "test")}
    report: dict[str, Any] = {"conditions": conditions("few_shot", options.threads), "few_shot": []}
    if options.out.exists():
        report = json.loads(options.out.read_text())
    done = {(row["form"], row["per_class"], row["seed"]) for row in report["few_shot"]}
    wanted = [(form, n, seed) for n in options.per_class for seed in options.seeds for form in FORMS]
    for form, per_class, seed in wanted:
        if (form, per_class, seed) in done:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "train.jsonl").write_text("\n".join(draw(lines["train"], per_class, seed)))
            (folder / "test.jsonl").write_text("\n".join(draw(lines["test"], options.tests, 0)))
            began = time.perf_counter()
            given = ["--options.description", str(options.description.resolve()), *others]
            found = accuracy(options.run, form, folder, per_class, seed, given)
        seconds = round(time.perf_counter() - began, 1)
        row = {"form": form, "per_class": per_class, "seed": seed, "accuracy": found, "seconds": seconds}
        report["few_shot"].append(row)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{form}, {per_class} of each label, seed {seed}: {found:.1f} % in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
