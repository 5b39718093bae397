"""The settings of generation as options of a command."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from glm_ext.generate import GenerationConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_generation_options(parser: ArgumentParser, **defaults: Any) -> None:
    """Adds every field of GenerationConfig.

    defaults: those that differ from the field's; None where the command decides later.
    """
    types = get_type_hints(GenerationConfig)
    for setting in fields(GenerationConfig):
        default = defaults.get(setting.name, setting.default)
        kind = types[setting.name] | None if default is None else types[setting.name]
        parser.add_argument(f"--{setting.name}", type=kind, default=default, help=setting.metadata["help"])


def generation_config(options: Any, **decided: Any) -> GenerationConfig:
    """The settings that were parsed; those left None take what was decided."""
    values: dict[str, Any] = {setting.name: options[setting.name] for setting in fields(GenerationConfig)}
    undecided = {name: decided[name] for name, value in values.items() if value is None and name in decided}
    return GenerationConfig(**(values | undecided))
