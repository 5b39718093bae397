"""tools/cuda_gate.py: it reads what nvcc says, and fails on what it must."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from .load import ROOT, tool

# A frame: an array that is indexed at run time. Spills: 64 live values in 32 registers. And no bounds at all.
BAD = """
__global__ void __launch_bounds__(128) frame(const int* in, int* out) {
  int values[32];
  for (int i = 0; i < 32; ++i) values[i] = in[i];
  for (int i = 0; i < 32; ++i) values[in[i] & 31] += i;
  out[0] = values[in[40] & 31];
}
__global__ void __launch_bounds__(1024, 2) spills(const float* in, float* out) {
  float values[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) values[i] = in[threadIdx.x + i * 1024];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[threadIdx.x + i * 1024] = values[i] * values[63 - i];
}
__global__ void unbounded(float* out) { out[threadIdx.x] = 1.0f; }
__global__ void __launch_bounds__(128) good(float* out) { out[threadIdx.x] = 1.0f; }
"""


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    return tool("cuda_gate")


def test_products_and_sums_round_twice(gate: ModuleType) -> None:
    """As in C++ and on the host: dP - delta, or x - mean of one column, is zero only then."""
    options = (ROOT / "CMakeLists.txt").read_text().split("target_compile_options(glm_cuda PRIVATE ")[1]
    assert "--fmad=false" in options.split(")")[0]
    assert "--fmad=false" in gate.FLAGS


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_bad_kernels_fail(gate: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "bad.cu"
    source.write_text(BAD)
    kernels, _ = gate.compile_kernels(gate.find_nvcc(), source, "80")
    problems = {
        name.split("(")[0]: kernel.problems()
        for name, kernel in zip(gate.readable([k.name for k in kernels]), kernels, strict=True)
    }
    assert problems["good"] == []
    assert problems["unbounded"] == ["no __launch_bounds__"]
    assert "stack frame of 128 bytes" in problems["frame"][0]
    assert any("spilled registers" in p for p in problems["spills"])


def test_registers_that_promise_too_much_fail(gate: ModuleType) -> None:
    common = {"name": "k", "arch": "80", "stack_bytes": 0, "spill_bytes": 0}
    fits = gate.Kernel(**common, registers=168, threads=128, blocks=3)
    assert fits.resident_warps == 12
    assert fits.problems() == []
    assert "do not fit" in gate.Kernel(**common, registers=169, threads=128, blocks=3).problems()[0]
