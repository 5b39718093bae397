"""Hands the build to CMake. Nothing here imports torch: the extension needs only a compiler and pybind11.

Environment: GLM_CUDA = auto (default: on where nvcc and a GPU are found) | on (wherever nvcc is) | off;
GLM_CUDA_ARCHS = e.g. "80;90a", or native: the GPUs of this machine, what auto takes (on takes "80;90a;100a");
GLM_SANITIZE = e.g. address,undefined; CXX, CUDACXX and CMAKE_BUILD_PARALLEL_LEVEL as in CMake.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "80;90a;100a"
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


def find_tool(name: str) -> str:
    """The program on PATH (where pip's isolated build puts its own), else beside this Python."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise SystemExit(f"glm_ext needs {name} to build and found none. Install it: pip install {name}")
    return path


def require_version(path: str, pattern: str, needed: tuple[int, int], what: str, advice: str) -> None:
    said = subprocess.run([path, "--version"], stdout=subprocess.PIPE, text=True).stdout
    version = re.search(pattern, said)
    if version is None or (int(version[1]), int(version[2])) < needed:
        found = f"{version[1]}.{version[2]}" if version else "one that does not tell its version"
        raise SystemExit(
            f"glm_ext needs {what} {needed[0]}.{needed[1]} or newer, {path} is {found}. {advice}"
        )


def local_archs() -> list[str]:
    """The architectures of this machine's GPUs, asked of the driver; there are kernels from sm_80 on."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    archs = set()
    for device in range(count.value):
        driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
        if (
            major.value >= 8
        ):  # from 9.0 on, the architecture's own instructions (wgmma, tcgen05) need the suffix a
            archs.add(f"{major.value}{minor.value}" + ("a" if major.value >= 9 else ""))
    return sorted(archs)


def cuda_options() -> list[str]:
    choice = os.environ.get("GLM_CUDA", "auto").lower()
    if choice not in ("auto", "on", "off"):
        raise SystemExit(f"GLM_CUDA: expected auto, on or off, got {choice!r}")
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if choice == "off" or (choice == "auto" and not (nvcc and local_archs())):
        return ["-DGLM_CUDA=OFF"]
    advice = "Install one, put its nvcc on PATH or name it in CUDACXX, or build without CUDA: GLM_CUDA=off"
    if nvcc is None:
        raise SystemExit(
            f"glm_ext needs the CUDA toolkit 12.8 or newer for GLM_CUDA=on and found no nvcc. {advice}"
        )
    require_version(nvcc, r"release (\d+)\.(\d+)", (12, 8), "the CUDA toolkit", advice)
    archs = os.environ.get("GLM_CUDA_ARCHS") or ("native" if choice == "auto" else DEFAULT_ARCHS)
    if archs == "native":
        archs = ";".join(local_archs())
        if not archs:
            raise SystemExit(
                "GLM_CUDA_ARCHS=native: found no GPU of compute capability 8.0 or newer; name them: 80;90a"
            )
    return ["-DGLM_CUDA=ON", f"-DGLM_CUDA_ARCHS={archs}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]


def stable_pybind11(folder: Path) -> Path:
    """A copy of pybind11 at a path that stays: each isolated build's own would compile the binding anew."""
    try:
        import pybind11
    except ImportError:
        raise SystemExit(
            "glm_ext needs pybind11 to build. Install it: pip install 'pybind11>=2.13'"
        ) from None
    copy = folder / f"pybind11-{pybind11.__version__}"
    if not copy.is_dir():
        partial = copy.with_suffix(".partial")
        shutil.copytree(Path(pybind11.__file__).parent, partial, dirs_exist_ok=True)
        partial.rename(copy)
    return copy / "share" / "cmake" / "pybind11"


def configure(command: list[str], build: Path) -> None:
    """Runs CMake; anew from nothing where what an earlier run left behind is in the way."""
    attempts: list[list[str]] = [[], ["--fresh"]] if (build / "CMakeCache.txt").exists() else [[]]
    for extra in attempts:
        run = subprocess.run([*command, *extra], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode == 0:
            return
    log = build / "configure.log"
    log.write_text(run.stdout)
    error = re.search(r"^CMake Error.*\n((?:  .*\n|\n)+)", run.stdout, re.MULTILINE)
    reason = textwrap.dedent(error[1]).strip() if error else "CMake could not configure the build."
    raise SystemExit(f"{reason}\nAll that CMake said is in {log}")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        sanitize = os.environ.get("GLM_SANITIZE", "")
        folder = ROOT / "build" / "cmake"
        build = folder / "-".join(
            filter(None, [sys.implementation.cache_tag, self.plat_name, *sanitize.split(",")])
        )
        build.mkdir(parents=True, exist_ok=True)
        cmake = find_tool("cmake")
        require_version(cmake, r"(\d+)\.(\d+)", (3, 24), "CMake", "Install it: pip install 'cmake>=3.24'")
        configure(
            [
                cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={stable_pybind11(folder)}",
                f"-DGLM_SANITIZE={sanitize}",
                *cuda_options(),
            ],
            build,
        )  # fmt: skip
        if subprocess.run([cmake, "--build", str(build), "--target", "_C"]).returncode != 0:
            raise SystemExit("glm_ext: the compiler stopped; its messages are above")
        # Replaced in one step: a running process keeps the file that it has mapped.
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(".partial")
        shutil.copy2(build / output.name, partial)
        partial.replace(output)


setup(ext_modules=[Extension("glm_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
