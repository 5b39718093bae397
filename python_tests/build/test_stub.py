from __future__ import annotations

import subprocess
import sys

import pytest

from .cmake import ROOT

pytest.importorskip("pybind11_stubgen")


def test_the_committed_stub_is_that_of_the_built_module() -> None:
    command = [sys.executable, "tools/stubs.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
