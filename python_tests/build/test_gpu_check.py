"""tools/gpu_check.py, as far as it shows without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_in_one_line_and_fails(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main() == 1
    assert capsys.readouterr().out == (
        "gpu: expected a CUDA device that torch can use, found none; nothing was run\n"
    )


def test_an_old_gpu_is_named(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert check.missing() == "expected a GPU of compute capability 8.0 or newer, found 7.5"


@pytest.mark.parametrize("sanitizer", [True, False])
def test_the_steps(
    check: ModuleType,
    sanitizer: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(check, "find", lambda tool: f"/bin/{tool}" if sanitizer else None)
    steps = check.steps("card")
    names = [name for name, _, _ in steps]
    checks = ["memcheck", "racecheck"] if sanitizer else []
    assert names == ["build", "tests", *checks, "benchmarks"]
    assert ("no compute-sanitizer" in capsys.readouterr().out) == (not sanitizer)
    assert str(steps[-1][2][-1]).endswith("benchmarks/results/gpu-card.json")
