"""Builds the C++ test programs; in the folder of the extension's build, if there is one, for its objects."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "cmake"


def tool(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    assert path is not None, f"{name} is needed to build the C++ tests: pip install {name}"
    return path


def native_build() -> tuple[Path, list[str]]:
    extension = FOLDER / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    if (extension / "CMakeCache.txt").exists():
        return extension, []
    return FOLDER / "tests", ["-DGLM_BUILD_MODULE=OFF"]


def build_program(target: str, build: Path, options: list[str]) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes share the folder
        configure = [
            tool("cmake"),
            "-S",
            ROOT,
            "-B",
            build,
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            *options,
        ]
        for command in (configure, [tool("cmake"), "--build", build, "--target", target]):
            run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert run.returncode == 0, run.stdout
    return build / "csrc" / "tests" / target
