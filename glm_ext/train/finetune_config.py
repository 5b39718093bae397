"""The settings of finetuning; the defaults are the recipe of the public GLM code for SuperGLUE."""

from __future__ import annotations

from dataclasses import dataclass, field

from glm_ext.train.config import PRECISIONS, OptimConfig, check_device
from glm_ext.train.settings import Settings, expect, expect_one_of, setting

# Of Any, jsonargparse would take a text that looks like a list, as [MASK] does, for one.
TaskOptions = dict[str, bool | int | float | str | None]


def _recipe() -> OptimConfig:
    return OptimConfig(
        lr=1e-5,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.1,
        schedule="linear",
        warmup=0.1,
        min_lr_ratio=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings):
    """All settings of a finetuning run.

    Example:
        >>> config = FinetuneConfig(source="runs/base", task="boolq", train="train.jsonl", valid="val.jsonl")
        >>> config.optim.lr, config.optim.schedule
        (1e-05, 'linear')
        >>> FinetuneConfig(source="runs/base", task="boolq", train="train.jsonl")
        Traceback (most recent call last):
        glm_ext.train.settings.ConfigError: valid: expected a file of examples, got ''
    """

    source: str = setting("", "run folder, or one of its checkpoints, whose model learns the task")
    task: str = setting("", "name of the task")
    train: str = setting("", "file of examples to learn from")
    valid: str = setting("", "file of examples by which the best checkpoint is chosen")
    options: TaskOptions = field(
        default_factory=dict, metadata={"help": "of the task, as in --options.label_smoothing 0.1"}
    )
    from_scratch: bool = setting(False, "random weights, with the sizes and the tokenizer of the source")
    dropout: float | None = setting(None, "of the model; null: as it was pretrained")
    epochs: int = setting(20, "passes over the training examples")
    batch_size: int = setting(16, "examples of an optimizer step")
    micro_batch_size: int | None = setting(None, "examples computed at once; null: all of a step")
    optim: OptimConfig = field(default_factory=_recipe)
    seed: int = setting(1234, "random weights, order of the examples and dropout follow from it")
    eval_every: int | None = setting(None, "steps between two looks at the validation file; null: an epoch")
    keep_last: int = setting(2, "checkpoints to go on from that are kept; older ones are removed")
    log_every: int = setting(10, "steps between two lines where there is no terminal")
    max_skipped: int = setting(10, "non-finite steps in a row after which the run stops")
    precision: str = setting("float32", "of the arithmetic: float32, or by autocast bf16 or fp16")
    checkpoint_activations: bool = setting(
        False, "keep only the inputs of each block and compute the rest again in backward: less memory"
    )
    device: str = setting("cpu", "cpu or cuda")
    threads: int | None = setting(None, "CPU threads; null: as torch finds")

    def __post_init__(self) -> None:
        for name, expected in {
            "source": "a run folder or a checkpoint",
            "task": "the name of a task",
            "train": "a file of examples",
            "valid": "a file of examples",
        }.items():
            expect(getattr(self, name) != "", name, expected, "")
        for name in ("epochs", "batch_size", "keep_last", "log_every", "max_skipped"):
            expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("micro_batch_size", "eval_every", "threads"):
            value = getattr(self, name)
            expect(value is None or value >= 1, name, "at least 1, or null", value)
        expect(
            self.dropout is None or 0 <= self.dropout < 1, "dropout", "a probability below 1", self.dropout
        )
        expect(0 <= self.seed < 2**63, "seed", "a number in [0, 2**63)", self.seed)
        expect_one_of(PRECISIONS, "precision", self.precision)
        check_device(self.device)
