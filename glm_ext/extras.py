"""Packages that only some commands need."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):
    """A package of an optional extra is not installed; the message says how to get it."""


def require(module: str, *, extra: str, purpose: str = "") -> Any:
    """Imports a module of an optional extra; the error says what it is for, if given, and how to get it.

    Example:
        >>> require("json", extra="train").loads("[1]")
        [1]
        >>> require("missing", extra="train")
        Traceback (most recent call last):
        glm_ext.extras.MissingExtra: missing is not installed; get it with: pip install "glm_ext[train]"
        >>> require("missing", extra="data", purpose="reading minds")
        Traceback (most recent call last):
        glm_ext.extras.MissingExtra: reading minds needs missing; get it with: pip install "glm_ext[data]"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).split(".")[0]
        missing = f"{purpose} needs {package}" if purpose else f"{package} is not installed"
        raise MissingExtra(
            f'{missing}; get it with: pip install "glm_ext[{extra}]"', name=error.name
        ) from None
