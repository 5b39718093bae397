"""benchmarks/gpu.py, as far as it shows without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_it_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path / "gpu.json")])
    assert gpu.main() == 1
    assert capsys.readouterr().out == (
        "benchmarks.gpu: expected a CUDA device that torch can use, found none\n"
    )
    assert not list(tmp_path.iterdir())


def test_every_case_counts_its_work() -> None:
    for case in gpu.all_cases():
        assert (case.flops > 0) != (case.bytes > 0), case.name
    mlp = next(case for case in gpu.all_cases() if case.name.startswith("gelu_mlp N=16384 E=1024"))
    assert mlp.flops == 6 * 2 * 16384 * 1024 * 4096
    causal = next(case for case in gpu.all_cases() if case.name.endswith("a=0"))
    assert causal.flops == 4 * 64 * (1024 * 1025 // 2) * 8 * 16


def test_a_peer_that_cannot_be_set_up_is_no_reason_to_lose_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`measure` calls forwards where it catches what they raise; `forwards()` itself must not raise."""
    made = []

    def broken(*args: object) -> object:
        made.append(args)
        raise ImportError("no such symbol")

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "flex", broken)
    monkeypatch.setattr(gpu, "flash_twice", broken)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    _, forwards = gpu.attention(1, 1, 4, 8, 2, False).forwards()
    assert not made
    for name in ("FlexAttention, compiled", "flash-attn, twice"):
        with pytest.raises(ImportError, match="no such symbol"):
            forwards[name]()
    assert forwards["SDPA, bool mask"]().shape == (1, 1, 4, 8)


def test_a_peer_is_set_up_once() -> None:
    made = []
    forward = gpu.set_up_later(lambda: made.append(0) or (lambda: len(made)))  # type: ignore[func-returns-value]
    assert [forward(), forward()] == [1, 1]


def test_the_table_has_rates_and_ratios_and_names_what_failed() -> None:
    peer = {"p20_ms": 1.0, "p80_ms": 3.0, "rounds": 5, "peak_bytes": 3 << 20}
    report = {
        "conditions": {"gpu": "some card"},
        "cases": [
            {
                "name": "case",
                "flops": 4e12,
                "bytes": 0,
                "peers": {"glm_ext": {"median_ms": 2.0, **peer}, "eager": {"median_ms": 5.0, **peer}},
                "failed": {"other": "RuntimeError: no"},
            },
            {
                "name": "copy",
                "flops": 0,
                "bytes": 6e9,
                "peers": {"eager": {"median_ms": 2.0, **peer}},
                "failed": {},
            },
        ],
    }
    lines = gpu.table(report).splitlines()
    assert lines[0].startswith("gpu some card. Medians")
    assert lines[4:] == [
        "| case | glm_ext | 2.000 (1.000, 3.000) | 2000 TFLOP/s | 3 MB |  |",
        "| case | eager | 5.000 (1.000, 3.000) | 800 TFLOP/s | 3 MB | 2.50x |",
        "| case | other | failed: RuntimeError: no | | | |",
        "| copy | eager | 2.000 (1.000, 3.000) | 3000 GB/s | 3 MB |  |",
    ]
