"""Prints after pytest-benchmark's tables what a figure means: useful GFLOP/s or GB/s, share of peak."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch

from glm_ext import _C

from .cases import OURS, rate


@pytest.fixture(scope="session")
def peak_gflops() -> float:
    """What this machine reaches now, with the threads in use."""
    return _C.fma_peak(torch.get_num_threads())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    found = [b for b in session.benchmarks if b.stats.rounds] if session else []
    if not found:
        return
    groups: dict[str, list[Any]] = {}
    for benchmark in found:
        groups.setdefault(benchmark.group, []).append(benchmark)
    write = terminalreporter.write_line
    write("")
    write(
        f"glm_ext {_C.isa()} | torch {torch.__version__} | {torch.get_num_threads()} threads | "
        f"{platform.processor() or platform.machine()} | median of each"
    )
    for group, benchmarks in groups.items():
        write("")
        write(group)
        ours = next((b.stats.median for b in benchmarks if b.extra_info["peer"] == OURS), None)
        for b in sorted(benchmarks, key=lambda b: b.stats.median):
            info, median = b.extra_info, b.stats.median
            ratio = f"{median / ours:6.2f}x ours" if ours else ""
            write(f"  {info['peer']:26s} {median * 1e3:10.3f} ms  {rate(info, median):34s} {ratio}")
