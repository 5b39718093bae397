"""glm-ext finetune: a pretrained model and examples of a task -> the best model by the validation file.

config.yaml  tokenizer.json  data.json  metrics.jsonl  tb/  step-N/  best/step-M/
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from glm_ext.cli.errors import UserError, user_errors
from glm_ext.cli.resume import check_new, recorded, resumed, stopped_by
from glm_ext.cli.task_options import parse_task_arguments
from glm_ext.config import GLMConfig
from glm_ext.data.files import file_sha256, write_atomically
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.model import GLM
from glm_ext.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from glm_ext.train.finetune import Finetuner, num_steps
from glm_ext.train.finetune_config import FinetuneConfig
from glm_ext.train.log import RunLog
from glm_ext.train.settings import config_parser, from_namespace
from glm_ext.train.update import Diverged

if TYPE_CHECKING:
    from glm_ext.tasks.task import Task

_DESCRIPTION = """Trains the model of a run on the examples of a task, and keeps the best checkpoint by the
task's metric on the validation file."""

RECIPES = Path(__file__).with_name("recipes")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is ready to start: all that can be wrong with its settings and files has been checked."""

    config: FinetuneConfig
    run: Path
    resume: Checkpoint | None
    tokenizer: GLMTokenizer
    model: GLM
    task: Task
    train: list[Any]
    valid: list[Any]


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        job = prepare(*parse(arguments))
    return train(job)


def parse(arguments: Sequence[str]) -> tuple[FinetuneConfig, Path, Checkpoint | None]:
    """The settings, the folder of the new run, and the checkpoint to go on from."""
    parser = config_parser(FinetuneConfig, "glm-ext finetune", _DESCRIPTION, recipes=RECIPES)
    parser.add_argument("run", type=str, nargs="?", help="the same as --source")
    parser.add_argument("--out", type=str, help="folder of the run; null: runs/TASK-<date>-<time>")
    parser.add_argument(
        "--resume",
        type=str,
        help="folder of a finetuning run to go on with, as it was set; --optim.lr may change",
    )
    options = parse_task_arguments(parser, arguments)
    given = vars(parse_task_arguments(parser, arguments, defaults=False).as_flat())
    if options.resume is None:
        options.source = options.run or options.source
        config = from_namespace(FinetuneConfig, options)
        run = Path(options.out or time.strftime(f"runs/{config.task}-%Y%m%d-%H%M%S"))
        check_new(run, "out")
        return config, run, None

    run = Path(options.resume)
    given["source"] = given.get("source", given.pop("run"))
    config, checkpoint = resumed(FinetuneConfig, run, given, may_change=["optim.lr"])
    return config, run, checkpoint


def prepare(config: FinetuneConfig, run: Path, resume: Checkpoint | None) -> Job:
    """Loads the model, the tokenizer and the examples, and makes the run folder."""
    from glm_ext.tasks import load_task

    if config.threads:
        torch.set_num_threads(config.threads)
    if resume:
        tokenizer, source = GLMTokenizer.load(run), resume
    else:
        source, folder = load_checkpoint(Path(config.source))
        if source.tokenizer is None:
            raise CheckpointError(f"{folder}: the checkpoint has no tokenizer.json")
        tokenizer = GLMTokenizer.load(folder)
    model_config = GLMConfig.from_dict(dict(source.config))
    if config.dropout is not None:
        model_config = dataclasses.replace(
            model_config, hidden_dropout=config.dropout, attention_dropout=config.dropout
        )
    torch.manual_seed(config.seed)  # for the layers of the task, if it has any, then for those of the model
    task = load_task(config.task, tokenizer, model_config=model_config, **config.options)
    files = {"train": Path(config.train), "valid": Path(config.valid)}
    examples = {
        "train": task.training_examples(files["train"], np.random.default_rng(config.seed)),
        "valid": task.labelled_examples(files["valid"]),
    }
    model = GLM(model_config)
    if not (config.from_scratch or resume):
        model.load_state_dict(source.model)
    model.to(config.device)

    run.mkdir(parents=True, exist_ok=True)
    config.to_yaml(run / "config.yaml")  # first: from here on it is a run that --resume goes on with
    description = config.options.get("description")
    if isinstance(description, str) and Path(description).is_file():  # else a name among SuperGLUE's tasks
        files["description"] = Path(description)
    check_same_files(run / "data.json", files)
    tokenizer.save(run)
    beginning = "random weights" if config.from_scratch else config.source
    print(
        f"task   {config.task}, {len(examples['train']):,} examples, {len(examples['valid']):,} to validate"
    )
    print(f"model  {beginning}, {model.num_parameters():,} parameters, {torch.get_num_threads()} threads")
    print(f"run    {run}" + (f", from step {resume.state['step']}" if resume else ""), flush=True)
    return Job(config=config, run=run, resume=resume, tokenizer=tokenizer, model=model, task=task, **examples)


def train(job: Job) -> int:
    """Trains to the end and reports, or to a signal and says how to go on."""
    config, run = job.config, job.run
    start = job.resume.state["step"] if job.resume else 0
    steps = num_steps(len(job.train), config)
    with RunLog(run, steps=steps, start=start, every=config.log_every) as log:
        finetuner = Finetuner(
            job.model,
            job.task,
            config,
            train=job.train,
            valid=job.valid,
            run=run,
            log=log,
            tokenizer=(run / "tokenizer.json").read_text(encoding="utf-8"),
            resume=job.resume,
        )
        try:
            stopped = finetuner.train()
        except Diverged as error:
            print(f"glm-ext: {error}", file=sys.stderr)
            return 1
    if stopped:
        return stopped_by(stopped, "finetune", run, finetuner.steps_taken)
    if best := finetuner.best:
        found = "  ".join(f"{name} {value:.4f}" for name, value in best.metrics.items())
        print(f"\nbest   step {best.step}: {found}")
        print(f"model  {run / 'best'}")
    return 0


def check_same_files(path: Path, files: dict[str, Path]) -> None:
    """Records in a new run what it learns from; a resumed run must find the same."""
    now = {name: file_sha256(file) for name, file in files.items()}
    before = recorded(path, {"train": "", "valid": ""})
    if before is None:
        write_atomically(path, json.dumps(now, indent=2).encode())
        return
    # Runs of earlier versions did not record their description.
    if changed := [str(files[name]) for name in now if before.get(name, now[name]) != now[name]]:
        raise UserError(f"{', '.join(changed)} changed since the run began; go on with the same files")
