"""What setup.py says where something is missing: one message with what to install, no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from .cmake import ROOT, tool

SOURCES = ["CMakeLists.txt", "cmake", "csrc", "glm_ext", "pyproject.toml", "setup.py"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, and a bin folder with no more than this Python, CMake and Ninja."""
    (tmp_path / "bin").mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name)
        else:
            shutil.copy2(source, tmp_path / name)
    (tmp_path / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    for name in ("cmake", "ninja"):
        (tmp_path / "bin" / name).symlink_to(tool(name))
    return tmp_path


def write_program(checkout: Path, name: str, script: str) -> None:
    path = checkout / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def failed_build(checkout: Path, path: str | None = None, **environment: str) -> str:
    """What `setup.py build_ext` says on standard error when it fails; PATH holds the bin folder alone."""
    run = subprocess.run(
        [checkout / "bin" / "python", "setup.py", "-q", "build_ext"],
        cwd=checkout,
        env={
            "PATH": path or f"{checkout / 'bin'}",
            "PYTHONPATH": sysconfig.get_path("purelib"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    return " ".join(run.stderr.split())


def test_no_compiler(checkout: Path) -> None:
    said = failed_build(checkout)
    assert "needs a C++20 compiler and found none. Install GCC 11 or newer (Debian, Ubuntu: apt-get" in said


@pytest.mark.parametrize("stale", [False, True], ids=["", "stale cache"])
def test_old_compiler(checkout: Path, stale: bool) -> None:
    """The compiler takes itself for GCC 9. A cache of another place, as after a move, changes nothing."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    write_program(checkout, "g++-old", f'exec {compiler} -U__GNUC__ -D__GNUC__=9 "$@"')
    if stale:
        build = checkout / "build" / "cmake" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        build.mkdir(parents=True)
        (build / "CMakeCache.txt").write_text("CMAKE_HOME_DIRECTORY:INTERNAL=/elsewhere\n")
    said = failed_build(
        checkout, path=f"{checkout / 'bin'}:{os.environ['PATH']}", CXX=str(checkout / "bin" / "g++-old")
    )
    assert "needs C++20: GCC 11 or newer, or Clang 14 or newer." in said
    assert "g++-old is GNU 9." in said


def test_no_cmake(checkout: Path) -> None:
    (checkout / "bin" / "cmake").unlink()
    assert "needs cmake to build and found none. Install it: pip install cmake" in failed_build(checkout)


def test_old_cmake(checkout: Path) -> None:
    write_program(checkout, "cmake", "echo cmake version 3.18.4")
    said = failed_build(checkout)
    assert "needs CMake 3.24 or newer" in said
    assert "is 3.18. Install it: pip install 'cmake>=3.24'" in said


def test_no_ninja(checkout: Path) -> None:
    (checkout / "bin" / "ninja").unlink()
    assert "needs ninja to build and found none. Install it: pip install ninja" in failed_build(checkout)


@pytest.mark.skipif(Path("/usr/local/cuda/bin/nvcc").exists(), reason="nvcc lies in its usual place")
def test_no_nvcc(checkout: Path) -> None:
    assert "needs the CUDA toolkit 12.8 or newer for GLM_CUDA=on and found no nvcc." in failed_build(
        checkout, GLM_CUDA="on"
    )


def test_old_nvcc(checkout: Path) -> None:
    write_program(checkout, "nvcc", "echo Cuda compilation tools, release 11.8, V11.8.89")
    said = failed_build(checkout, GLM_CUDA="on")
    assert "needs the CUDA toolkit 12.8 or newer" in said
    assert "is 11.8. Install one, put its nvcc on PATH or name it in CUDACXX" in said


def test_no_gpu_to_build_for(checkout: Path) -> None:
    write_program(checkout, "nvcc", "echo Cuda compilation tools, release 13.0, V13.0.88")
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    assert "native: found no GPU of compute capability 8.0" in failed_build(
        checkout, GLM_CUDA="on", GLM_CUDA_ARCHS="native"
    )


def test_unknown_choice(checkout: Path) -> None:
    assert "GLM_CUDA: expected auto, on or off, got 'maybe'" in failed_build(checkout, GLM_CUDA="maybe")


def test_an_installed_package_has_the_files_beside_its_modules(checkout: Path, tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, cwd=checkout, capture_output=True, timeout=120, check=True)
    packaged = {path.relative_to(tmp_path / "lib") for path in (tmp_path / "lib").rglob("*.*")}
    files = [
        path.relative_to(ROOT)
        for path in (ROOT / "glm_ext").rglob("*")
        if path.suffix in (".py", ".pyi", ".yaml")
    ]
    assert Path("glm_ext/cli/recipes/rte.yaml") in files and packaged.issuperset(files)
