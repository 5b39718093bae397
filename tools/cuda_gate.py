"""Compiles every CUDA kernel for the architectures that the project ships, and fails where one spills
registers, has a stack frame, or could not be resident as its launch bounds promise.

    python tools/cuda_gate.py [--archs 80,90a,100a] [--only dropout] [--out FILE] [--jobs 2]

FILE is JSON, from which benchmarks/report.py makes the table of docs/performance.md. Needs nvcc and no GPU.
Registers are what ptxas says. Shared memory is what a launch asks for, which the compiler does not know:
static_asserts in the traits and the host execution (python_tests/simt) hold it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    *("-std=c++20", "-O3", "--fmad=false", "--expt-relaxed-constexpr"),  # as in CMakeLists.txt
    *("-Xptxas", "-v", "-I", str(ROOT / "csrc")),
]
REGISTERS_PER_SM = 65536
WARP = 32


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    threads: int  # of a block, at most, as __launch_bounds__ says
    blocks: int  # of that size, on one SM at once, as __launch_bounds__ asks

    @property
    def resident_warps(self) -> int:
        """Warps that the registers leave room for, of 64 (48 on sm_86 and sm_89)."""
        per_warp = -(-self.registers // 8) * 8 * WARP  # allocated in units of 8 a thread
        return min(64, REGISTERS_PER_SM // per_warp)

    def problems(self) -> list[str]:
        found = []
        if self.stack_bytes:
            found.append(f"a stack frame of {self.stack_bytes} bytes")
        if self.spill_bytes:
            found.append(f"{self.spill_bytes} bytes of spilled registers")
        if self.threads == 0:
            found.append("no __launch_bounds__")
        elif self.resident_warps * WARP < self.threads * self.blocks:
            found.append(
                f"{self.registers} registers: {self.blocks} blocks of {self.threads} threads do not fit an SM"
            )
        return found


def find_nvcc() -> str:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise SystemExit(
            "cuda_gate: expected nvcc on PATH or in /usr/local/cuda/bin, found none; install the CUDA toolkit"
        )
    return nvcc


def compile_kernels(nvcc: str, source: Path, arch: str) -> tuple[list[Kernel], float]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            *FLAGS,
            f"-arch=sm_{arch}",
            "--keep",
            "--keep-dir",
            folder,
            "-c",
            str(source),
            "-o",
            f"{folder}/out.o",
        ]
        run = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if run.returncode != 0:
            raise SystemExit(f"cuda_gate: {' '.join(command)} failed:\n{run.stdout}")
        ptx = next(Path(folder).glob("*.ptx")).read_text()
    return parse(run.stdout, ptx, arch), time.perf_counter() - started


def parse(log: str, ptx: str, arch: str) -> list[Kernel]:
    bounds = {}
    for entry in re.finditer(r"\.entry (\w+)\([^)]*\)([^{]*)\{", ptx):
        threads = re.search(r"\.maxntid (\d+)", entry[2])
        blocks = re.search(r"\.minnctapersm (\d+)", entry[2])
        bounds[entry[1]] = (int(threads[1]) if threads else 0, int(blocks[1]) if blocks else 1)
    if "serialized" in log:  # ptxas makes wgmma wait where registers are touched, and calls that information
        raise SystemExit(f"cuda_gate: products of warpgroups would not overlap:\n{log}")
    kernels = []
    for block in re.split(r"Compiling entry function ", log)[1:]:
        symbol = re.match(r"'(\w+)'", block)
        registers = re.search(r"Used (\d+) registers", block)
        frame = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block
        )
        if symbol is None or registers is None or frame is None:
            raise SystemExit(f"cuda_gate: ptxas said something unexpected:\n{block}")
        kernels.append(
            Kernel(
                name=symbol[1],
                arch=arch,
                registers=int(registers[1]),
                stack_bytes=int(frame[1]),
                spill_bytes=int(frame[2]) + int(frame[3]),
                threads=bounds[symbol[1]][0],
                blocks=bounds[symbol[1]][1],
            )
        )
    return kernels


def readable(symbols: list[str]) -> list[str]:
    """forward_kernel<bf16, true>, from what the linker calls it."""
    said = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    ).stdout
    names = []
    for line in said.splitlines():
        line = re.sub(r"\(glm::[\w:]+\)(\d+)", r"\1", line)  # a template argument: (Layout)0
        name = re.sub(r"\((?!anonymous).*\)$", "", line.removeprefix("void "))
        names.append(re.sub(r"glm::(cuda::)?|\(anonymous namespace\)::", "", name))
    return names


def table(rows: list[tuple[str, str, Kernel]]) -> list[str]:
    lines = [
        "| file | kernel | arch | registers | block | resident warps | spills | stack |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file, name, k in rows:
        cells = file, name, k.arch, k.registers, k.threads, k.resident_warps, k.spill_bytes, k.stack_bytes
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--archs", default="80,90a,100a")
    parser.add_argument("--only", default="", help="files whose path holds this")
    parser.add_argument("--out", type=Path, help="write what was found here, as JSON, where nothing failed")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()

    nvcc = find_nvcc()
    sources = [s for s in sorted((ROOT / "csrc" / "cuda").rglob("*.cu")) if options.only in str(s)]
    jobs = [(source, arch) for source in sources for arch in options.archs.split(",")]
    started = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda job: compile_kernels(nvcc, *job), jobs))

    rows: list[tuple[str, str, Kernel]] = []
    for (source, arch), (kernels, seconds) in zip(jobs, results, strict=True):
        print(f"{source.name} sm_{arch}: {len(kernels)} kernels, {seconds:.1f} s", file=sys.stderr)
        file = str(source.relative_to(ROOT / "csrc" / "cuda"))
        rows += [
            (file, name, k) for name, k in zip(readable([k.name for k in kernels]), kernels, strict=True)
        ]
    lines = table(rows)
    print("\n".join(lines))
    failures = [f"{file} {name} sm_{k.arch}: {p}" for file, name, k in rows for p in k.problems()]
    print(
        f"\n{len(rows)} kernels, {time.perf_counter() - started:.0f} s, {len(failures)} failures",
        file=sys.stderr,
    )
    for failure in failures:
        print(f"FAIL {failure}", file=sys.stderr)
    if options.out and not failures:
        release = re.search(r"release (\S+),", subprocess.check_output([nvcc, "--version"], text=True))
        found = [
            {"file": file, "name": name, "arch": k.arch, "registers": k.registers, "warps": k.resident_warps}
            for file, name, k in rows
        ]
        report = {"conditions": {"nvcc": release[1] if release else "unknown"}, "kernels": found}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
