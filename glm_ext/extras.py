"""Packages that only some commands need."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):
    """A package of an optional extra is not installed; the message says how to get it."""


def require(module: str, *, extra: str) -> Any:
    """Imports a module of an optional extra.

    Example:
        >>> require("json", extra="train").loads("[1]")
        [1]
        >>> require("missing", extra="train")
        Traceback (most recent call last):
        glm_ext.extras.MissingExtra: missing is not installed; get it with: pip install "glm_ext[train]"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f'{error.name} is not installed; get it with: pip install "glm_ext[{extra}]"', name=error.name
        ) from None
