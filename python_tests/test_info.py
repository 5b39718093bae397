import subprocess
import sys
import types

import torch

from glm_ext import info
from glm_ext.cli import main


def test_both_ways_print_the_facts(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    by_module = subprocess.run(
        [sys.executable, "-m", "glm_ext.info"], capture_output=True, text=True, check=True
    )
    for text in (printed, by_module.stdout):
        assert torch.__version__ in text and "threads" in text and "flash_attn" in text


def test_kernels_that_are_there_are_described(monkeypatch):
    kernels = types.SimpleNamespace(
        isa=lambda: "avx2",
        isas_built=lambda: ["scalar", "avx2", "avx512"],
        isas_supported=lambda: ["scalar", "avx2"],
        cuda_architectures=lambda: "",
        compiler=lambda: "GCC 12.2",
    )
    monkeypatch.setitem(sys.modules, "glm_ext._C", kernels)
    found = info.collect()
    assert found["instruction set"] == "avx2 (built: scalar, avx2, avx512; this CPU runs: scalar, avx2)"
    assert found["compiler"] == "GCC 12.2"
    assert found["CUDA kernels"].startswith("not built")
    assert "kernels" not in found


def test_missing_kernels_are_said_not_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "glm_ext._C", None)  # import raises ModuleNotFoundError
    assert "pip install -e ." in info.collect()["kernels"]


def test_kernels_that_do_not_load_give_the_reason(monkeypatch):
    def fail(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(info.importlib, "import_module", fail)
    assert info.collect()["kernels"].startswith("built, but does not load (libgomp.so.1")


def test_allocator_is_named(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert info.collect()["allocator"] == "/usr/lib/libjemalloc.so.2"
