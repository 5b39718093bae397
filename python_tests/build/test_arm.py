"""The NEON kernels: cross-compiled, and run under an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from .cmake import FOLDER, build_program

COMPILER, EMULATOR, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
CROSS = [
    "-DGLM_BUILD_MODULE=OFF",
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={COMPILER}",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason=f"needs {COMPILER} and {EMULATOR}: apt-get install g++-aarch64-linux-gnu qemu-user",
    ),
]


@pytest.mark.parametrize(
    ("target", "isa"), [("core_test", ""), ("kernels_test", "scalar"), ("kernels_test", "neon")]
)
def test_under_emulator(target: str, isa: str) -> None:
    program = build_program(target, FOLDER / "aarch64", CROSS)
    environment = {**os.environ, "GLM_FORCE_ISA": isa}
    run = subprocess.run(
        [EMULATOR, "-L", SYSROOT, program], env=environment, stdout=subprocess.PIPE, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout
    assert run.stdout.startswith(isa)
    assert " passed, 0 failed" in run.stdout
