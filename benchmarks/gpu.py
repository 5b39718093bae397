"""Every op on a GPU beside its peers, taking turns in one process: what `make gpu` measures.

    python -m benchmarks.gpu [--only REGEX] [--seconds 180] [--out benchmarks/results/gpu.json]

Times are medians between CUDA events, with the L2 cache overwritten before each run. A peer that this torch
or this machine does not have is left out; one that fails is named with its error. Beside the JSON a table in
Markdown is written.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_ext import _C, ops
from glm_ext.ops import _gelu_mlp_library, reference
from glm_ext.ops._cuda import has_kernel

Run = Callable[[], object]
OURS = "glm_ext"
DEVICE = "cuda"


@dataclass(frozen=True)
class Case:
    """`forwards()` builds the inputs and gives the inputs that get gradients and each peer's forward."""

    name: str
    flops: float  # that the result needs, forward and backward where there is one; 0: memory decides
    bytes: float
    forwards: Callable[[], tuple[list[Tensor], dict[str, Callable[[], Any]]]]
    backward: bool = True


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> Tensor:
    return (torch.randn(shape, device=DEVICE) / shape[-1] ** 0.5).to(dtype).requires_grad_(grad)


# ------------------------------------------------------------------------------------------------------ cases


def attention(B: int, H: int, S: int, D: int, prefix: int, backward: bool) -> Case:
    pairs = sum(max(prefix, i + 1) for i in range(S))

    def forwards() -> tuple[list[Tensor], dict[str, Callable[[], Any]]]:
        packed = random(B, S, 3, H, D, grad=backward)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        mask = reference.visible(S, S, prefix).to(DEVICE)
        lengths = torch.full((B,), prefix, device=DEVICE)
        peers: dict[str, Callable[[], Any]] = {}
        if has_kernel("span_attention", q.dtype, gradient=backward):
            peers[OURS] = lambda: ops.span_attention(q, k, v, lengths)
        peers["SDPA, bool mask"] = lambda: F.scaled_dot_product_attention(q, k, v, mask)
        peers["SDPA, causal (less work)"] = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        peers["FlexAttention, compiled"] = set_up_later(lambda: flex(q, k, v, prefix))
        if importlib.util.find_spec("flash_attn"):
            peers["flash-attn, twice"] = set_up_later(lambda: flash_twice(q, k, v, prefix))
        return [packed], peers

    direction = "fwd+bwd" if backward else "fwd"
    name = f"span_attention {direction} B={B} H={H} S={S} D={D} a={prefix}"
    return Case(name, (3.5 if backward else 1) * 4 * D * pairs * B * H, 0, forwards, backward)


def set_up_later(make: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """A forward that is made in its first call, where an error is this peer's alone."""
    made = functools.cache(make)
    return lambda: made()()


def flex(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    blocks = create_block_mask(
        lambda b, h, i, j: (j < prefix) | (j <= i), None, None, q.shape[2], k.shape[2], device=DEVICE
    )
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=blocks)


def flash_twice(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Callable[[], Any]:
    """Part A sees itself; Part B sees everything up to itself, which is causal from the end."""
    from flash_attn import flash_attn_func

    q, k, v = (t.transpose(1, 2) for t in (q, k, v))

    def run() -> Tensor:
        parts = []
        if prefix > 0:
            parts.append(flash_attn_func(q[:, :prefix], k[:, :prefix], v[:, :prefix]))
        if prefix < q.shape[1]:
            parts.append(flash_attn_func(q[:, prefix:], k, v, causal=True))
        return torch.cat(parts, 1)

    return run


def layer_norm(rows: int, width: int) -> Case:
    def forwards() -> tuple[list[Tensor], dict[str, Callable[[], Any]]]:
        inputs = [random(rows, width), random(rows, width), random(width), random(width)]

        def eager(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            h = residual + F.dropout(x, 0.1)
            return F.layer_norm(h, (width,), weight, bias), h

        compiled = torch.compile(eager)
        return inputs, {
            OURS: lambda: ops.dropout_add_layer_norm(*inputs, dropout_p=0.1),
            "eager": lambda: eager(*inputs),
            "torch.compile": lambda: compiled(*inputs),
        }

    return Case(f"dropout_add_layer_norm N={rows} E={width} p=0.1", 0, rows * width * 18, forwards)


def embedding(batch: int, S: int, vocab: int, width: int) -> Case:
    def forwards() -> tuple[list[Tensor], dict[str, Callable[[], Any]]]:
        place = torch.arange(S, device=DEVICE)
        prefix = S * 4 // 5
        ids = [
            torch.randint(0, vocab, (batch, S), device=DEVICE),
            torch.where(place < prefix, place, prefix // 2).repeat(batch, 1),
            (place - prefix + 1).clamp(min=0).repeat(batch, 1),
        ]
        tables = [random(n, width) for n in (vocab, S + 1, S + 1)]

        def eager(*tables: Tensor) -> Tensor:
            return F.dropout(
                sum(
                    (F.embedding(i, t) for i, t in zip(ids, tables, strict=True)),
                    torch.zeros((), device=DEVICE),
                ),
                0.1,
            )

        compiled = torch.compile(eager)
        return tables, {
            OURS: lambda: ops.embedding_2d(*ids, *tables, dropout_p=0.1),
            "eager": lambda: eager(*tables),
            "torch.compile": lambda: compiled(*tables),
        }

    tokens = batch * S
    name = f"embedding_2d N={tokens} V={vocab} E={width} p=0.1"
    return Case(name, 0, (4 + 2 * 3) * tokens * width + 2 * vocab * width, forwards)


def mlp(rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    hidden = 4 * width

    def forwards() -> tuple[list[Tensor], dict[str, Callable[[], Any]]]:
        inputs = [
            random(rows, width, dtype=dtype), random(hidden, width, dtype=dtype), random(hidden, dtype=dtype),
            random(width, hidden, dtype=dtype), random(width, dtype=dtype),
        ]  # fmt: skip

        def eager(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
            return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)

        compiled = torch.compile(eager)
        return inputs, {
            f"{OURS}, own products": lambda: routed(False, inputs),
            f"{OURS}, library products": lambda: routed(True, inputs),
            "eager": lambda: eager(*inputs),
            "torch.compile": lambda: compiled(*inputs),
        }

    name = f"gelu_mlp N={rows} E={width} F={hidden} {str(dtype).removeprefix('torch.')}"
    return Case(name, 3 * 2 * 2 * rows * width * hidden, 0, forwards)


def routed(library: bool, inputs: list[Tensor]) -> Tensor:
    """Backward takes the route that is set when it runs: `measure` runs it right after."""
    _gelu_mlp_library.is_better = lambda x: library
    return ops.gelu_mlp(*inputs)


def cross_entropy(rows: int, width: int, vocab: int, counted: float) -> Case:
    def forwards() -> tuple[list[Tensor], dict[str, Callable[[], Any]]]:
        hidden, weight = random(rows, width), random(vocab, width)
        targets = torch.randint(0, vocab, (rows,), device=DEVICE)
        mask = (torch.arange(rows, device=DEVICE) % 100 < counted * 100).float()
        kept = mask.nonzero().squeeze(1)

        def eager(hidden: Tensor, weight: Tensor) -> Tensor:
            return F.cross_entropy(F.linear(hidden[kept], weight), targets[kept])

        compiled = torch.compile(eager)
        peers: dict[str, Callable[[], Any]] = {
            OURS: lambda: ops.linear_cross_entropy(hidden, weight, targets, mask),
            "eager, gathered rows": lambda: eager(hidden, weight),
            "torch.compile, gathered rows": lambda: compiled(hidden, weight),
        }
        if hasattr(F, "linear_cross_entropy"):
            peers["F.linear_cross_entropy, gathered rows"] = lambda: F.linear_cross_entropy(
                hidden[kept], weight, targets[kept]
            )
        return [hidden, weight], peers

    name = f"linear_cross_entropy N={rows} E={width} V={vocab}, {counted:.0%} of the rows"
    return Case(name, 3 * 2 * rows * counted * width * vocab, 0, forwards)


def all_cases() -> Iterator[Case]:
    for backward in (False, True):
        for prefix in (0, 512, 819, 1024):
            yield attention(8, 16, 1024, 64, prefix, backward)
        yield attention(4, 16, 2048, 128, 1638, backward)
    yield layer_norm(16384, 1024)
    yield layer_norm(4096, 768)
    yield embedding(16, 1024, 30592, 1024)
    yield mlp(16384, 1024)
    yield mlp(4096, 768)
    yield mlp(4096, 768, torch.float32)
    yield cross_entropy(8192, 1024, 30592, 1.0)
    yield cross_entropy(8192, 1024, 30592, 0.15)


# -------------------------------------------------------------------------------------------------- measuring


def training(forward: Callable[[], Any], inputs: list[Tensor]) -> Run:
    grads: list[Tensor] = []

    def step() -> object:
        out = forward()
        outputs = [out] if isinstance(out, Tensor) else list(out)
        if not grads:
            grads.extend(torch.ones_like(t) for t in outputs)
        return torch.autograd.grad(outputs, inputs, grads)

    return step


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Milliseconds of each peer in turn, until the time is over; memory beyond what is held before."""
    inputs, forwards = case.forwards()
    flush = torch.empty(128 << 20, dtype=torch.int16, device=DEVICE)
    runs, failed, memory = {}, {}, {}
    for name, forward in forwards.items():
        run = training(forward, inputs) if case.backward else forward
        try:
            for _ in range(3):
                run()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            torch.cuda.synchronize()
        except Exception as error:  # a peer that cannot do the case is no reason to lose the others
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        runs[name] = run
        memory[name] = torch.cuda.max_memory_allocated() - before
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    while runs and (time.perf_counter() - begin < seconds or len(next(iter(times.values()))) < 5):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    peers = {}
    for name, values in times.items():
        p20, *_, p80 = statistics.quantiles(values, n=5)
        peers[name] = {
            "median_ms": statistics.median(values), "p20_ms": p20, "p80_ms": p80, "rounds": len(values),
            "peak_bytes": memory[name],
        }  # fmt: skip
    return {"name": case.name, "flops": case.flops, "bytes": case.bytes, "peers": peers, "failed": failed}


def conditions() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "gpu": torch.cuda.get_device_name(),
        "kernels": _C.cuda_architectures(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "clocks": "as the driver sets them",
    }


def table(report: dict[str, Any]) -> str:
    where = ", ".join(f"{key} {value}" for key, value in report["conditions"].items())
    lines = [f"{where}. Medians; the L2 cache is overwritten before each run.", ""]
    lines += [
        "| case | peer | ms (p20, p80) | rate | peak memory | ours is faster by |",
        "|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        ours = min(
            (p["median_ms"] for name, p in case["peers"].items() if name.startswith(OURS)), default=None
        )
        for name, p in case["peers"].items():
            ms = p["median_ms"]
            if case["flops"]:
                rate = f"{case['flops'] / ms * 1e-9:.0f} TFLOP/s"
            else:
                rate = f"{case['bytes'] / ms * 1e-6:.0f} GB/s"
            ratio = "" if ours is None or name.startswith(OURS) else f"{ms / ours:.2f}x"
            spread = f"{ms:.3f} ({p['p20_ms']:.3f}, {p['p80_ms']:.3f})"
            lines.append(
                f"| {case['name']} | {name} | {spread} | {rate} | {p['peak_bytes'] >> 20} MB | {ratio} |"
            )
        lines += [
            f"| {case['name']} | {name} | failed: {why} | | | |" for name, why in case["failed"].items()
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run the cases whose name this regular expression finds")
    parser.add_argument("--seconds", type=float, default=180.0, help="for all cases together")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: expected a CUDA device that torch can use, found none")
        return 1
    end = time.perf_counter() + options.seconds
    cases = [case for case in all_cases() if re.search(options.only, case.name)]
    report: dict[str, Any] = {"conditions": conditions(), "cases": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for i, case in enumerate(cases):
        left = (end - time.perf_counter()) / (len(cases) - i)
        if left <= 0:
            print(f"out of time: {len(cases) - i} cases were not measured")
            break
        torch.manual_seed(0)
        report["cases"].append(measure(case, min(2.0, left / 3)))
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(report))
        torch.cuda.empty_cache()
    print(table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
