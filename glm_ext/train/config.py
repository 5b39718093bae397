"""What one training run is made of: frozen dataclasses, checked when made, stored as config.yaml.

A setting is declared once, with its default and its help. YAML keys and command-line options are both read
off the declarations, so `--optim.lr 1e-3`, `optim: {lr: 1e-3}` and `OptimConfig(lr=1e-3)` are the same thing.
"""

from __future__ import annotations

import difflib
import re
import typing
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glm_ext.config import PRESETS, GLMConfig
from glm_ext.data.objectives import DocumentSettings, Mixture, standard_objectives
from glm_ext.train.extras import require

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


class ConfigError(ValueError):
    """A setting that the run cannot have; the message says what was expected and what came."""


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _expect(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which GLM: a preset, and the GLMConfig fields in which the run differs from it."""

    preset: str = _setting("tiny", "name of a GLMConfig preset")
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
            _expect(isinstance(value, accepted), f"model.overrides.{name}", known[name].__name__, value)

    def build(self, vocab_size: int) -> GLMConfig:
        """The GLMConfig for a tokenizer whose ids, padding rows included, are below vocab_size."""
        try:
            config = GLMConfig.preset(self.preset, **{"vocab_size": vocab_size, **self.overrides})
        except ValueError as error:
            raise ConfigError(f"model.overrides: {error}") from error
        needed = f"at least {vocab_size}, which the tokenizer needs"
        _expect(config.vocab_size >= vocab_size, "model.overrides.vocab_size", needed, config.vocab_size)
        return config


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """What examples are trained on: how often each objective is drawn, relative to the others."""

    token: float = _setting(1.0, "weight of short spans, 15 percent of the text")
    document: float = _setting(0.0, "weight of one long span, half of the text or more")
    sentence: float = _setting(0.0, "weight of whole sentences, 15 percent of the text")
    single: float = _setting(0.0, "weight of one short span alone")
    per_batch: bool = _setting(False, "one draw for a whole micro batch, as in the public implementation")
    infill: float = _setting(0.5, "probability that text follows the span of a document example")
    short: float = _setting(0.0, "probability that an example is made of a piece of its text")
    block_mask: float = _setting(0.0, "probability that an input of a short span is hidden by [dBLOCK]")

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("token", "document", "sentence", "single")}
        for name, weight in weights.items():
            _expect(0 <= weight < float("inf"), f"data.objectives.{name}", "0 or more", weight)
        _expect(any(weights.values()), "data.objectives", "a weight above 0", weights)
        for name in ("infill", "short", "block_mask"):
            value = getattr(self, name)
            _expect(0 <= value <= 1, f"data.objectives.{name}", "a probability in [0, 1]", value)

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

    path: str | None = _setting(
        None, "token store of glm-ext prepare; or a file or folder of text; null: the text inside Python"
    )
    vocab_size: int = _setting(4096, "size of the BPE vocabulary trained on the text; a store has its own")
    seq_length: int = _setting(128, "text tokens of an example, before spans are cut out")
    held_out: float = _setting(0.05, "part of the documents that is never trained on")
    packing: bool = _setting(False, "batches without padding: whole examples end to end, to a token budget")
    token_budget: int | None = _setting(None, "tokens of a packed micro batch; null: batch_size x seq_length")
    join_documents: bool | None = _setting(
        None, "documents that share an example see each other; null: only where nothing is packed"
    )
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)

    def __post_init__(self) -> None:
        _expect(self.seq_length >= 8, "data.seq_length", "at least 8", self.seq_length)
        _expect(0 < self.held_out < 1, "data.held_out", "a part between 0 and 1", self.held_out)
        if self.token_budget is not None:
            _expect(self.packing, "data.token_budget", "null without data.packing", self.token_budget)
            least = f"at least data.seq_length, {self.seq_length}"
            _expect(self.token_budget >= self.seq_length, "data.token_budget", least, self.token_budget)

    def budget(self, batch_size: int) -> int | None:
        """Tokens of a packed micro batch; None where batches are padded."""
        return (self.token_budget or batch_size * self.seq_length) if self.packing else None

    @property
    def joins(self) -> bool:
        """Whether documents share an example."""
        return not self.packing if self.join_documents is None else self.join_documents


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warmup and cosine decay; the defaults are those of the public GLM recipes."""

    lr: float = _setting(1e-3, "peak learning rate")
    betas: tuple[float, float] = _setting((0.9, 0.98), "decay of the two moment estimates")
    eps: float = _setting(1e-6, "added to the root of the second moment")
    weight_decay: float = _setting(0.1, "decoupled weight decay; none on biases and LayerNorm")
    warmup: float = _setting(0.05, "part of the steps in which the rate rises from 0 to its peak")
    min_lr_ratio: float = _setting(0.05, "rate at the end of the cosine, relative to the peak")
    clip: float = _setting(1.0, "largest norm of the whole gradient")

    def __post_init__(self) -> None:
        _expect(self.lr > 0, "optim.lr", "more than 0", self.lr)
        _expect(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "optim.betas",
            "two in [0, 1)",
            self.betas,
        )
        _expect(self.eps > 0, "optim.eps", "more than 0", self.eps)
        _expect(self.weight_decay >= 0, "optim.weight_decay", "0 or more", self.weight_decay)
        _expect(0 <= self.warmup < 1, "optim.warmup", "a part in [0, 1)", self.warmup)
        _expect(0 <= self.min_lr_ratio <= 1, "optim.min_lr_ratio", "a ratio in [0, 1]", self.min_lr_ratio)
        _expect(self.clip > 0, "optim.clip", "more than 0 (.inf: no clipping)", self.clip)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a pretraining run.

    Example:
        >>> config = TrainConfig(steps=100, optim=OptimConfig(lr=3e-4))
        >>> TrainConfig.from_dict(config.to_dict()) == config
        True
        >>> TrainConfig(steps=0)
        Traceback (most recent call last):
        glm_ext.train.config.ConfigError: steps: expected at least 1, got 0
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int = _setting(400, "optimizer steps")
    batch_size: int = _setting(16, "examples of a micro batch")
    accumulation: int = _setting(1, "micro batches of a step")
    seed: int = _setting(1234, "initial weights, examples and dropout follow from it")
    eval_every: int = _setting(50, "steps between two looks at the held-out loss")
    eval_batches: int = _setting(16, "held-out batches; always the same ones")
    save_every: int = _setting(200, "steps between two checkpoints")
    keep_last: int = _setting(2, "checkpoints kept; older ones are removed")
    log_every: int = _setting(10, "steps between two lines where there is no terminal")
    max_skipped: int = _setting(10, "non-finite steps in a row after which the run stops")
    device: str = _setting("cpu", "cpu or cuda")
    threads: int | None = _setting(None, "CPU threads; null: as torch finds")

    def __post_init__(self) -> None:
        counts = (
            "steps batch_size accumulation eval_every eval_batches save_every keep_last log_every max_skipped"
        )
        for name in counts.split():
            _expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _expect(0 <= self.seed < 2**63, "seed", "a number in [0, 2**63)", self.seed)
        _expect(self.threads is None or self.threads >= 1, "threads", "at least 1, or null", self.threads)
        _expect(self.device in ("cpu", "cuda"), "device", "cpu or cuda", self.device)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: expected a GPU that torch can use, but it finds none; choose cpu")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of to_dict; a missing key takes its default, an unknown one is refused."""
        parser = config_parser()
        with config_errors(setting_names()):
            return from_namespace(parser.parse_object(dict(values)))

    def to_yaml(self, path: Path) -> None:
        parser = config_parser()
        path.write_text(parser.dump(parser.parse_object(self.to_dict())), encoding="utf-8")

    @classmethod
    def from_yaml(cls, path: Path) -> TrainConfig:
        parser = config_parser()
        if not path.is_file():
            raise ConfigError(f"{path}: there is no such configuration file")
        with config_errors(setting_names()):
            return from_namespace(parser.parse_path(str(path)))


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, Field[Any]]]:
    """(dotted key, type, declaration) of each setting."""
    hints = typing.get_type_hints(cls)
    for declared in fields(cls):
        if is_dataclass(hints[declared.name]):
            yield from _leaves(hints[declared.name], f"{prefix}{declared.name}.")
        else:
            yield prefix + declared.name, hints[declared.name], declared


def setting_names() -> list[str]:
    return [key for key, _, _ in _leaves(TrainConfig)]


def config_parser(prog: str = "glm-ext pretrain", description: str = "") -> ArgumentParser:
    """A parser with one option per setting; it reads YAML files by the same declarations."""
    jsonargparse = require("jsonargparse", extra="train")
    parser: ArgumentParser = jsonargparse.ArgumentParser(
        prog=prog, description=description, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    for key, hint, declared in _leaves(TrainConfig):
        default = declared.default_factory() if callable(declared.default_factory) else declared.default
        parser.add_argument(f"--{key}", type=hint, default=default, help=declared.metadata["help"])
    return parser


def from_namespace(namespace: Namespace) -> TrainConfig:
    """The TrainConfig in what config_parser() parsed; other options in it are left out."""

    def build(cls: Any, values: dict[str, Any]) -> Any:
        hints = typing.get_type_hints(cls)
        made = {}
        for declared in fields(cls):
            value, hint = values[declared.name], hints[declared.name]
            made[declared.name] = build(hint, value) if is_dataclass(hint) else value
        return cls(**made)

    config: TrainConfig = build(TrainConfig, namespace.as_dict())
    return config


_UNKNOWN_KEY = re.compile(
    r"unrecognized arguments: --(?P<arg>[\w.-]+)|Option '(?P<key>[^']+)' is not accepted"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<inner>[^']+)'"
)


@contextmanager
def config_errors(known: Sequence[str]) -> Iterator[None]:
    """Turns what jsonargparse raises into one line, with the nearest existing key for a misspelt one."""
    try:
        yield
    except ConfigError:
        raise
    except (ArgumentError, TypeError, KeyError, ValueError) as error:  # all that jsonargparse raises
        if found := _UNKNOWN_KEY.search(str(error)):
            key = found["arg"] or found["key"] or f"{found['group']}.{found['inner']}"
            raise ConfigError(f"there is no setting {key!r}{did_you_mean(key, known)}") from None
        raise ConfigError(" ".join(str(error).replace("Parser key ", "").split())) from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' with the nearest known word, by the whole or by the part after the last dot."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1) or [
        name
        for last in difflib.get_close_matches(word.split(".")[-1], [k.split(".")[-1] for k in known], n=1)
        for name in known
        if name.split(".")[-1] == last
    ]
    return f"; did you mean {near[0]!r}?" if near else ""
