"""glm-ext evaluate: the metrics of a trained model on a task's examples."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glm_ext.cli.device_options import add_device_options, device_of
from glm_ext.cli.errors import UserError, user_errors
from glm_ext.cli.task_options import parse_task_arguments
from glm_ext.cli.untrained import warn_if_untrained
from glm_ext.data.special import SPECIAL_TOKENS
from glm_ext.tasks import TASKS, Task, load_task
from glm_ext.train.checkpoint import Checkpoint, load_checkpoint
from glm_ext.train.finetune_config import TaskOptions
from glm_ext.train.load import model_of
from glm_ext.train.log import for_json
from glm_ext.train.settings import command_parser

_DESCRIPTION = f"""The metrics of a trained model on a file of examples, JSON lines or CSV.
Tasks: {", ".join(TASKS)}."""


def main(arguments: Sequence[str]) -> int:
    with user_errors():
        options = _parse(arguments)
        device = device_of(options)
        checkpoint, folder = load_checkpoint(Path(options.run))
        model, tokenizer = model_of(checkpoint, folder, device=device)
        task = load_task(options.task, tokenizer, model_config=model.config, **options.options)
        _load_head(task, checkpoint, folder, device)
        examples = task.labelled_examples(Path(options.data))
        if task.mask is not None:
            warn_if_untrained(SPECIAL_TOKENS[task.mask], folder)
        begin = time.perf_counter()
        metrics = task.metrics(model, examples)
    seconds = time.perf_counter() - begin
    print(f"{task.name}: {len(examples):,} examples, {seconds:.1f} s")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.4f}")
    if options.out is not None:
        with user_errors():
            report = {
                "task": task.name,
                "data": options.data,
                "examples": len(examples),
                "metrics": for_json(metrics),
            }
            Path(options.out).write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _parse(arguments: Sequence[str]) -> Any:
    parser = command_parser("glm-ext evaluate", _DESCRIPTION)
    parser.add_argument("run", type=str, help="run folder, or one of its checkpoints")
    parser.add_argument("--task", type=str | None, default=None, help="name of the task")
    parser.add_argument("--data", type=str | None, default=None, help="file of examples")
    parser.add_argument(
        "--options", type=TaskOptions, default={}, help="of the task, as in --options.max_length 512"
    )
    parser.add_argument("--out", type=str | None, default=None, help="also write the metrics there, as JSON")
    add_device_options(parser)
    options = parse_task_arguments(parser, arguments)
    for name in ("task", "data"):
        if options[name] is None:
            raise UserError(f"--{name} is missing; see glm-ext evaluate --help")
    return options


def _load_head(task: Task, checkpoint: Checkpoint, folder: Path, device: str) -> None:
    """What the task learned besides the model lies beside the model in the checkpoint."""
    if task.module is None:
        return
    if checkpoint.head is None:
        raise UserError(f"{folder}: holds no head for {task.name}; train one: glm-ext finetune --task head")
    try:
        task.module.load_state_dict(checkpoint.head)
    except (RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{folder}: its head is not that of {task.name}: {message}") from None
    task.module.to(device)
