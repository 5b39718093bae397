"""Every op on a GPU beside its peers, taking turns in one process: what `make gpu` measures.

    python -m benchmarks.gpu [--only REGEX] [--seconds 180] [--out benchmarks/results/gpu.json]

Times are the device's (`benchmarks/gpu_timing.py`): medians between CUDA events, with the L2 cache
overwritten before each run and the run queued before it begins. What the host takes to launch it is a column
of its own. A peer that this torch or this machine does not have is left out; one that fails is named with its
error. Beside the JSON a table in Markdown is written.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_ext import _C, ops
from glm_ext.ops import _cuda, _gelu_mlp_library, reference
from glm_ext.ops._cuda import has_kernel

from .gpu_timing import DeviceTimer, Run, peaks, take_turns

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
    of_peak: bool = True  # whether the peaks that are measured, of bfloat16 and of a copy, are this case's


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> Tensor:
    return (torch.randn(shape, device=DEVICE) / shape[-1] ** 0.5).to(dtype).requires_grad_(grad)


def ours(
    forward: Callable[[], Any], name: str = OURS, ways: Sequence[str] = ()
) -> dict[str, Callable[[], Any]]:
    """Of an op that has kernels of warpgroups: once without, and once with, where this build and card can.

    And by each of `ways`: "ffma", or, of its backward, "five_products" and "atomics". Backward runs as
    forward did: `training` runs it right after.
    """

    def kind(wgmma: bool = False, way: str = "") -> Callable[[], Any]:
        def run() -> Any:
            _C.use_wgmma(wgmma)
            _C.use_ffma(way == "ffma")
            _cuda.five_products, _cuda.atomics = way == "five_products", way == "atomics"
            return forward()

        return run

    hopper = "90a" in _C.cuda_architectures().split() and torch.cuda.get_device_capability()[0] == 9
    kinds = {name: kind()}
    if hopper and "ffma" not in ways:  # which is for float32
        kinds[f"{name}, warpgroups"] = kind(wgmma=True)
    return kinds | {f"{name}, {way.replace('_', ' ')}": kind(way=way) for way in ways}


# ------------------------------------------------------------------------------------------------------ cases


def attention(
    B: int,
    H: int,
    S: int,
    D: int,
    prefix: int,
    backward: bool,
    dropout_p: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    pairs = sum(max(prefix, i + 1) for i in range(S))
    ways: tuple[str, ...] = ()
    if dtype == torch.float32:
        ways = ("ffma",)
    elif backward:
        # With fewer heads, sums are added to in any order or not at all (csrc/cuda/attention/backward.cuh).
        ways = ("five_products", "atomics") if B * H >= 128 else ("atomics",)

    def forwards() -> tuple[list[Tensor], dict[str, Callable[[], Any]]]:
        packed = random(B, S, 3, H, D, dtype=dtype, grad=backward)
        # peers would concatenate gradients
        apart = [random(B, S, H, D, dtype=dtype, grad=backward) for _ in range(3)]
        q, k, v = (t.transpose(1, 2) for t in apart)
        mask = reference.visible(S, S, prefix).to(DEVICE)
        lengths = torch.full((B,), prefix, device=DEVICE)
        peers: dict[str, Callable[[], Any]] = {}
        if has_kernel("span_attention", q.dtype, gradient=backward):
            peers |= ours(
                lambda: ops.span_attention_qkvpacked(packed, lengths, dropout_p=dropout_p), ways=ways
            )
        peers["SDPA, bool mask"] = lambda: F.scaled_dot_product_attention(q, k, v, mask, dropout_p)
        if dropout_p > 0:
            return [packed, *apart], peers
        peers["SDPA, causal (less work)"] = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
        peers["FlexAttention, compiled"] = set_up_later(lambda: flex(q, k, v, prefix))
        if dtype != torch.float32 and importlib.util.find_spec("flash_attn"):
            peers["flash-attn, twice"] = set_up_later(lambda: flash_twice(q, k, v, prefix))
        return [packed, *apart], peers

    direction = "fwd+bwd" if backward else "fwd"
    name = f"span_attention {direction} B={B} H={H} S={S} D={D} a={prefix}"
    name += f" p={dropout_p}" if dropout_p > 0 else ""
    name += " float32" if dtype == torch.float32 else ""
    flops = (3.5 if backward else 1) * 4 * D * pairs * B * H
    return Case(name, flops, 0, forwards, backward, of_peak=dtype != torch.float32)


def decoding(B: int, H: int, T: int, D: int) -> Case:
    """One new row a sequence on a full cache: whoever reads the cache fastest."""

    def forwards() -> tuple[list[Tensor], dict[str, Callable[[], Any]]]:
        q, k, v = (random(B, H, rows, D, grad=False) for rows in (1, T, T))
        lengths = torch.full((B,), T, device=DEVICE)
        peers: dict[str, Callable[[], Any]] = {}
        if has_kernel("span_attention", q.dtype):
            peers[OURS] = lambda: ops.span_attention(q, k, v, lengths)
        peers["SDPA"] = lambda: F.scaled_dot_product_attention(q, k, v)
        return [], peers

    return Case(f"span_attention decoding B={B} H={H} T={T} D={D}", 0, 4 * B * H * T * D, forwards, False)


def packed_attention(B: int, H: int, longest: int, D: int) -> Case:
    """Sequences of 64 rows to the longest, end to end, the first four fifths of each its Part A."""
    lengths = [64 + (longest - 64) * (i * 37 % B) // (B - 1) for i in range(B)]
    prefixes = [length * 4 // 5 for length in lengths]
    pairs = sum(max(a, i + 1) for n, a in zip(lengths, prefixes, strict=True) for i in range(n))
    total = sum(lengths)

    def forwards() -> tuple[list[Tensor], dict[str, Callable[[], Any]]]:
        packed = [random(total, H, D) for _ in range(3)]
        padded = [random(B, longest, H, D) for _ in range(3)]
        sizes, prefix = (torch.tensor(t, device=DEVICE) for t in (lengths, prefixes))
        bounds = F.pad(sizes.cumsum(0), (1, 0))
        place = torch.arange(longest, device=DEVICE)
        seen = (place < prefix[:, None, None]) | (place <= place[:, None])
        mask = (seen & (place < sizes[:, None, None]) | (place == 0))[:, None]  # no row sees nothing: no NaN
        peers: dict[str, Callable[[], Any]] = {}
        if has_kernel("span_attention", packed[0].dtype, gradient=True):
            peers |= ours(lambda: ops.span_attention_varlen(*packed, bounds, prefix), ways=("atomics",))
        peers["SDPA, padded, bool mask"] = lambda: F.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in padded), mask
        )
        peers["FlexAttention, compiled"] = set_up_later(lambda: flex_packed(packed, sizes, prefix))
        return [*packed, *padded], peers

    name = f"span_attention_varlen fwd+bwd B={B} H={H} N={total} D={D}"
    return Case(name, 3.5 * 4 * D * pairs * H, 0, forwards)


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


def flex_packed(packed: list[Tensor], sizes: Tensor, prefix: Tensor) -> Callable[[], Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows = packed[0].shape[0]
    sequence = torch.repeat_interleave(torch.arange(len(sizes), device=DEVICE), sizes)
    end_of_a = (sizes.cumsum(0) - sizes + prefix)[sequence]
    blocks = create_block_mask(
        lambda b, h, i, j: (sequence[i] == sequence[j]) & ((j < end_of_a[i]) | (j <= i)),
        None, None, rows, rows, device=DEVICE,
    )  # fmt: skip
    compiled = torch.compile(flex_attention)
    return lambda: compiled(*(t.transpose(0, 1)[None] for t in packed), block_mask=blocks)


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
        routes = {library: functools.partial(routed, library, inputs) for library in (False, True)}
        own = f"{OURS}, own products"
        return inputs, {
            **(ours(routes[False], own) if dtype.itemsize == 2 else {own: routes[False]}),
            f"{OURS}, library products": routes[True],
            "eager": lambda: eager(*inputs),
            "torch.compile": lambda: compiled(*inputs),
        }

    name = f"gelu_mlp N={rows} E={width} F={hidden} {str(dtype).removeprefix('torch.')}"
    return Case(name, 3 * 2 * 2 * rows * width * hidden, 0, forwards, of_peak=dtype != torch.float32)


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
            **ours(lambda: ops.linear_cross_entropy(hidden, weight, targets, mask)),
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
    yield attention(8, 16, 1024, 64, 819, True, dropout_p=0.1)
    yield attention(2, 16, 1024, 64, 819, True, dtype=torch.float32)
    yield packed_attention(64, 16, 1024, 64)
    yield decoding(32, 16, 4096, 64)
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
        return torch.autograd.grad(outputs, inputs, grads, allow_unused=True)  # each peer has its inputs

    return step


def measure(case: Case, timer: DeviceTimer, seconds: float, end: float) -> dict[str, Any]:
    """Milliseconds of each peer in turn for so many seconds; memory beyond what is held before.

    No peer is set up (some compile first) after the time `end`.
    """
    inputs, forwards = case.forwards()
    runs: dict[str, Run] = {}
    failed, memory = {}, {}
    for name, forward in forwards.items():
        if time.perf_counter() > end:
            failed[name] = "out of time"
            continue
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
    peers = {
        name: {**times, "peak_bytes": memory[name]}
        for name, times in take_turns(runs, timer, seconds).items()
    }
    return {
        "name": case.name, "flops": case.flops, "bytes": case.bytes, "of_peak": case.of_peak,
        "peers": peers, "failed": failed,
    }  # fmt: skip


def conditions(timer: DeviceTimer) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "gpu": torch.cuda.get_device_name(),
        "kernels": _C.cuda_architectures(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "clocks": "as the driver sets them",
        **peaks(timer),
    }


def table(report: dict[str, Any]) -> str:
    given = report["conditions"]
    where = ", ".join(
        f"{key} {value:.0f}" if isinstance(value, float) else f"{key} {value}" for key, value in given.items()
    )
    lines = [
        f"{where}. Medians of the device's time; the L2 cache is overwritten before each run, and a run is "
        "queued before it begins. Peaks are a product of 8192 x 8192 in bfloat16 and a copy of 1 GB.",
        "",
        "| case | peer | ms (p20, p80) | host ms | rate | of peak | peak memory | ours is faster by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        ours = min(
            (p["median_ms"] for name, p in case["peers"].items() if name.startswith(OURS)), default=None
        )
        for name, p in case["peers"].items():
            ms = p["median_ms"]
            if case["flops"]:
                rate, unit, peak = case["flops"] / ms * 1e-9, "TFLOP/s", given["peak_tflops"]
            else:
                rate, unit, peak = case["bytes"] / ms * 1e-6, "GB/s", given["peak_gbs"]
            cells = [
                case["name"], name,
                f"{ms:.3f} ({p['p20_ms']:.3f}, {p['p80_ms']:.3f})" + ("" if p["queued"] else ", not queued"),
                f"{p['host_ms']:.3f}", f"{rate:.0f} {unit}", f"{rate / peak:.0%}" if case["of_peak"] else "",
                f"{p['peak_bytes'] >> 20} MB",
                "" if ours is None or name.startswith(OURS) else f"{ms / ours:.2f}x",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            f"| {case['name']} | {name} | failed: {why} | | | | | |" for name, why in case["failed"].items()
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
    timer = DeviceTimer()
    report: dict[str, Any] = {"conditions": conditions(timer), "cases": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for i, case in enumerate(cases):
        left = (end - time.perf_counter()) / (len(cases) - i)
        if left <= 0:
            print(f"out of time: {len(cases) - i} cases were not measured")
            break
        torch.manual_seed(0)
        report["cases"].append(measure(case, timer, min(2.0, left / 3), end))
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(report))
        torch.compiler.reset()  # else the peers of one case count against the recompilations of the next
        torch.cuda.empty_cache()
    print(table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
