"""Builds glm_ext_simt, the CUDA kernels compiled for the host, from the sources as they are; imports it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from types import ModuleType

import pybind11

from ..build.load import ROOT, load


def load_simt() -> ModuleType:
    sanitize = os.environ.get("GLM_SANITIZE", "")
    build = (
        ROOT / "build" / "-".join(["simt", sys.implementation.cache_tag, *filter(None, sanitize.split(","))])
    )
    build.mkdir(parents=True, exist_ok=True)
    with open(build / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of pytest-xdist build once
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-DGLM_BUILD_MODULE=OFF",
            "-DGLM_BUILD_SIMT=ON",
            f"-DGLM_SANITIZE={sanitize}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        for command in (configure, ["cmake", "--build", str(build), "--target", "glm_ext_simt"]):
            run = subprocess.run(
                command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if run.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{run.stdout[-4000:]}")
    return load(next(build.glob("glm_ext_simt.*.so")))
