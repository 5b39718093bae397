from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from glm_ext import _C

from .spills import Loop, multiply_add_loops

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 assembly"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump: apt-get install binutils"),
    pytest.mark.skipif("GNU" not in _C.compiler(), reason="registers are allocated as GCC does"),
]

# The functions that the products of attention and of every matrix are made of; those of float where there are
# others too, those of pairs (unsigned int) in the set of bf16 products. Decoding, which waits for memory, is
# not asked.
ATTENTION = ["scoresI", "add_transposedI", "multiply_panelI", "add_columnsI"]
MATRIX = ["multiply_tileI", "dot_sumsI", "multiplyI"]
PRODUCTS = [
    *((isa, f"{function}f") for isa in ("avx2", "avx512") for function in ATTENTION),
    *(("avx512bf16", f"{function}j") for function in ATTENTION),
    *((isa, function) for isa in ("avx2", "avx512", "avx512bf16") for function in MATRIX),
]


@pytest.fixture(scope="module")
def loops() -> list[Loop]:
    return multiply_add_loops(Path(_C.__file__))


@pytest.mark.parametrize(("isa", "function"), PRODUCTS)
def test_products_stay_in_registers(loops: list[Loop], isa: str, function: str) -> None:
    if isa not in _C.isas_built():
        pytest.skip(f"{isa} is not built")
    # <length><set>, maybe an unnamed namespace, <length><function>
    mangled = re.compile(rf"{len(isa)}{isa}(12_GLOBAL__N_1)?\d+{function}")
    found = [loop for loop in loops if mangled.search(loop.function) and "Id" not in loop.function]
    assert found, f"no loop of multiply-adds in {function} under {isa}: was it renamed or inlined?"
    assert {loop.function: loop.spills for loop in found if loop.spills} == {}


TILE = """
typedef float V __attribute__((vector_size(32)));
void tile(long depth, const float* a, const V* b, V* out) {
  V sum[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) sum[r][0] = out[2 * r], sum[r][1] = out[2 * r + 1];
  for (long k = 0; k < depth; ++k) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const V x = a[k * ROWS + r] - V{};
      sum[r][0] += x * b[2 * k];
      sum[r][1] += x * b[2 * k + 1];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) out[2 * r] = sum[r][0], out[2 * r + 1] = sum[r][1];
}
"""


@pytest.mark.parametrize(("rows", "spills"), [(6, False), (12, True)])
def test_catches_a_tile_too_tall(tmp_path: Path, rows: int, spills: bool) -> None:
    """Twelve accumulators fit in sixteen registers, twenty-four do not."""
    source, library = tmp_path / "tile.cpp", tmp_path / "tile.so"
    source.write_text(TILE)
    options = ["-O3", "-mavx2", "-mfma", "-Wno-psabi", f"-DROWS={rows}", "-fPIC", "-shared"]
    subprocess.run(["g++", *options, source, "-o", library], check=True)
    (loop,) = [loop for loop in multiply_add_loops(library) if loop.multiply_adds == 2 * rows]
    assert bool(loop.spills) == spills
