"""Checkpoints: whole, checked folders RUN/step-N, or nothing.

    model.safetensors       parameters, under the public GLM names
    config.json             GLMConfig
    tokenizer.json          tokenizer of the run, where it has one
    head.safetensors        parameters that a task adds to the model, where it does
    optimizer.safetensors   moments and step count of each parameter
    rng.safetensors         state of torch's default generator, from which dropout draws its seeds
    state.json              step and counters
    manifest.json           size and SHA-256 of each file above

A checkpoint is written into a hidden folder, flushed to the disk and renamed, so a crash at any moment leaves
the earlier ones as they were. Each read compares the files with the manifest first. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from glm_ext.data.files import file_sha256
from glm_ext.extras import require


class CheckpointError(RuntimeError):
    """There is no checkpoint that could be loaded; the message names the last good one where there is one."""


class NoCheckpoint(CheckpointError):
    """The folder holds none, as that of a run that was stopped before its first."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint holds."""

    model: Mapping[str, Tensor]
    config: Mapping[str, Any]
    tokenizer: str | None
    optimizer: Mapping[str, Tensor]
    rng: Tensor
    state: Mapping[str, Any]
    head: Mapping[str, Tensor] | None = None


# What every checkpoint has; tokenizer.json and head.safetensors are there where the run has them.
_REQUIRED = ("model.safetensors", "config.json", "optimizer.safetensors", "rng.safetensors", "state.json")


def save_checkpoint(run: Path, step: int, checkpoint: Checkpoint, *, keep_last: int) -> Path:
    """Writes RUN/step-N atomically, then removes all but the last `keep_last` checkpoints."""
    final, scratch = run / f"step-{step}", run / f".step-{step}.partial"
    for abandoned in run.glob(".step-*.partial"):  # left by a crash
        shutil.rmtree(abandoned)
    scratch.mkdir(parents=True)
    try:
        _write_files(scratch, checkpoint)
        if final.exists():  # a folder cannot be renamed over a full one
            _remove(final)
        os.replace(scratch, final)
        _flush(run)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    for old in _newest_first(run)[keep_last:]:
        _remove(old)
    return final


def load_checkpoint(path: Path) -> tuple[Checkpoint, Path]:
    """Loads a checkpoint, or the newest good one of a run folder, and says which it is.

    Args:
        path: RUN or RUN/step-N. Damaged checkpoints of a run folder are passed over with a warning; one that
            was asked for by name is refused.

    Raises:
        CheckpointError: no such folder, no checkpoint in it (NoCheckpoint), or none that is whole.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such folder")
    if _is_checkpoint(path):
        if damage := find_damage(path):
            run = path.resolve().parent
            good = next((p for p in _newest_first(run) if not find_damage(p)), None)
            advice = f"the last good checkpoint is {good}" if good else "the run has no good checkpoint"
            raise CheckpointError(f"{path}: {damage}; {advice}")
        return _read(path), path
    found = _newest_first(path)
    if not found:
        raise NoCheckpoint(f"{path}: the folder holds no checkpoint (step-N)")
    for candidate in found:
        if damage := find_damage(candidate):
            warnings.warn(f"{candidate}: {damage}; an older checkpoint is used", stacklevel=2)
        else:
            return _read(candidate), candidate
    raise CheckpointError(f"{path}: none of its {len(found)} checkpoints is whole")


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file is there with its size and its SHA-256."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        if missing := [name for name in _REQUIRED if name not in manifest]:
            return f"manifest.json does not list {', '.join(missing)}"
        for name, wanted in manifest.items():
            size = (path / name).stat().st_size
            if size != wanted["size"]:
                return f"{name} has {size} bytes, expected {wanted['size']}"
            if file_sha256(path / name) != wanted["sha256"]:
                return f"{name} was altered (its SHA-256 differs from the manifest's)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, KeyError, AttributeError):
        return "manifest.json is unreadable"
    return None


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    safetensors = require("safetensors.torch", extra="train")

    def write_tensors(name: str, tensors: Mapping[str, Tensor]) -> None:
        safetensors.save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / name
        )

    def write_text(name: str, text: str) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    write_tensors("model.safetensors", checkpoint.model)
    write_tensors("optimizer.safetensors", checkpoint.optimizer)
    write_tensors("rng.safetensors", {"torch": checkpoint.rng})
    if checkpoint.head is not None:
        write_tensors("head.safetensors", checkpoint.head)
    write_text("config.json", json.dumps(checkpoint.config, indent=2))
    write_text("state.json", json.dumps(checkpoint.state, indent=2))
    if checkpoint.tokenizer is not None:
        write_text("tokenizer.json", checkpoint.tokenizer)
    manifest = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }
    write_text("manifest.json", json.dumps(manifest, indent=2))
    for path in [*folder.iterdir(), folder]:
        _flush(path)


def _read(folder: Path) -> Checkpoint:
    load_file = require("safetensors.torch", extra="train").load_file
    tokenizer, head = folder / "tokenizer.json", folder / "head.safetensors"
    return Checkpoint(
        model=load_file(folder / "model.safetensors"),
        config=json.loads((folder / "config.json").read_text(encoding="utf-8")),
        tokenizer=tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None,
        optimizer=load_file(folder / "optimizer.safetensors"),
        rng=load_file(folder / "rng.safetensors")["torch"],
        state=json.loads((folder / "state.json").read_text(encoding="utf-8")),
        head=load_file(head) if head.exists() else None,
    )


def _is_checkpoint(path: Path) -> bool:
    """Whether it is a RUN/step-N. A run may be called so too: it has settings, or checkpoints of its own."""
    named = re.fullmatch(r"step-\d+", path.resolve().name)
    return named is not None and not (path / "config.yaml").exists() and not _newest_first(path)


def _newest_first(run: Path) -> list[Path]:
    numbered = [(int(p.name[5:]), p) for p in run.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return [path for _, path in sorted(numbered, reverse=True)]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Takes the folder out of sight in one move; a crash while it is emptied leaves no half checkpoint."""
    hidden = folder.with_name(f".{folder.name}.old.partial")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(folder, hidden)
    shutil.rmtree(hidden)
