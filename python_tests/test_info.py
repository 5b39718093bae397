import subprocess
import sys

import torch

from glm_ext import _C, info
from glm_ext.cli import main


def test_both_ways_print_the_facts(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    by_module = subprocess.run(
        [sys.executable, "-m", "glm_ext.info"], capture_output=True, text=True, check=True
    )
    for text in (printed, by_module.stdout):
        assert torch.__version__ in text and "threads" in text and "flash_attn" in text


def test_kernels_are_described(monkeypatch):
    monkeypatch.setattr(_C, "isa", lambda: "avx2")
    monkeypatch.setattr(_C, "isas_built", lambda: ["scalar", "avx2", "avx512"])
    monkeypatch.setattr(_C, "isas_supported", lambda: ["scalar", "avx2"])
    monkeypatch.setattr(_C, "cuda_architectures", lambda: "")
    found = info.collect()
    sets = "avx2 (built: scalar, avx2, avx512; this CPU runs: scalar, avx2;"
    assert found["instruction set"].startswith(sets)
    assert found["compiler"] == _C.compiler()
    assert found["CUDA kernels"].startswith("not built")


def test_missing_kernels_say_how_to_build_them():
    """Without its kernels the package does not import, and says what to do."""
    script = "import sys; sys.modules['glm_ext._C'] = None; import glm_ext"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "ImportError: glm_ext's kernels do not load" in failed.stderr
    assert "pip install -e ." in failed.stderr


def test_allocator_is_named(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert info.collect()["allocator"] == "/usr/lib/libjemalloc.so.2"
