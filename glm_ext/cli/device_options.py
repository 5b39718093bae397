"""Where a trained model runs, as options of the commands that use one."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

import torch

from glm_ext.train.config import TrainConfig, check_device
from glm_ext.train.settings import expect

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_device_options(parser: ArgumentParser) -> None:
    """Adds --device and --threads as the commands that train have them."""
    types = get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        if setting.name in ("device", "threads"):
            parser.add_argument(
                f"--{setting.name}",
                type=types[setting.name],
                default=setting.default,
                help=setting.metadata["help"],
            )


def device_of(options: Any) -> str:
    """The device that was asked for; sets the number of threads. ConfigError for what there is not."""
    threads = options.threads
    expect(threads is None or threads >= 1, "threads", "at least 1, or null", threads)
    check_device(options.device)
    if threads:
        torch.set_num_threads(threads)
    return str(options.device)
