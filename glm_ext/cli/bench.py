"""glm-ext bench: every kernel beside its peers in torch, on this machine; options as benchmarks.compare."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import glm_ext
from glm_ext.cli.errors import UserError


def main(arguments: Sequence[str]) -> int:
    root = Path(glm_ext.__file__).parents[1]
    if not (root / "benchmarks" / "compare.py").is_file():
        raise UserError(
            "bench: expected the benchmarks folder of the repository beside the package, found none in "
            f"{root}; clone the repository and install it with pip install -e ."
        )
    # A process of its own: the instruction set is chosen when libraries load.
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "benchmarks.compare", *arguments]
    return subprocess.call(command, env={**os.environ, "PYTHONPATH": path})
