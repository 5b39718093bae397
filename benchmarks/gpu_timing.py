"""How long the device takes for a run, whatever the host takes to launch it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Run = Callable[[], object]

MOST_WAIT_MS = 100.0  # a run that is not queued by then waits for the device itself


@dataclass(frozen=True)
class Timed:
    device_ms: float
    host_ms: float  # until everything was launched
    queued: bool  # before the device began; else device_ms may hold gaps that are the host's


class DeviceTimer:
    """Between two events, on a device that waits until the whole run is queued, with nothing of it in L2."""

    def __init__(self) -> None:
        self.flush = torch.empty(128 << 20, dtype=torch.int16, device="cuda")
        torch.cuda._sleep(1_000_000)
        cycles = 10_000_000
        self.cycles_per_ms = cycles / between_events(lambda: torch.cuda._sleep(cycles))

    def wait_for(self, run: Run) -> float:
        """Milliseconds in which the host launches it: twice what it took on an idle device."""
        slowest = 0.0
        for _ in range(3):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            slowest = max(slowest, time.perf_counter() - begin)
        torch.cuda.synchronize()
        return min(MOST_WAIT_MS, 2e3 * slowest + 0.05)

    def once(self, run: Run, wait_ms: float) -> Timed:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(int(wait_ms * self.cycles_per_ms))
        start.record()
        begin = time.perf_counter()
        run()
        host_ms = 1e3 * (time.perf_counter() - begin)
        end.record()
        queued = not start.query()
        torch.cuda.synchronize()
        return Timed(start.elapsed_time(end), host_ms, queued)


def between_events(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def take_turns(
    runs: dict[str, Run],
    timer: DeviceTimer,
    seconds: float,
    *,
    least: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Any]]:
    """Medians of each, one round of all after the other until the time is over and each has `least`.

    A run that began before it was queued does not count; the device waits twice as long for the next.
    """
    waits = {name: timer.wait_for(run) for name, run in runs.items()}
    times: dict[str, list[Timed]] = {name: [] for name in runs}
    begin = clock()
    while runs and (clock() - begin < seconds or any(len(done) < least for done in times.values())):
        for name, run in runs.items():
            timed = timer.once(run, waits[name])
            if timed.queued or waits[name] >= MOST_WAIT_MS:
                times[name].append(timed)
            else:
                waits[name] = min(MOST_WAIT_MS, 2 * waits[name])
    return {name: summary(done) for name, done in times.items()}


def summary(times: list[Timed]) -> dict[str, Any]:
    values = [t.device_ms for t in times]
    p20, *_, p80 = statistics.quantiles(values, n=5)
    return {
        "median_ms": statistics.median(values), "p20_ms": p20, "p80_ms": p80, "rounds": len(values),
        "host_ms": statistics.median(t.host_ms for t in times),
        "queued": all(t.queued for t in times),
    }  # fmt: skip


def peaks(timer: DeviceTimer) -> dict[str, float]:
    """What this card reaches at best: TFLOP/s of a big product in bfloat16, GB/s of a big copy."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(source)
    runs: dict[str, Run] = {"product": lambda: torch.mm(a, b, out=c), "copy": lambda: copy.copy_(source)}
    for run in runs.values():
        run()
    times = take_turns(runs, timer, 0.5)
    return {
        "peak_tflops": 2e-9 * size**3 / times["product"]["median_ms"],
        "peak_gbs": 2e-6 * source.numel() / times["copy"]["median_ms"],
    }
