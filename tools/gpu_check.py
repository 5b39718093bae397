"""All that only a GPU can show, in one command that needs no network: `make gpu`.

Builds the kernels for the card at hand, runs the tests marked gpu, compute-sanitizer's memcheck and
racecheck on the smallest of them, and the benchmarks against every peer found, whose results go to
benchmarks/results/. Each step has a share of the eight minutes. A step that fails does not keep the others
from running, but for the build.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TOTAL_SECONDS = 470
MOST_PROCESSES = 8  # each has a context on the card
SMALL = [
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "python_tests/gpu/test_ops.py",
    "python_tests/gpu/test_wgmma.py",
    "python_tests/gpu/test_ffma.py",
    "python_tests/gpu/test_query_sums.py",
    "python_tests/gpu/test_small_cards.py",
    "-k",
    "test_small",
]


def missing() -> str | None:
    """What this machine lacks, in one line."""
    import torch

    if not torch.cuda.is_available():
        return "expected a CUDA device that torch can use, found none"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"expected a GPU of compute capability 8.0 or newer, found {major}.{minor}"
    if find("nvcc") is None:
        return "expected nvcc on PATH or in /usr/local/cuda/bin, found none"
    return None


def find(tool: str) -> str | None:
    return shutil.which(tool) or shutil.which(tool, path="/usr/local/cuda/bin")


def processes() -> list[str]:
    """Most of the tests' time is the host's: torch.compile, and tensors that are compared on the CPU."""
    if importlib.util.find_spec("xdist") is None:
        print("gpu: no pytest-xdist: the tests run one after the other", flush=True)
        return []
    return ["-n", str(min(MOST_PROCESSES, os.cpu_count() or 1))]


def steps(name: str) -> list[tuple[str, int, list[str]]]:
    """(what, seconds at most, command) of each step."""
    python = sys.executable
    listed = [
        ("build", 240, [python, "setup.py", "-q", "build_ext", "--inplace"]),
        ("tests", 200, [python, "-m", "pytest", "-q", "-m", "gpu", *processes(), "python_tests/gpu"]),
    ]
    sanitizer = find("compute-sanitizer")
    if sanitizer is None:
        print("gpu: no compute-sanitizer beside nvcc: memcheck and racecheck are left out", flush=True)
    else:
        for check, seconds in (("memcheck", 80), ("racecheck", 120)):
            command = [sanitizer, "--tool", check, "--error-exitcode", "1", python, *SMALL]
            listed.append((check, seconds, command))
    out = RESULTS / f"gpu-{name}.json"
    listed.append(("benchmarks", 200, [python, "-m", "benchmarks.gpu", "--out", str(out)]))
    return listed


def main() -> int:
    lack = missing()
    if lack is not None:
        print(f"gpu: {lack}; nothing was run")
        return 1
    import torch

    environment = {"GLM_CUDA": "on", "GLM_CUDA_ARCHS": "native", "PYTHONPATH": str(ROOT)}
    name = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    end = time.monotonic() + TOTAL_SECONDS
    failed = []
    for what, seconds, command in steps(name):
        left = min(seconds, end - time.monotonic())
        if what == "benchmarks":
            command = [*command, "--seconds", str(max(10, int(left - 20)))]
        begin = time.monotonic()
        try:
            code = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **environment}, timeout=max(left, 1), check=False
            ).returncode
            outcome = "passed" if code == 0 else f"FAILED ({code})"
        except subprocess.TimeoutExpired:
            outcome = f"FAILED: longer than {left:.0f} s"
        print(f"gpu: {what}: {outcome}, {time.monotonic() - begin:.0f} s", flush=True)
        if outcome != "passed":
            failed.append(what)
            if what == "build":
                break
    print(f"gpu: {', '.join(failed)} failed" if failed else f"gpu: all passed; tables in {RESULTS}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
