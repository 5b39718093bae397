"""Measurements as tables and pictures: benchmarks/results -> README.md, docs/*.md, docs/images.

    python -m benchmarks.report            after new files in benchmarks/results
    python -m benchmarks.report --check    fails if the pages do not say what the files say

A page asks for a table by a pair of comments, and what stands between them is rewritten:

    <!-- table cpu-ops-2-avx512 -->        of benchmarks/results/cpu-ops-2-avx512.json
    <!-- end -->
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any

from .cases import OURS, rate
from .experiments import curves_table, few_shot_table
from .result_file import ROOT, Report, read, small_print

PAGES = [ROOT / page for page in ("README.md", "docs/performance.md", "docs/results.md")]
BLOCK = re.compile(r"<!-- table ([\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def table(report: Report) -> str:
    """One row a case: median with p20-p80, what it reaches, and how many times longer each peer takes."""
    rows = ["| op | work | glm_ext | reaches | peers: times longer |", "| --- | --- | --- | --- | --- |"]
    for case in report["cases"]:
        ours = case["peers"][OURS]
        peers = [f"{name} {ratio(case, name):.2f}x" for name in case["peers"] if name != OURS]
        columns = [
            f"`{case['op']}`",
            case["name"],
            spread(ours),
            rate(case, ours["median"]),
            ", ".join(peers),
        ]
        rows.append(f"| {' | '.join(columns)} |")
    return "\n".join([*rows, "", conditions(report), ""])


def ratio(case: dict[str, Any], peer: str) -> float:
    quotient: float = case["peers"][peer]["median"] / case["peers"][OURS]["median"]
    return quotient


def spread(times: dict[str, float]) -> str:
    factor, unit = (1.0, "s") if times["median"] >= 1.0 else (1e3, "ms")
    median, p20, p80 = (f"{factor * times[name]:.3g}" for name in ("median", "p20", "p80"))
    return f"{median} {unit} ({p20}-{p80})"


def gflops_of(case: dict[str, Any], peer: str = OURS) -> float:
    rate: float = case["flops"] / case["peers"][peer]["median"] * 1e-9
    return rate


def conditions(report: Report) -> str:
    """Under which a table holds, in one line of small print."""
    peak = max(case["peak_gflops"] for case in report["cases"])
    return small_print(
        report,
        f", peak {peak:.0f} GFLOP/s (float32 multiply-add)",
        " Peers take turns in one process; median (p20-p80).",
    )


def kernels_table(report: Report) -> str:
    """What tools/cuda_gate.py found: registers (resident warps), fewest and most of the instances."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for kernel in report["kernels"]:
        key = kernel["file"], kernel["name"].partition("<")[0]
        found.setdefault(key, {}).setdefault(kernel["arch"], []).append(kernel)
    archs = list(dict.fromkeys(kernel["arch"] for kernel in report["kernels"]))
    rows = [f"| file | kernel | instances | {' | '.join(f'sm_{arch}' for arch in archs)} |"]
    rows.append(f"| --- | --- | ---{' | ---' * len(archs)} |")
    for (file, name), by_arch in found.items():
        cells = [
            f"{span(k['registers'] for k in by_arch[arch])} ({span(k['warps'] for k in by_arch[arch])})"
            for arch in archs
        ]
        rows.append(f"| `{file}` | `{name}` | {len(by_arch[archs[0]])} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"*nvcc {report['conditions']['nvcc']}; no spills, no stack frames.*", ""])


def routes_table(report: Report) -> str:
    """Of benchmarks/gpu_routes.py: forward and backward by own products, the library's, and plain torch."""
    given, sizes = report["conditions"], report["routes"]
    widths = list(dict.fromkeys(size["width"] for size in sizes))
    lines: dict[tuple[str, int], list[str]] = {}
    for size in sizes:
        ms = size["fwd+bwd"]
        cells = lines.setdefault((size["dtype"], size["rows"]), [])
        cells.append(" / ".join(f"{ms[route]:.2f}" for route in ("own", "library", "eager")))
    rows = [f"| dtype | rows | {' | '.join(f'E = {width}, F = {4 * width}' for width in widths)} |"]
    rows.append(f"| --- | ---{' | ---' * len(widths)} |")
    rows += [f"| {dtype} | {count} | {' | '.join(cells)} |" for (dtype, count), cells in lines.items()]
    queue = {
        "idle": "Each run launched on an idle queue: small ones show what the host takes to launch them.",
        "filled": "Times of the device: each run queued before it begins.",
    }[given["queue"]]
    where = f"{given['gpu']}, torch {given['torch']}, {given['date']}, commit {given['commit']}"
    what = "Milliseconds forward and backward: own products / the library's / plain torch."
    return "\n".join([*rows, "", f"*{where}. {what} {queue}*", ""])


def device_table(report: Report) -> str:
    """A run's time on a GPU in its kernels, and with its launches; peers with their launches."""
    given = report["conditions"]
    tflops, gbs = given["peak_tflops"], given["copy_gbs"]
    rows = ["| work | kernels | rate | with launches | peers, with launches |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for case in report["device"]:
        ms = case["kernels_ms"]
        if "flops" in case:
            reached, peak, unit = case["flops"] / ms * 1e-9, tflops, "TFLOP/s"
        else:
            reached, peak, unit = case["bytes"] / ms * 1e-6, gbs, "GB/s"
        peers = ", ".join(f"{name} {time:.3f} ms" for name, time in case["peers"].items())
        rate = f"{reached:.0f} {unit}, {reached / peak:.0%}"
        rows.append(f"| {case['name']} | {ms:.3f} ms | {rate} | {case['ms']:.3f} ms | {peers} |")
    where = f"{given['gpu']}, torch {given['torch']}, {given['date']}, commit {given['commit']}"
    peaks = f"% of {tflops} TFLOP/s (a product of bf16 matrices) or {gbs} GB/s (a copy)"
    return "\n".join([*rows, "", f"*{where}; {peaks}, measured in the same run. Medians of ten.*", ""])


def loader_table(report: Report) -> str:
    """Million tokens a second by objective and form; a column a length of texts."""
    cells = report["loader"]
    lengths = sorted({cell["length"] for cell in cells})
    lines = [f"| objective | batches | {' | '.join(f'{length} tokens' for length in lengths)} |"]
    lines.append(f"| --- | ---{' | ---' * len(lengths)} |")
    rows: dict[tuple[str, bool], dict[int, float]] = {}
    for cell in cells:
        rows.setdefault((cell["objective"], cell["packed"]), {})[cell["length"]] = cell["speed"]
    for (objective, packed), speeds in rows.items():
        columns = [f"{speeds[length] / 1e6:.2f}" for length in lengths]
        lines.append(f"| {objective} | {'packed' if packed else 'padded'} | {' | '.join(columns)} |")
    how = " Million tokens a second of one core; processor time, median batch."
    return "\n".join([*lines, "", small_print(report, how=how), ""])


def span(values: Iterable[int]) -> str:
    found = list(values)
    low, high = min(found), max(found)
    return str(low) if low == high else f"{low}-{high}"


# A result says by its key what it is.
TABLES = {
    "cases": table,
    "runs": curves_table,
    "few_shot": few_shot_table,
    "loader": loader_table,
    "kernels": kernels_table,
    "routes": routes_table,
    "device": device_table,
}


def rewritten(page: str) -> str:
    """The page with every table made anew."""

    def fill(block: re.Match[str]) -> str:
        report = read(block[1])
        (made,) = (make for kind, make in TABLES.items() if kind in report)
        return f"<!-- table {block[1]} -->\n{made(report)}<!-- end -->"

    return BLOCK.sub(fill, page)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail where a page is not current"
    )
    options = parser.parse_args()
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        if (new := rewritten(text)) == text:
            continue
        if options.check:
            raise SystemExit(
                f"{path.name} is not what benchmarks/results say; run python -m benchmarks.report"
            )
        path.write_text(new, encoding="utf-8")
    if not options.check:
        from .plots import draw_all

        draw_all(ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
