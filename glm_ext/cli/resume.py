"""Going on with a run: what the two commands that train share."""

from __future__ import annotations

import functools
import json
import operator
import shlex
import signal
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from glm_ext.cli.errors import UserError
from glm_ext.train.checkpoint import Checkpoint, NoCheckpoint, load_checkpoint
from glm_ext.train.config import TrainConfig
from glm_ext.train.finetune_config import FinetuneConfig
from glm_ext.train.settings import ConfigError, Settings

_S = TypeVar("_S", bound=Settings)


def check_new(run: Path, option: str) -> None:
    """UserError if there is something where a run is to begin."""
    if (run / "config.yaml").exists():
        raise UserError(f"{run} exists; go on with it by --resume {run}, or choose another --{option}")
    if run.exists() and not (run.is_dir() and all(file.name.startswith(".") for file in run.iterdir())):
        raise UserError(f"{run} exists and is no run; choose another --{option}")


def resumed(
    cls: type[_S], run: Path, given: Mapping[str, Any], *, may_change: Collection[str] = ()
) -> tuple[_S, Checkpoint | None]:
    """The settings of a run and its last checkpoint; None where it was stopped before the first.

    given: the options on the command line, None if not. Those that may change take the place of the run's.
    """
    if others := sorted({name for name in given if given[name] is not None} - {"resume", *may_change}):
        raise UserError(
            f"--resume takes its settings from {run / 'config.yaml'}; leave out --{', --'.join(others)}"
        )
    checkpoint: Checkpoint | None = None
    folder: Path | None = None
    with suppress(NoCheckpoint):
        checkpoint, folder = load_checkpoint(run)
    if folder == run:
        raise UserError(
            f"--resume: expected the run folder {run.resolve().parent}, got one of its checkpoints"
        )
    changes = {name: given[name] for name in may_change if given.get(name) is not None}
    settings = _changed(_settings(cls, run), changes)
    if checkpoint is None:
        warnings.warn(f"{run}: stopped before its first checkpoint; begins at step 0 again", stacklevel=2)
    return settings, checkpoint


def _changed(settings: _S, changes: Mapping[str, Any]) -> _S:
    """The settings with other values, by dotted key."""
    values = settings.to_dict()
    for key, value in changes.items():
        *groups, name = key.split(".")
        functools.reduce(operator.getitem, groups, values)[name] = value
    return type(settings).from_dict(values)


def _settings(cls: type[_S], run: Path) -> _S:
    file = run / "config.yaml"
    try:
        return cls.from_yaml(file)
    except ConfigError:
        kinds: dict[str, type[Settings]] = {"pretrain": TrainConfig, "finetune": FinetuneConfig}
        for command, other in kinds.items():
            with suppress(ConfigError):
                other.from_yaml(file)
                right = shlex.join(["glm-ext", command, "--resume", str(run)])
                raise UserError(f"{run} is a run of glm-ext {command}; go on with it by {right}") from None
        raise


def recorded(path: Path, kind: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run's data.json says that it learns from; None before it is written.

    UserError if it is broken. kind: such a record, at least its entries and their types.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        record = None
    if isinstance(record, dict) and all(type(record.get(name)) is type(kind[name]) for name in kind):
        return record
    raise UserError(
        f"{path}: broken; expected {', '.join(kind)} of what the run learns from; "
        "remove it if that is still the same"
    )


def stopped_by(number: signal.Signals, command: str, run: Path, step: int) -> int:
    """Says how to go on with a run that a signal has stopped; the exit code."""
    print(f"\nstopped by {number.name}, saved at step {step}; go on with:\n")
    print(f"  {shlex.join(['glm-ext', command, '--resume', str(run)])}", flush=True)
    return 128 + number
