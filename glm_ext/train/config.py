"""What one training run is made of: frozen dataclasses, checked when made, stored as config.yaml."""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from glm_ext.config import PRESETS, GLMConfig
from glm_ext.data.objectives import DocumentSettings, Mixture, standard_objectives
from glm_ext.nn import BACKENDS
from glm_ext.spelling import did_you_mean
from glm_ext.train.schedule import SCHEDULES
from glm_ext.train.settings import ConfigError, Settings, expect, expect_one_of, setting

PRECISIONS = ("float32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which GLM: a preset, and the GLMConfig fields in which the run differs from it."""

    preset: str = setting("tiny", "name of a GLMConfig preset")
    overrides: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "GLMConfig fields, as in --model.overrides.num_layers 6"}
    )

    def __post_init__(self) -> None:
        known = typing.get_type_hints(GLMConfig)
        if self.preset not in PRESETS:
            raise ConfigError(f"model.preset: expected one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name, value in self.overrides.items():
            if name not in known:
                near = did_you_mean(name, known)
                raise ConfigError(f"model.overrides: GLMConfig has no field {name!r}{near}")
            accepted = (float, int) if known[name] is float else known[name]
            expect(isinstance(value, accepted), f"model.overrides.{name}", known[name].__name__, value)

    def build(self, vocab_size: int) -> GLMConfig:
        """The GLMConfig for a tokenizer whose ids, padding rows included, are below vocab_size."""
        try:
            config = GLMConfig.preset(self.preset, **{"vocab_size": vocab_size, **self.overrides})
        except ValueError as error:
            raise ConfigError(f"model.overrides: {error}") from error
        needed = f"at least {vocab_size}, which the tokenizer needs"
        expect(config.vocab_size >= vocab_size, "model.overrides.vocab_size", needed, config.vocab_size)
        return config


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """What examples are trained on: how often each objective is drawn, relative to the others."""

    token: float = setting(1.0, "weight of short spans, 15 percent of the text")
    document: float = setting(0.0, "weight of one long span, half of the text or more")
    sentence: float = setting(0.0, "weight of whole sentences, 15 percent of the text")
    single: float = setting(0.0, "weight of one short span alone")
    per_batch: bool = setting(False, "one draw for a whole micro batch, as in the public implementation")
    infill: float = setting(0.5, "probability that text follows the span of a document example")
    short: float = setting(0.0, "probability that an example is made of a piece of its text")
    block_mask: float = setting(0.0, "probability that an input of a short span is hidden by [dBLOCK]")

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("token", "document", "sentence", "single")}
        for name, weight in weights.items():
            expect(0 <= weight < math.inf, f"data.objectives.{name}", "0 or more", weight)
        expect(any(weights.values()), "data.objectives", "a weight above 0", weights)
        for name in ("infill", "short", "block_mask"):
            value = getattr(self, name)
            expect(0 <= value <= 1, f"data.objectives.{name}", "a probability in [0, 1]", value)

    def build(self, pieces: Sequence[bytes]) -> Mixture:
        """The mixture for a tokenizer whose ids stand for these bytes."""
        objectives = standard_objectives(pieces, document=DocumentSettings(infill=self.infill))
        return Mixture(
            objectives=objectives,
            weights={name: getattr(self, name) for name in objectives},
            per_batch=self.per_batch,
            short=self.short,
            block_mask=self.block_mask,
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and how it is cut into examples."""

    path: str | None = setting(
        None, "token store of glm-ext prepare; or a file or folder of text; null: the text inside Python"
    )
    vocab_size: int = setting(4096, "size of the BPE vocabulary trained on the text; a store has its own")
    seq_length: int = setting(128, "text tokens of an example, before spans are cut out")
    held_out: float = setting(0.05, "part of the documents that is never trained on")
    packing: bool = setting(False, "batches without padding: whole examples end to end, to a token budget")
    token_budget: int | None = setting(None, "tokens of a packed micro batch; null: batch_size x seq_length")
    join_documents: bool | None = setting(
        None, "documents that share an example see each other; null: only where nothing is packed"
    )
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)

    def __post_init__(self) -> None:
        expect(self.seq_length >= 8, "data.seq_length", "at least 8", self.seq_length)
        expect(0 < self.held_out < 1, "data.held_out", "a part between 0 and 1", self.held_out)
        if self.token_budget is not None:
            expect(self.packing, "data.token_budget", "null without data.packing", self.token_budget)
            least = f"at least data.seq_length, {self.seq_length}"
            expect(self.token_budget >= self.seq_length, "data.token_budget", least, self.token_budget)

    def budget(self, batch_size: int) -> int | None:
        """Tokens of a packed micro batch; None where batches are padded."""
        return (self.token_budget or batch_size * self.seq_length) if self.packing else None

    @property
    def joins(self) -> bool:
        """Whether documents share an example."""
        return not self.packing if self.join_documents is None else self.join_documents


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning rate; the defaults are those of the public GLM recipes."""

    lr: float = setting(1e-3, "peak learning rate")
    betas: tuple[float, float] = setting((0.9, 0.98), "decay of the two moment estimates")
    eps: float = setting(1e-6, "added to the root of the second moment")
    weight_decay: float = setting(0.1, "decoupled weight decay; none on biases and LayerNorm")
    schedule: str = setting("cosine", "how the rate falls from its peak: cosine, linear or wsd")
    warmup: float = setting(0.05, "part of the steps in which the rate rises from 0 to its peak")
    decay: float = setting(0.1, "part of the steps in which wsd falls, after staying at the peak")
    min_lr_ratio: float = setting(0.05, "rate at the end of the schedule, relative to the peak")
    clip: float = setting(1.0, "largest norm of the whole gradient")

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            value = getattr(self, name)
            expect(0 < value < math.inf, f"optim.{name}", "more than 0, and finite", value)
        expect(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "optim.betas",
            "two in [0, 1)",
            self.betas,
        )
        finite = "0 or more, and finite"
        expect(0 <= self.weight_decay < math.inf, "optim.weight_decay", finite, self.weight_decay)
        expect_one_of(SCHEDULES, "optim.schedule", self.schedule)
        expect(0 <= self.warmup < 1, "optim.warmup", "a part in [0, 1)", self.warmup)
        expect(0 < self.decay <= 1, "optim.decay", "a part in (0, 1]", self.decay)
        expect(
            self.schedule != "wsd" or self.warmup + self.decay <= 1,
            "optim.decay",
            f"at most the {1 - self.warmup:g} that optim.warmup leaves",
            self.decay,
        )
        expect(0 <= self.min_lr_ratio <= 1, "optim.min_lr_ratio", "a ratio in [0, 1]", self.min_lr_ratio)
        expect(self.clip > 0, "optim.clip", "more than 0 (.inf: no clipping)", self.clip)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """All settings of a pretraining run.

    Example:
        >>> config = TrainConfig(steps=100, optim=OptimConfig(lr=3e-4))
        >>> TrainConfig.from_dict(config.to_dict()) == config
        True
        >>> TrainConfig(steps=0)
        Traceback (most recent call last):
        glm_ext.train.settings.ConfigError: steps: expected at least 1, got 0
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int = setting(400, "optimizer steps")
    batch_size: int = setting(16, "examples of a micro batch")
    accumulation: int = setting(1, "micro batches of a step")
    step_tokens: int | None = setting(
        None, "tokens of a step: as many micro batches as it takes to hold them, whatever accumulation says"
    )
    seed: int = setting(1234, "initial weights, examples and dropout follow from it")
    eval_every: int = setting(50, "steps between two looks at the held-out loss")
    eval_batches: int = setting(16, "held-out batches; always the same ones")
    save_every: int = setting(200, "steps between two checkpoints")
    keep_last: int = setting(2, "checkpoints kept; older ones are removed")
    log_every: int = setting(10, "steps between two lines where there is no terminal")
    max_skipped: int = setting(10, "non-finite steps in a row after which the run stops")
    precision: str = setting("float32", "of the arithmetic: float32, or by autocast bf16 or fp16")
    checkpoint_activations: bool = setting(
        False, "keep only the inputs of each block and compute the rest again in backward: less memory"
    )
    compile: bool = setting(False, "run the model through torch.compile")
    backend: str = setting("auto", "what the layers run on: fused kernels, eager plain torch, or auto")
    workers: int = setting(0, "processes that make batches ahead of time; they change no result")
    device: str = setting("cpu", "cpu or cuda")
    threads: int | None = setting(None, "CPU threads; null: as torch finds")

    def __post_init__(self) -> None:
        counts = (
            "steps batch_size accumulation eval_every eval_batches save_every keep_last log_every max_skipped"
        )
        for name in counts.split():
            expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("step_tokens", "threads"):
            value = getattr(self, name)
            expect(value is None or value >= 1, name, "at least 1, or null", value)
        expect(0 <= self.seed < 2**63, "seed", "a number in [0, 2**63)", self.seed)
        expect(self.workers >= 0, "workers", "0 or more", self.workers)
        expect_one_of(PRECISIONS, "precision", self.precision)
        expect_one_of(BACKENDS, "backend", self.backend)
        check_device(self.device)


def check_device(device: str) -> None:
    """Raises ConfigError unless torch can use the device."""
    expect_one_of(("cpu", "cuda"), "device", device)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected a GPU that torch can use, but it finds none; choose cpu")
