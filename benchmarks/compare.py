"""Every case with its peers taking turns, round after round, in one process: where the tables come from.

    python -m benchmarks.compare [--suite ops|attention|step] [--only REGEX] [--isa avx2] --out FILE

Interleaving lets all peers see the same machine; the ratio of medians then holds on a noisy one too. The peak
is measured before and after each case, and the better one counts. Result: one JSON file, which
benchmarks/report.py turns into tables and plots.

--isa avx2 holds everybody to AVX2, ours and the libraries of the peers: about what a machine without AVX-512
sees.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from glm_ext import _C

from .cases import OURS, Case, all_cases, attention_sweep, rate
from .train_step import step_cases

ROOT = Path(__file__).parent.parent
SUITES = {"ops": all_cases, "attention": attention_sweep, "step": step_cases}
HELD_TO_AVX2 = {  # read when the libraries load: ours, ATen, MKL, oneDNN
    "GLM_FORCE_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


def measure(case: Case, seconds: float, threads: int) -> dict[str, Any]:
    """Medians and p20/p80 of every peer, in seconds; at least five rounds."""
    peers = case.peers()
    for run in peers.values():  # compilation, first touch of memory
        run()
        run()
    peak = _C.fma_peak(threads)
    times: dict[str, list[float]] = {name: [] for name in peers}
    begin = time.perf_counter()
    while len(times[OURS]) < 5 or time.perf_counter() - begin < seconds:
        for name, run in peers.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    peak = max(peak, _C.fma_peak(threads))
    results = {}
    for name, values in times.items():
        p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive")
        results[name] = {"median": statistics.median(values), "p20": p20, "p80": p80, "rounds": len(values)}
    return {
        "op": case.op,
        "name": case.name,
        "shape": case.shape,
        "flops": case.flops,
        "bytes": case.bytes,
        "tokens": case.tokens,
        "peak_gflops": peak,
        "peers": results,
    }


def conditions(suite: str, threads: int) -> dict[str, Any]:
    return {
        "suite": suite,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "isa": _C.isa(),
        "torch": torch.__version__,
        "compiler": _C.compiler(),
        "allocator": os.environ.get("LD_PRELOAD") or "glibc",
        "load": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """What was measured; "-dirty" where the package or its sources differ from that commit."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)

    found = git("rev-parse", "--short", "HEAD").stdout.strip()
    changed = git("diff", "--quiet", "HEAD", "--", "csrc", "glm_ext").returncode
    return found + ("-dirty" if changed else "") if found else "unknown"


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def run(cases: Iterable[Case], suite: str, seconds: float, threads: int, out: Path | None) -> None:
    report: dict[str, Any] = {"conditions": conditions(suite, threads), "cases": []}
    for case in cases:
        result = measure(case, seconds, threads)
        report["cases"].append(result)
        if out:  # after every case: an interrupted run keeps what it has
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(report, indent=1) + "\n")
        ours = result["peers"][OURS]["median"]
        line = ", ".join(
            f"{name} {r['median'] / ours:.2f}x" for name, r in result["peers"].items() if name != OURS
        )
        print(f"{case.id}: {ours * 1e3:.3f} ms, {rate(result, ours)}; {line}", flush=True)
        gc.collect()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", choices=SUITES, default="ops")
    parser.add_argument("--only", default="", help="run the cases whose name this regular expression finds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=6.0, help="at least this long per case")
    parser.add_argument("--isa", choices=["avx2"], help="hold everybody to this instruction set")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    options = parser.parse_args(arguments)
    if options.isa and any(os.environ.get(name) != value for name, value in HELD_TO_AVX2.items()):
        given = sys.argv[1:] if arguments is None else arguments
        again = [sys.executable, "-m", "benchmarks.compare", *given]
        os.execve(sys.executable, again, {**os.environ, **HELD_TO_AVX2})
    torch.set_num_threads(options.threads)
    cases = [case for case in SUITES[options.suite]() if re.search(options.only, case.id)]
    run(cases, options.suite, options.seconds, options.threads, options.out)


if __name__ == "__main__":
    main()
