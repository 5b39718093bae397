"""The C++ tests: csrc/core, and every kernel of each instruction set that this machine runs."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from glm_ext import _C

from .build.cmake import build_program, native_build


def run_program(target: str, **environment: str) -> str:
    program = build_program(target, *native_build())
    run = subprocess.run(
        [program], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout
    assert re.search(r"^[1-9]\d* passed, 0 failed$", run.stdout, re.MULTILINE), run.stdout
    return run.stdout


def test_core() -> None:
    run_program("core_test")


@pytest.mark.parametrize("isa", _C.isas_supported())
def test_kernels(isa: str) -> None:
    assert run_program("kernels_test", GLM_FORCE_ISA=isa).startswith(isa)
