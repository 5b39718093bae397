from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from glm_ext import _C

from .tile_loops import Loop, tile_loops

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the assembly of x86-64"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump: apt-get install binutils"),
    pytest.mark.skipif("GNU" not in _C.compiler(), reason="registers are allocated as GCC does"),
]

# Multiply-adds of a whole register tile (csrc/cpu/microkernel.h)
TILES = {"avx2": 12, "avx512": 24, "avx512bf16": 24}
# The functions that matrix products spend their time in
PRODUCTS = re.compile(r"multiply_tileI|\d(multiply|dot_products)I")


@pytest.fixture(scope="module")
def loops() -> list[Loop]:
    return [loop for loop in tile_loops(Path(_C.__file__), least=8) if PRODUCTS.search(loop.function)]


@pytest.mark.parametrize("isa", TILES)
def test_products_stay_in_registers(loops: list[Loop], isa: str) -> None:
    if isa not in _C.isas_built():
        pytest.skip(f"{isa} is not built")
    own = [loop for loop in loops if f"{len(isa)}{isa}" in loop.function]
    assert TILES[isa] in {loop.multiply_adds for loop in own}
    assert {loop.function: loop.spills for loop in own if loop.spills} == {}


def test_catches_a_spill(tmp_path: Path) -> None:
    """Sixteen sums and their factors in the sixteen registers of AVX2."""
    source = """
        typedef float V __attribute__((vector_size(32)));
        void product(long n, const V* a, const V* b, V* out) {
          V sums[4][4] = {};
          for (long k = 0; k < n; ++k, a += 4, b += 4) {
            for (int r = 0; r < 4; ++r)
              for (int c = 0; c < 4; ++c) sums[r][c] += a[r] * b[c];
          }
          for (int i = 0; i < 16; ++i) out[i] = sums[i / 4][i % 4];
        }
    """
    (tmp_path / "tile.cpp").write_text(source)
    command = ["g++", "-O3", "-mavx2", "-mfma", "-fPIC", "-shared", "tile.cpp", "-o", "tile.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (loop,) = tile_loops(tmp_path / "tile.so", least=16)
    assert loop.spills
