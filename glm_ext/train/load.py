"""From a run folder to a model that is ready to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from glm_ext.config import GLMConfig
from glm_ext.data.tokenizer import GLMTokenizer
from glm_ext.model import GLM
from glm_ext.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint


class LoadedModel(NamedTuple):
    """A trained model, set to evaluation, and the tokenizer it was trained with."""

    model: GLM
    tokenizer: GLMTokenizer


def load_model(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> LoadedModel:
    """Loads RUN/step-N, or the newest good checkpoint of RUN, onto a device.

    Raises:
        CheckpointError: there is none, it is damaged, or it has no tokenizer.
    """
    return model_of(*load_checkpoint(Path(path)), device=device)


def model_of(checkpoint: Checkpoint, folder: Path, *, device: torch.device | str = "cpu") -> LoadedModel:
    """The model of a checkpoint that was read from `folder`; errors as in `load_model`."""
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{folder}: the checkpoint has no tokenizer.json")
    model = GLM(GLMConfig.from_dict(dict(checkpoint.config)))
    model.load_state_dict(checkpoint.model)
    return LoadedModel(model.to(device).eval(), GLMTokenizer.load(folder))
