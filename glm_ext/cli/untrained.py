"""A warning where a blank is asked for by a mask that the run was never trained on."""

from __future__ import annotations

import warnings
from pathlib import Path

from glm_ext.train.config import TrainConfig
from glm_ext.train.settings import read_settings

# The objectives that train each mask.
_OBJECTIVES = {"[MASK]": ("token", "single"), "[sMASK]": ("sentence",), "[gMASK]": ("document",)}


def warn_if_untrained(mask: str, checkpoint: Path) -> None:
    """Warns if the checkpoint's run is a pretraining whose examples never had this mask.

    Not after finetuning, which trains the mask of its task.
    """
    run = checkpoint.resolve().parent
    try:
        # Not as a TrainConfig: a device that it was trained on and that is not here is no error.
        settings = read_settings(TrainConfig, run / "config.yaml")
    except (OSError, ValueError):  # a checkpoint does not need its run
        return
    weights = settings.get("data", {}).get("objectives")
    names = _OBJECTIVES[mask]
    if weights and not any(weights.get(name) for name in names):
        needed = " or ".join(f"data.objectives.{name}" for name in names)
        warnings.warn(f"{run}: never trained on {mask}, which needs {needed} above 0", stacklevel=2)
