from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from glm_ext import _C

from .isa_symbols import leaks

pytestmark = [
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="the baseline of other architectures has one vector set"
    ),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump: apt-get install binutils"),
]


def test_no_set_leaks() -> None:
    assert leaks(Path(_C.__file__)) == {}


HEADER = """
#pragma once
template <class T> [[gnu::noinline]] T sum(const T* p, int n) {
  T s = 0;
  for (int i = 0; i < n; ++i) s += p[i];
  return s;
}
"""
KERNEL = """
#include "shared.h"
namespace glm::cpu::ISA {
double kernel(const double* p, int n) { return sum(p, n); }
}
"""


@pytest.mark.parametrize(("order", "leaking"), [(["scalar", "avx2"], False), (["avx2", "scalar"], True)])
def test_catches_a_planted_leak(tmp_path: Path, order: list[str], leaking: bool) -> None:
    """A template in no set's namespace: harmless while the copy that every machine runs is linked first."""
    (tmp_path / "shared.h").write_text(HEADER)
    (tmp_path / "kernel.cpp").write_text(KERNEL)
    for isa in order:
        flags = ["-mavx2"] if isa == "avx2" else []
        compile_one = ["g++", "-O2", "-fPIC", "-c", f"-DISA={isa}", *flags, "kernel.cpp", "-o", f"{isa}.o"]
        subprocess.run(compile_one, cwd=tmp_path, check=True)
    subprocess.run(
        ["g++", "-shared", *(f"{isa}.o" for isa in order), "-o", "leak.so"], cwd=tmp_path, check=True
    )
    assert list(leaks(tmp_path / "leak.so")) == (["_Z3sumIdET_PKS0_i"] if leaking else [])


def test_catches_an_initialiser(tmp_path: Path) -> None:
    """What runs at load runs on every machine, whatever its namespace."""
    source = "#include <cmath>\nnamespace glm::cpu::avx2 { extern double x; double x = std::sin(x) + 1; }"
    (tmp_path / "static.cpp").write_text(source)
    subprocess.run(
        ["g++", "-O2", "-mavx2", "-fPIC", "-shared", "static.cpp", "-o", "static.so"],
        cwd=tmp_path,
        check=True,
    )
    assert len(leaks(tmp_path / "static.so")) == 1
