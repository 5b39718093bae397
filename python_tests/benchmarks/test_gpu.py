"""benchmarks/gpu.py, as far as it shows without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_routes, gpu_timing
from benchmarks.gpu_timing import Timed


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


def test_the_routes_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_routes"])
    assert gpu_routes.main() == 1
    assert "expected a CUDA device" in capsys.readouterr().out


def test_a_size_is_measured_by_each_route(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = []
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(gpu, "routed", lambda library, inputs: routed.append(library) or inputs[0] * 1)  # type: ignore[func-returns-value]
    monkeypatch.setattr(
        gpu_routes,
        "take_turns",
        lambda runs, timer, seconds: {name: {"median_ms": 1.0, "host_ms": 2.0} for name in runs},
    )
    size = gpu_routes.measure(4, 8, torch.float32, FakeTimer(), 1.0)  # type: ignore[arg-type]
    every = dict.fromkeys(("own", "library", "eager"), 1.0)
    assert (size["dtype"], size["rows"], size["fwd"], size["fwd+bwd"]) == ("float32", 4, every, every)
    assert size["fwd host"] == dict.fromkeys(every, 2.0)
    assert routed == [False, True, False, True]


def test_every_case_counts_its_work() -> None:
    for case in gpu.all_cases():
        assert (case.flops > 0) != (case.bytes > 0), case.name
    mlp = next(case for case in gpu.all_cases() if case.name.startswith("gelu_mlp N=16384 E=1024"))
    assert mlp.flops == 6 * 2 * 16384 * 1024 * 4096
    causal = next(case for case in gpu.all_cases() if case.name.endswith("a=0"))
    assert causal.flops == 4 * 64 * (1024 * 1025 // 2) * 8 * 16
    decoding = next(case for case in gpu.all_cases() if "decoding" in case.name)
    assert decoding.bytes == 32 * 16 * 4096 * 64 * 2 * 2
    names = [case.name for case in gpu.all_cases()]
    assert len(set(names)) == len(names)


def test_the_peers_of_a_packed_batch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, where the padded batch holds what the packed one does."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "has_kernel", lambda *args, **options: True)
    compiled = torch.compile  # FlexAttention wants it for itself
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled(f, **options) if options else f)
    case = gpu.packed_attention(3, 2, 80, 8)
    inputs, forwards = case.forwards()
    packed, padded = inputs[:3], inputs[3:]
    lengths = [64, 72, 80]
    assert case.name.endswith(f"N={sum(lengths)} D=8")
    for leaf, batch in zip(packed, padded, strict=True):
        for sequence, rows in enumerate(leaf.data.split(lengths)):
            batch.data[sequence, : len(rows)] = rows
    ours, sdpa = (forwards[name]() for name in ("glm_ext", "SDPA, padded, bool mask"))
    for sequence, rows in enumerate(ours.split(lengths)):
        expected = sdpa[sequence, :, : len(rows)].transpose(0, 1)
        torch.testing.assert_close(rows, expected, rtol=0.02, atol=0.02)
    for name, given in (("glm_ext", [True, False]), ("SDPA, padded, bool mask", [False, True])):
        grads: Any = gpu.training(forwards[name], inputs)()
        assert [grad is not None for grad in grads] == [g for g in given for _ in range(3)]
        assert all(grad.isfinite().all() for grad in grads if grad is not None)
    for leaf in inputs:  # on a CPU this peer has no backward
        leaf.requires_grad_(False)
    flex = forwards["FlexAttention, compiled"]()
    torch.testing.assert_close(ours, flex[0].transpose(0, 1), rtol=0.02, atol=0.02)


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


class FakeTimer:
    """A run is queued in time where the device waits for at least as long as `needed`."""

    def __init__(self, **needed: float) -> None:
        self.needed = needed
        self.waits: dict[str, list[float]] = {name: [] for name in needed}

    def wait_for(self, run: gpu_timing.Run) -> float:
        return 1.0

    def once(self, run: gpu_timing.Run, wait_ms: float) -> Timed:
        name = str(run())
        self.waits[name].append(wait_ms)
        return Timed(2.0 if wait_ms >= self.needed[name] else 9.0, 0.5, wait_ms >= self.needed[name])


def test_a_run_that_was_not_queued_in_time_is_timed_again() -> None:
    timer = FakeTimer(quick=0.0, slow=4.0, waits=1e9)
    runs = {name: lambda name=name: name for name in timer.needed}
    times = gpu_timing.take_turns(runs, timer, 0.0, least=3)  # type: ignore[arg-type]
    assert timer.waits["slow"][:4] == [1.0, 2.0, 4.0, 4.0]
    assert times["quick"] == {
        "median_ms": 2.0, "p20_ms": 2.0, "p80_ms": 2.0, "rounds": len(timer.waits["quick"]),
        "host_ms": 0.5, "queued": True,
    }  # fmt: skip
    assert (times["slow"]["p80_ms"], times["slow"]["queued"]) == (2.0, True)
    assert times["slow"]["rounds"] == len(timer.waits["slow"]) - 2
    # One that asks the device in its midst is never queued: it is measured as it is, and named.
    assert (times["waits"]["median_ms"], times["waits"]["queued"], times["waits"]["rounds"]) == (
        9.0,
        False,
        3,
    )


def test_rounds_go_on_until_the_time_is_over() -> None:
    now = iter(range(100))
    timer = FakeTimer(run=0.0)
    times = gpu_timing.take_turns({"run": lambda: "run"}, timer, 10.0, clock=lambda: float(next(now)))  # type: ignore[arg-type]
    assert times["run"]["rounds"] == 9
    assert gpu_timing.take_turns({}, timer, 10.0) == {}  # type: ignore[arg-type]


def test_no_peer_is_set_up_after_the_time() -> None:
    case = gpu.Case("case", 1.0, 0, lambda: ([], {"eager": pytest.fail, "other": pytest.fail}), False)
    measured = gpu.measure(case, FakeTimer(), 1.0, -1.0)  # type: ignore[arg-type]
    assert measured["failed"] == {"eager": "out of time", "other": "out of time"}
    assert measured["peers"] == {}


def test_the_table_has_rates_and_ratios_and_names_what_failed() -> None:
    peer = {"p20_ms": 1.0, "p80_ms": 3.0, "host_ms": 0.25, "queued": True, "rounds": 5, "peak_bytes": 3 << 20}
    report = {
        "conditions": {"gpu": "some card", "peak_tflops": 4000.0, "peak_gbs": 4000.0},
        "cases": [
            {
                "name": "case",
                "flops": 4e12,
                "bytes": 0,
                "of_peak": True,
                "peers": {"glm_ext": {"median_ms": 2.0, **peer}, "eager": {"median_ms": 5.0, **peer}},
                "failed": {"other": "RuntimeError: no"},
            },
            {
                "name": "copy",
                "flops": 0,
                "bytes": 6e9,
                "of_peak": True,
                "peers": {"eager": {"median_ms": 2.0, **peer, "queued": False}},
                "failed": {},
            },
            {
                "name": "floats",
                "flops": 4e12,
                "bytes": 0,
                "of_peak": False,
                "peers": {"eager": {"median_ms": 2.0, **peer}},
                "failed": {},
            },
        ],
    }
    lines = gpu.table(report).splitlines()
    assert lines[0].startswith("gpu some card, peak_tflops 4000, peak_gbs 4000. Medians")
    assert lines[4:] == [
        "| case | glm_ext | 2.000 (1.000, 3.000) | 0.250 | 2000 TFLOP/s | 50% | 3 MB |  |",
        "| case | eager | 5.000 (1.000, 3.000) | 0.250 | 800 TFLOP/s | 20% | 3 MB | 2.50x |",
        "| case | other | failed: RuntimeError: no | | | | | |",
        "| copy | eager | 2.000 (1.000, 3.000), not queued | 0.250 | 3000 GB/s | 75% | 3 MB |  |",
        "| floats | eager | 2.000 (1.000, 3.000) | 0.250 | 2000 TFLOP/s |  | 3 MB |  |",
    ]
