"""Packages that only some of the data tools need."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str, *, extra: str, purpose: str) -> Any:
    """Imports a module of an optional extra; ImportError says what it is for and how to get it.

    >>> optional("missing", extra="data", purpose="reading minds")
    Traceback (most recent call last):
    ImportError: reading minds needs missing; install it with: pip install 'glm_ext[data]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"{purpose} needs {package}; install it with: pip install 'glm_ext[{extra}]'"
        ) from error
